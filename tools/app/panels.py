"""Render one output as HTML: pictures, score and legend."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html import escape

import numpy as np
import torch
from torch import Tensor

from multimae.images.preprocess import from_model_output, statistics_of, to_model_input
from multimae.plotting.colours import Picture, label_palette, scalar_colours
from multimae.plotting.pictures import colour_range, to_picture, unnormalize_patches
from multimae.specs.modalities import Modality
from tools.app.engine import Prediction
from tools.app.strokes import Array, Mask
from tools.common.data_uri import encode

_MAX_LEGEND_CLASSES = 16
_RAMP = "linear-gradient(90deg, {})".format(
    ", ".join(
        "#{:02x}{:02x}{:02x}".format(*colour)
        for colour in scalar_colours(np.linspace(0.0, 1.0, 9)[None], 0.0, 1.0)[0].tolist()
    )
)


@dataclass(frozen=True)
class PredictionPair:
    """A prediction and, if there are edits, the prediction without them."""

    now: Prediction
    before: Prediction | None


def panels_html(pair: PredictionPair, m: Modality, patch_size: int) -> str:
    """Render the pictures of one output side by side, with a score and a legend.

    Without edits ``filled in | prediction | truth | error``, with edits ``filled in | prediction |
    before the edit | reaction``.
    """
    now = pair.now
    prediction = to_target_space(now, m, patch_size)
    truth = now.truth.get(m.data_name)
    reference = prediction if truth is None else truth
    cells = list(_pictures(pair, m, patch_size, prediction, truth))
    figures = "".join(_figure(m, caption, picture) for caption, picture in cells)
    score = "" if truth is None or pair.before else _score(now, m, prediction, truth)
    legend = (
        _class_legend(m, prediction, truth)
        if m.is_labels
        else _color_bars(now, m, reference, pair.before is not None)
    )
    return (
        f'<div class="mm-figures">{figures}</div>'
        f'<div class="mm-under"><span class="mm-score">{score}</span>{legend}</div>'
    )


def _pictures(
    pair: PredictionPair, m: Modality, patch_size: int, prediction: Tensor, truth: Tensor | None
) -> Iterator[tuple[str, Picture | None]]:
    """Yield captions and pictures."""
    reference = prediction if truth is None else truth
    full = to_picture(prediction, m, reference)
    target = None if truth is None else to_picture(truth, m, reference)
    yield "filled in", fill_in(full, target, pair.now.visible.get(m.data_name))
    yield "prediction", full
    if pair.before is not None:
        before = to_target_space(pair.before, m, patch_size)
        yield "before the edit", to_picture(before, m, reference)
        yield "reaction", difference(prediction, before, m, reference)
        return
    yield "truth", target
    yield "error", None if truth is None else difference(prediction, truth, m, reference)


def _figure(m: Modality, caption: str, picture: Picture | None) -> str:
    if picture is None:
        body = '<div class="mm-none">not available</div>'
    else:
        sharp = " mm-sharp" if m.is_labels else ""
        uri = encode(picture)
        body = f'<img class="mm-picture{sharp}" src="{uri}" alt="{escape(m.name)}: {caption}">'
    return f"<figure><figcaption>{caption}</figcaption>{body}</figure>"


def _score(now: Prediction, m: Modality, prediction: Tensor, truth: Tensor) -> str:
    """Describe the error on the hidden patches."""
    hidden = _hidden(now.visible.get(m.data_name), truth)
    if not hidden.any():
        return "all patches visible"
    if m.is_labels:
        right = (prediction == truth)[hidden].float().mean().item()
        return f"hidden patches: {100 * right:.0f} % of pixels right"
    raw = now.raw.get(m.data_name)
    values = [to_stored_values(x, m, raw) for x in (prediction, truth)]
    if values[0] is None or values[1] is None:
        return ""
    gap = (values[0] - values[1]).abs().mean(dim=0)[hidden].mean().item()
    return f"hidden patches: off by {gap:.0f} on average"


def _hidden(visible: Mask | None, truth: Tensor) -> Tensor:
    """Return the mask of hidden pixels, ``(h, w)``."""
    if visible is None:
        return torch.ones(truth.shape[-2:], dtype=torch.bool)
    side = truth.shape[-2] // visible.shape[0], truth.shape[-1] // visible.shape[1]
    return torch.from_numpy(~visible.repeat(side[0], axis=0).repeat(side[1], axis=1))


def _class_legend(m: Modality, prediction: Tensor, truth: Tensor | None) -> str:
    """Render colors and names of the classes present, most frequent first."""
    seen = [prediction.flatten()] + ([] if truth is None else [truth.flatten()])
    counts = torch.bincount(torch.cat(seen), minlength=m.num_classes)
    order = [int(i) for i in counts.argsort(descending=True, stable=True) if counts[i] > 0]
    palette = label_palette(m.num_classes)
    chips = [
        '<span class="mm-chip"><i style="background:rgb({},{},{})"></i>{}</span>'.format(
            *palette[i].tolist(), escape(class_name(m, i))
        )
        for i in order[:_MAX_LEGEND_CLASSES]
    ]
    rest = len(order) - _MAX_LEGEND_CLASSES
    more = f'<span class="mm-chip">and {rest} more</span>' if rest > 0 else ""
    return f'<span class="mm-legend">{"".join(chips)}{more}</span>'


def class_name(m: Modality, index: int) -> str:
    """Return the name of a class, or its id if it has none."""
    return m.class_names[index] if index < len(m.class_names) else str(index)


def _color_bars(now: Prediction, m: Modality, reference: Tensor, edited: bool) -> str:
    """Render the color bars of values and differences."""
    bars = []
    if m.plot == "scalar":
        low, high = (_value(now.raw, m, x, reference) for x in colour_range(reference))
        bars.append(_bar(m.name, low or "low", high or "high"))
    if edited or m.data_name in now.truth:
        bars.append(_bar("reaction" if edited else "error", "0", "half the range"))
    return f'<span class="mm-legend">{"".join(bars)}</span>'


def _value(raw: Mapping[str, Tensor], m: Modality, x: float, like: Tensor) -> str:
    value = to_stored_values(torch.full_like(like[:, :1, :1].float(), x), m, raw.get(m.data_name))
    return "" if value is None else f"{value.mean().item():.0f}"


def _bar(title: str, low: str, high: str) -> str:
    return (
        f'<span class="mm-bar">{escape(title)} <b>{escape(low)}</b>'
        f'<i style="background:{_RAMP}"></i><b>{escape(high)}</b></span>'
    )


WRONG = (214, 57, 57)
_DIMMED = 0.25


def to_target_space(prediction: Prediction, m: Modality, patch_size: int) -> Tensor:
    """Convert an output to the space of its target; class ids for labels.

    Patches of a per-patch normalized target are rescaled by the target's statistics, or by those of
    the model's own prediction where there is no target.
    """
    out = prediction.outputs[m.name].float()
    if m.is_labels:
        return out.argmax(dim=0)
    if not m.norm_pix:
        return out
    statistics = prediction.truth.get(m.data_name, prediction.outputs.get(m.data_name))
    if statistics is None:
        return out
    side = max(1, (m.patch_size or patch_size) // m.stride)
    return unnormalize_patches(out, statistics.float(), side)


def fill_in(picture: Picture, truth: Picture | None, visible: Mask | None) -> Picture:
    """Return the prediction with ground truth in the visible patches."""
    if truth is None or visible is None:
        return picture
    return np.where(_enlarge(visible, picture), truth, picture)


def difference(a: Tensor, b: Tensor, m: Modality, reference: Tensor) -> Picture:
    """Render the difference of two images of one modality.

    Args:
        a: ``(C, h, w)`` in model space, ids ``(h, w)`` for labels.
        b: Same shape as ``a``.
        m: Spec of the modality.
        reference: Its value range sets the scale: the brightest color is half of it.

    Returns:
        Labels: colors of ``a``, dimmed where both agree. Images: mean absolute difference over
        the channels, dark where equal.
    """
    if m.is_labels:
        colours = label_palette(m.num_classes)[a.numpy()]
        faint = (_DIMMED * colours.mean(axis=-1, keepdims=True)).astype(np.uint8)
        picture: Picture = np.where((a != b).numpy()[..., None], colours, faint).astype(np.uint8)
    else:
        low, high = colour_range(reference)
        gap = (a - b).abs().mean(dim=0).numpy()
        picture = scalar_colours(gap, 0.0, (high - low) / 2)
    return picture.repeat(m.stride, axis=0).repeat(m.stride, axis=1)


def to_stored_values(x: Tensor, m: Modality, raw: Tensor | None) -> Tensor | None:
    """Convert model space to stored values; ``None`` if the normalization is unknown.

    Args:
        x: ``(C, h, w)``.
        m: Spec of an image modality.
        raw: Stored values ``(1, C, h, w)``, required by ``robust`` normalization.
    """
    robust = m.normalization == "robust"
    if robust and raw is None:
        return None
    statistics = statistics_of(raw, m) if robust and raw is not None else None
    with torch.inference_mode():
        return from_model_output(x[None], m, statistics)[0] * m.max_value


def _enlarge(visible: Mask, picture: Picture) -> Mask:
    """Upsample a patch mask to pixels, ``(H, W, 1)``."""
    side = picture.shape[0] // visible.shape[0], picture.shape[1] // visible.shape[1]
    return visible.repeat(side[0], axis=0).repeat(side[1], axis=1)[..., None]


def picture_of_stored(pixels: Array, m: Modality) -> Picture:
    """Render stored values."""
    if not m.is_labels:
        pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    x = to_model_input(torch.from_numpy(np.ascontiguousarray(pixels))[None], m)[0]
    return to_picture(x, m, x)
