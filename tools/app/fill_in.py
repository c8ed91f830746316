"""The tab "fill in": predictions of the decoders beside truth, error and scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from multimae.images.preprocess import statistics_of
from multimae.inference.reconstruct import from_model_output
from multimae.plotting.colours import Picture, label_palette, scalar_colours
from multimae.plotting.pictures import colour_range, to_picture, unnormalize_patches
from multimae.specs.modalities import Modality
from tools.app.engine import Prediction
from tools.app.page_pictures import Sender, chips, class_name, hex_colours, scale
from tools.app.strokes import Mask

_DIMMED = 0.25
_MM_PER_M = 1000.0


@dataclass(frozen=True)
class PredictionPair:
    """A prediction and, if there are edits, the prediction without them.

    Attributes:
        metric: Modalities whose values are millimetres.
    """

    now: Prediction
    before: Prediction | None
    metric: frozenset[str] = frozenset()


def panel(pair: PredictionPair, m: Modality, patch_size: int, send: Sender) -> dict[str, Any]:
    """Pictures, score and legend of one output.

    Without edits ``prediction, truth, error``, with edits ``prediction, before, reaction``.
    Without a visible patch there is only the truth.
    """
    now, truth = pair.now, pair.now.truth.get(m.data_name)

    def sent(picture: Picture | None) -> dict[str, str] | None:
        return None if picture is None else send(picture, exact=m.is_labels)

    if m.name not in now.outputs:
        shown = {"truth": sent(None if truth is None else to_picture(truth, m, truth))}
        return {"pictures": shown, "score": "", "legend": [], "scales": []}
    prediction = to_target_space(now, m, patch_size)
    reference = prediction if truth is None else truth
    pictures = {"prediction": sent(to_picture(prediction, m, reference))}
    if pair.before is not None:
        before = to_target_space(pair.before, m, patch_size)
        pictures["before"] = sent(to_picture(before, m, reference))
        pictures["reaction"] = sent(difference(prediction, before, m, reference))
    elif truth is not None:
        pictures["truth"] = sent(to_picture(truth, m, reference))
        pictures["error"] = sent(difference(prediction, truth, m, reference))
    score = "" if truth is None or pair.before else _score(pair, m, prediction, truth)
    legend = _class_legend(m, prediction, truth) if m.is_labels else []
    scales = [] if m.is_labels else _scales(pair, m, reference)
    return {"pictures": pictures, "score": score, "legend": legend, "scales": scales}


def _score(pair: PredictionPair, m: Modality, prediction: Tensor, truth: Tensor) -> str:
    """Describe the error on the hidden patches."""
    hidden = _hidden(pair.now.visible.get(m.data_name), truth)
    if not hidden.any():
        return "all patches visible"
    hidden &= truth < m.num_classes if m.is_labels else truth.isfinite().all(dim=0)
    if not hidden.any():
        return "no hidden pixel has a value"
    if m.is_labels:
        right = (prediction == truth)[hidden].float().mean().item()
        return f"{100 * right:.0f} % of hidden pixels right"
    raw = pair.now.raw.get(m.data_name)
    values = [to_stored_values(x, m, raw) for x in (prediction, truth)]
    if values[0] is None or values[1] is None:
        return ""
    gap = (values[0] - values[1]).abs().mean(dim=0)[hidden].mean().item()
    return f"mean error of hidden pixels {with_unit(gap, m, pair.metric)}"


def with_unit(value: float, m: Modality, metric: frozenset[str]) -> str:
    """A stored value as text: metres, a share of the largest value, or a plain number."""
    if m.data_name in metric:
        return f"{value / _MM_PER_M:.2f} m"
    if m.storage == "float":
        return f"{value:.3g}"
    return f"{value:.0f}/{m.max_value:.0f}"


def _hidden(visible: Mask | None, truth: Tensor) -> Tensor:
    """Return the mask of hidden pixels, ``(h, w)``."""
    if visible is None:
        return torch.ones(truth.shape[-2:], dtype=torch.bool)
    side = truth.shape[-2] // visible.shape[0], truth.shape[-1] // visible.shape[1]
    return torch.from_numpy(~visible.repeat(side[0], axis=0).repeat(side[1], axis=1))


def _class_legend(m: Modality, prediction: Tensor, truth: Tensor | None) -> list[dict[str, str]]:
    """Colours and names of the classes present, most frequent first."""
    seen = [prediction.flatten()] + ([] if truth is None else [truth.flatten()])
    counts = torch.bincount(torch.cat(seen), minlength=m.num_classes)[: m.num_classes]
    order = [int(i) for i in counts.argsort(descending=True, stable=True) if counts[i] > 0]
    colours = hex_colours(m.num_classes)
    return chips((class_name(m, i), colours[i]) for i in order)


def _scales(pair: PredictionPair, m: Modality, reference: Tensor) -> list[dict[str, Any]]:
    """Colour bars of values and differences."""
    low, high = colour_range(reference)
    zero, first, last, half = (_stored(pair, m, x) for x in (0.0, low, high, (high - low) / 2))
    bars = []
    if m.plot == "scalar":
        texts = ["" if x is None else with_unit(x, m, pair.metric) for x in (first, last)]
        bars.append(scale(m.name, texts[0] or "low", texts[1] or "high"))
    if pair.before is not None or m.data_name in pair.now.truth:
        end = "half the range"
        if zero is not None and half is not None:
            end = with_unit(half - zero, m, pair.metric)
        bars.append(scale("error" if pair.before is None else "reaction", "0", end))
    return bars


def _stored(pair: PredictionPair, m: Modality, x: float) -> float | None:
    """Stored value, the mean over channels, of a value in model space."""
    full = torch.full((m.num_channels, 1, 1), x)
    value = to_stored_values(full, m, pair.now.raw.get(m.data_name))
    return None if value is None else value.mean().item()


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


def difference(a: Tensor, b: Tensor, m: Modality, reference: Tensor) -> Picture:
    """Render the difference of two images of one modality.

    Args:
        a: ``(C, h, w)`` in model space, ids ``(h, w)`` for labels.
        b: Same shape as ``a``; NaN or id ``num_classes`` where there is no value.
        m: Spec of the modality.
        reference: Its value range sets the scale: the brightest color is half of it.

    Returns:
        Labels: colors of ``a``, dimmed where both agree. Images: mean absolute difference over
        the channels, dark where equal.
    """
    if m.is_labels:
        colours = label_palette(m.num_classes)[a.numpy()]
        faint = (_DIMMED * colours.mean(axis=-1, keepdims=True)).astype(np.uint8)
        differs = ((a != b) & (b < m.num_classes)).numpy()
        picture: Picture = np.where(differs[..., None], colours, faint).astype(np.uint8)
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
