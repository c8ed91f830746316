"""Card of one modality: statistics, chart, and measured values for the config."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

from multimae.plotting.colours import label_palette
from multimae.specs.modalities import Modality
from tools.doctor.examine import SetReport
from tools.doctor.files.file_records import is_scalar_map
from tools.doctor.files.histograms import Counts, quantile
from tools.doctor.files.modality_statistics import Totals

_MAX_CLASSES = 14


def modality_card(modality: Modality, report: SetReport) -> str:
    """HTML card with the statistics of one modality."""
    facts = report.statistics[modality.name]
    totals = report.result.totals[modality.name]
    records = [r for r in report.result.records if r.modality == modality.name and r.mode]
    sizes = Counter(f"{r.height} × {r.width}" for r in records)
    modes = Counter(r.mode for r in records)
    table = [
        ("files read", f"{facts['files']:,} of {len(report.listing.files[modality.name]):,}"),
        ("size (H × W)", _most_common(sizes)),
        ("mode", _most_common(modes)),
        *_lines(modality, facts),
    ]
    rows = "".join(f"<tr><td>{name}</td><td>{escape(text)}</td></tr>" for name, text in table)
    chart = _chart(modality, facts, totals) if totals.counts else ""
    return (
        f'<div class="card"><h3>{escape(modality.name)} '
        f'<span class="soft">{modality.kind}</span></h3>'
        f'<table class="facts">{rows}</table>{chart}{_yaml(modality, facts)}</div>'
    )


def _most_common(found: Counter[str]) -> str:
    shown = ", ".join(f"{name} ({n:,})" for name, n in found.most_common(3))
    return shown + (f" and {len(found) - 3} others" if len(found) > 3 else "") or "none"


def _lines(modality: Modality, facts: dict[str, Any]) -> list[tuple[str, str]]:
    if not facts["files"]:
        return []
    if modality.is_labels:
        pixels = facts["pixels"]
        used = sum(n > 0 for n in pixels)
        void = facts["void_share"]
        share = [("void", f"{void:.2%} (id {facts['void']})")] if void is not None else []
        return [("ids in use", f"{used} of {modality.num_classes}"), *share]
    lines = [
        ("mean", f"{_numbers(facts['mean'])}  (stored {_numbers(facts['mean_stored'])})"),
        ("std", f"{_numbers(facts['std'])}  (stored {_numbers(facts['std_stored'])})"),
        (
            "range",
            ", ".join(f"{a:g}..{b:g}" for a, b in zip(facts["min"], facts["max"], strict=True)),
        ),
    ]
    if is_scalar_map(modality):
        lines += [("invalid", f"{facts['invalid_share']:.2%}"), ("unit", facts["unit"])]
    return lines


def _chart(modality: Modality, facts: dict[str, Any], totals: Totals) -> str:
    if modality.is_labels:
        palette = label_palette(len(facts["pixels"]))
        colours = [f"rgb({r},{g},{b})" for r, g, b in palette.tolist()]
        weights = facts["weights"]["median_frequency"]
        return class_table(facts["pixels"], facts["names"], colours, weights, _MAX_CLASSES)
    low, high = 0, 255
    if is_scalar_map(modality) or modality.max_value > 255:
        valid = totals.counts[0].copy()
        valid[0] = 0
        low, high = 0, int(quantile(valid, 0.999)) if valid.any() else 1
    channels = [np.pad(c, (0, max(0, high + 1 - len(c)))) for c in totals.counts]
    return histogram(
        [_without_zero(c) if is_scalar_map(modality) else c for c in channels], low, high
    )


def _without_zero(counts: Counts) -> Counts:
    out: Counts = counts.copy()
    out[0] = 0
    return out


def _yaml(modality: Modality, facts: dict[str, Any]) -> str:
    """Measured mean and std as YAML, to copy into a config."""
    if modality.is_labels or not facts["files"] or modality.normalization != "mean_std":
        return ""
    fields = [f"{key}: [{_numbers(facts[key])}]" for key in ("mean", "std")]
    lines = ["modalities:", f"  {modality.name}:", *(f"    {field}" for field in fields)]
    return f"<pre>{escape(chr(10).join(lines))}</pre>"


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{v:.4g}" for v in values)


_WIDTH, _HEIGHT, _BINS = 420, 110, 84
_RGB = ("#d1495b", "#3f8f4f", "#2f6db2")
_BAR = "#5b6ee1"


def histogram(channels: Sequence[Counts], low: int, high: int) -> str:
    """SVG histogram of all channels between two stored values."""
    edges = np.linspace(low, high + 1, min(_BINS, high - low + 1) + 1).round().astype(int)
    bars = [
        np.array([counts[a:b].sum() for a, b in zip(edges[:-1], edges[1:], strict=True)])
        for counts in channels
    ]
    # Clip the bar of a dominant value (void, sky), which would flatten the others.
    tops = np.sort(np.concatenate(bars))
    top = max(1.0, float(min(tops[-1], 4 * np.quantile(tops, 0.95))))
    colours = _RGB if len(bars) == len(_RGB) else (_BAR,) * len(bars)
    shapes = [_bars(b / top, c, 0.55) for b, c in zip(bars, colours, strict=True)]
    marks = "".join(_text(x, f"{v:,}", anchor) for x, v, anchor in _ends(low, high))
    return _svg("".join(shapes) + marks)


def class_table(
    pixels: Sequence[int],
    names: Sequence[str],
    colours: Sequence[str],
    weights: Sequence[float],
    max_classes: int,
) -> str:
    """HTML table of the most frequent classes with their shares and weights."""
    total = max(1, sum(pixels))
    order = sorted((i for i, n in enumerate(pixels) if n), key=lambda i: -pixels[i])
    head = "<tr><th>id</th><th>class</th><th></th>" + _cells("share", "weight", tag="th") + "</tr>"
    rows = []
    for i in order[:max_classes]:
        name = escape(names[i]) if i < len(names) else ""
        style = f"width:{max(0.5, 100 * pixels[i] / pixels[order[0]]):.1f}%;background:{colours[i]}"
        rows.append(
            f'<tr><td class="num">{i}</td><td>{name}</td><td class="bar"><i style="{style}"></i>'
            f"</td>{_cells(f'{pixels[i] / total:.2%}', f'{weights[i]:.3g}')}</tr>"
        )
    rest = len(order) - max_classes
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
