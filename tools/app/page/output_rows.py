"""One output's pictures, score and legend, as HTML."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html import escape

import numpy as np
import torch
from torch import Tensor

from multimae.plotting.colours import Picture, label_palette, scalar_colours
from multimae.plotting.pictures import colour_range, to_picture
from multimae.specs.modalities import Modality
from tools.app.model.demo_model import Prediction
from tools.app.model.masks import Mask
from tools.app.page import prediction_pictures as pictures
from tools.common.data_uri import encode

_MAX_CHIPS = 16
_RAMP = "linear-gradient(90deg, {})".format(
    ", ".join(
        "#{:02x}{:02x}{:02x}".format(*colour)
        for colour in scalar_colours(np.linspace(0.0, 1.0, 9)[None], 0.0, 1.0)[0].tolist()
    )
)


@dataclass(frozen=True)
class Pair:
    """A prediction, and the same without the edits if there are any."""

    now: Prediction
    before: Prediction | None


def row_html(pair: Pair, m: Modality, patch_size: int) -> str:
    """Pictures of one output side by side, a score and a legend.

    Without edits ``filled in | prediction | truth | error``, with edits ``filled in | prediction |
    before the edit | reaction``.
    """
    now = pair.now
    guess = pictures.shown(now, m, patch_size)
    truth = now.truth.get(m.data_name)
    reference = guess if truth is None else truth
    cells = list(_cells(pair, m, patch_size, guess, truth))
    figures = "".join(_figure(m, caption, picture) for caption, picture in cells)
    score = "" if truth is None or pair.before else _score(now, m, guess, truth)
    legend = (
        _chips(m, guess, truth)
        if m.is_labels
        else _scale(now, m, reference, pair.before is not None)
    )
    return (
        f'<div class="mm-figures">{figures}</div>'
        f'<div class="mm-under"><span class="mm-score">{score}</span>{legend}</div>'
    )


def _cells(
    pair: Pair, m: Modality, patch_size: int, guess: Tensor, truth: Tensor | None
) -> Iterator[tuple[str, Picture | None]]:
    """Captions and pictures."""
    reference = guess if truth is None else truth
    full = to_picture(guess, m, reference)
    target = None if truth is None else to_picture(truth, m, reference)
    yield "filled in", pictures.fill_in(full, target, pair.now.visible.get(m.data_name))
    yield "prediction", full
    if pair.before is not None:
        before = pictures.shown(pair.before, m, patch_size)
        yield "before the edit", to_picture(before, m, reference)
        yield "reaction", pictures.difference(guess, before, m, reference)
        return
    yield "truth", target
    yield "error", None if truth is None else pictures.difference(guess, truth, m, reference)


def _figure(m: Modality, caption: str, picture: Picture | None) -> str:
    if picture is None:
        body = '<div class="mm-none">not given</div>'
    else:
        sharp = " mm-sharp" if m.is_labels else ""
        uri = encode(picture)
        body = f'<img class="mm-picture{sharp}" src="{uri}" alt="{escape(m.name)}: {caption}">'
    return f"<figure><figcaption>{caption}</figcaption>{body}</figure>"


def _score(now: Prediction, m: Modality, guess: Tensor, truth: Tensor) -> str:
    """How far off the hidden patches are."""
    hidden = _hidden(now.visible.get(m.data_name), truth)
    if not hidden.any():
        return "all patches visible"
    if m.is_labels:
        right = (guess == truth)[hidden].float().mean().item()
        return f"hidden patches: {100 * right:.0f} % of pixels right"
    raw = now.raw.get(m.data_name)
    values = [pictures.stored(x, m, raw) for x in (guess, truth)]
    if values[0] is None or values[1] is None:
        return ""
    gap = (values[0] - values[1]).abs().mean(dim=0)[hidden].mean().item()
    return f"hidden patches: off by {gap:.0f} on average"


def _hidden(visible: Mask | None, truth: Tensor) -> Tensor:
    """True where the model had to guess, ``[h, w]``."""
    if visible is None:
        return torch.ones(truth.shape[-2:], dtype=torch.bool)
    side = truth.shape[-2] // visible.shape[0], truth.shape[-1] // visible.shape[1]
    return torch.from_numpy(~visible.repeat(side[0], axis=0).repeat(side[1], axis=1))


def _chips(m: Modality, guess: Tensor, truth: Tensor | None) -> str:
    """Colours and names of the classes in the pictures, most frequent first."""
    seen = [guess.flatten()] + ([] if truth is None else [truth.flatten()])
    counts = torch.bincount(torch.cat(seen), minlength=m.num_classes)
    order = [int(i) for i in counts.argsort(descending=True, stable=True) if counts[i] > 0]
    palette = label_palette(m.num_classes)
    chips = [
        '<span class="mm-chip"><i style="background:rgb({},{},{})"></i>{}</span>'.format(
            *palette[i].tolist(), escape(class_name(m, i))
        )
        for i in order[:_MAX_CHIPS]
    ]
    rest = len(order) - _MAX_CHIPS
    more = f'<span class="mm-chip">and {rest} more</span>' if rest > 0 else ""
    return f'<span class="mm-legend">{"".join(chips)}{more}</span>'


def class_name(m: Modality, index: int) -> str:
    """Name of a class id, or the id itself."""
    return m.class_names[index] if index < len(m.class_names) else str(index)


def _scale(now: Prediction, m: Modality, reference: Tensor, edited: bool) -> str:
    """Colour bars: of the values if colours stand for values, and of the differences."""
    bars = []
    if m.plot == "scalar":
        low, high = (_value(now.raw, m, x, reference) for x in colour_range(reference))
        bars.append(_bar(m.name, low or "low", high or "high"))
    if edited or m.data_name in now.truth:
        bars.append(_bar("reaction" if edited else "error", "0", "half the range"))
    return f'<span class="mm-legend">{"".join(bars)}</span>'


def _value(raw: Mapping[str, Tensor], m: Modality, x: float, like: Tensor) -> str:
    value = pictures.stored(torch.full_like(like[:, :1, :1].float(), x), m, raw.get(m.data_name))
    return "" if value is None else f"{value.mean().item():.0f}"


def _bar(title: str, low: str, high: str) -> str:
    return (
        f'<span class="mm-bar">{escape(title)} <b>{escape(low)}</b>'
        f'<i style="background:{_RAMP}"></i><b>{escape(high)}</b></span>'
    )
