"""Small bar charts as SVG text."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from tools.doctor.files.histograms import Counts

_WIDTH, _HEIGHT, _BINS = 420, 110, 84
COLOURS = ("#d1495b", "#3f8f4f", "#2f6db2")
INK = "#5b6ee1"


def histogram(channels: Sequence[Counts], low: int, high: int) -> str:
    """Stored values of all channels between two ends, over one another."""
    edges = np.linspace(low, high + 1, min(_BINS, high - low + 1) + 1).round().astype(int)
    bars = [
        np.array([counts[a:b].sum() for a, b in zip(edges[:-1], edges[1:], strict=True)])
        for counts in channels
    ]
    # One value that outweighs all others (void, sky) would flatten the rest.
    tops = np.sort(np.concatenate(bars))
    top = max(1.0, float(min(tops[-1], 4 * np.quantile(tops, 0.95))))
    colours = COLOURS if len(bars) == len(COLOURS) else (INK,) * len(bars)
    shapes = [_bars(b / top, c, 0.55) for b, c in zip(bars, colours, strict=True)]
    marks = "".join(_text(x, f"{v:,}", anchor) for x, v, anchor in _ends(low, high))
    return _svg("".join(shapes) + marks)


def classes(
    pixels: Sequence[int],
    names: Sequence[str],
    colours: Sequence[str],
    weights: Sequence[float],
    most: int,
) -> str:
    """Shares and weights of the most frequent classes, as rows of a table."""
    total = max(1, sum(pixels))
    order = sorted((i for i, n in enumerate(pixels) if n), key=lambda i: -pixels[i])
    head = "<tr><th>id</th><th>class</th><th></th>" + _cells("share", "weight", tag="th") + "</tr>"
    rows = []
    for i in order[:most]:
        name = escape(names[i]) if i < len(names) else ""
        style = f"width:{max(0.5, 100 * pixels[i] / pixels[order[0]]):.1f}%;background:{colours[i]}"
        rows.append(
            f'<tr><td class="num">{i}</td><td>{name}</td><td class="bar"><i style="{style}"></i>'
            f"</td>{_cells(f'{pixels[i] / total:.2%}', f'{weights[i]:.3g}')}</tr>"
        )
    rest = len(order) - most
    more = f'<p class="soft">and {rest} more: see statistics.json</p>' if rest > 0 else ""
    return f'<table class="classes">{head}{"".join(rows)}</table>{more}'


def _cells(*texts: str, tag: str = "td") -> str:
    return "".join(f'<{tag} class="num">{text}</{tag}>' for text in texts)


def _bars(heights: np.ndarray, colour: str, opacity: float) -> str:
    step = _WIDTH / len(heights)
    parts = []
    for i, value in enumerate(np.minimum(heights, 1.0)):
        if value > 0:
            h = max(0.6, float(value) * (_HEIGHT - 4))
            parts.append(f"M{i * step:.1f} {_HEIGHT}v-{h:.1f}h{max(step - 0.6, 0.6):.1f}v{h:.1f}z")
    return f'<path d="{"".join(parts)}" fill="{colour}" fill-opacity="{opacity}"/>'


def _ends(low: int, high: int) -> list[tuple[int, int, str]]:
    return [(0, low, "start"), (_WIDTH // 2, (low + high) // 2, "middle"), (_WIDTH, high, "end")]


def _text(x: int, text: str, anchor: str) -> str:
    return f'<text x="{x}" y="{_HEIGHT + 15}" text-anchor="{anchor}">{text}</text>'


def _svg(body: str) -> str:
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT + 20}" role="img">{body}'
        f'<line x1="0" x2="{_WIDTH}" y1="{_HEIGHT}" y2="{_HEIGHT}"/></svg>'
    )
