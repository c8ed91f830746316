"""Predictions as pictures."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from multimae.images.preprocess import from_model_output, statistics_of, to_model_input
from multimae.plotting.colours import MASK_GREY, Picture, label_palette, scalar_colours
from multimae.plotting.pictures import colour_range, to_picture, unnormalize_patches
from multimae.specs.modalities import Modality
from tools.app.model.demo_model import Prediction
from tools.app.model.edits import Array
from tools.app.model.masks import Mask

WRONG = (214, 57, 57)
_DIMMED = 0.25


def shown(prediction: Prediction, m: Modality, patch_size: int) -> Tensor:
    """An output in the space of its truth; ids for labels.

    Patches of a standardised target get mean and deviation of the truth, or of the model's own
    prediction of the same image where there is none.
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
    """The prediction, with the truth where it is visible."""
    if truth is None or visible is None:
        return picture
    return np.where(_enlarge(visible, picture), truth, picture)


def hide(truth: Picture, visible: Mask) -> Picture:
    """The visible patches alone."""
    return np.where(_enlarge(visible, truth), truth, np.array(MASK_GREY, dtype=np.uint8))


def difference(a: Tensor, b: Tensor, m: Modality, reference: Tensor) -> Picture:
    """Where two images of one modality differ.

    Args:
        a: ``(C, h, w)`` in model space, ids ``(h, w)`` for labels.
        b: The same.
        m: Row of the table.
        reference: Sets the scale of images: the brightest colour is half its range of values.

    Returns:
        Labels: ``a``'s colours, dimmed where both agree. Images: the mean absolute difference of
        the channels, dark for none.
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


def stored(x: Tensor, m: Modality, raw: Tensor | None) -> Tensor | None:
    """Model space -> stored values, where that is known.

    Args:
        x: ``(C, h, w)``.
        m: Row of an image modality.
        raw: The true stored values ``(1, C, h, w)``, which ``robust`` rows need.
    """
    robust = m.normalization == "robust"
    if robust and raw is None:
        return None
    statistics = statistics_of(raw, m) if robust and raw is not None else None
    with torch.inference_mode():
        return from_model_output(x[None], m, statistics)[0] * m.max_value


def _enlarge(visible: Mask, picture: Picture) -> Mask:
    """One value per pixel, ``[H, W, 1]``."""
    side = picture.shape[0] // visible.shape[0], picture.shape[1] // visible.shape[1]
    return visible.repeat(side[0], axis=0).repeat(side[1], axis=1)[..., None]


def of_stored(pixels: Array, m: Modality) -> Picture:
    """Stored values as a picture."""
    if not m.is_labels:
        pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    x = to_model_input(torch.from_numpy(np.ascontiguousarray(pixels))[None], m)[0]
    return to_picture(x, m, x)
