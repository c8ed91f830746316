"""Reconstruction of all outputs from visible patches.

Shapes: B batch, C channels, K classes, h and w at the modality's resolution.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from multimae.images.inputs import Inputs
from multimae.images.preprocess import affine, check_shape, statistics_of
from multimae.nn.masking import TokenMasks, gather_tokens, masks_from_task_masks, sample_masks
from multimae.nn.network import MultiModalTransformer
from multimae.nn.tokens import TokenLayout
from multimae.plotting import Picture, error_picture, reconstruction_grid, tiles, to_picture
from multimae.plotting.pictures import unnormalize_patches
from multimae.specs.modalities import Modality
from multimae.specs.spec import ModelSpec

Patches = Literal["all", "none"] | int | npt.NDArray[Any] | Tensor
"""Visible patches of one modality: all, none, n random ones, or a bool map (rows, columns)."""
Visible = int | Mapping[str, Patches] | None
Column = Literal["input", "masked", "prediction", "truth", "error"]
_MASKING_FACTOR = 6  # by default one token in six is visible, as in pre-training


@dataclass(frozen=True)
class Reconstruction:
    """Predictions of every output for a batch, with masks and ground truth.

    Attributes:
        spec: Spec of the model.
        predictions: Output -> (B, C, h, w) in model space, (B, K, h, w) logits for labels.
            ``norm_pix`` outputs are de-normalised with the patch statistics of the ground truth,
            if it is available.
        truth: Output -> (B, C, h, w), or ids (B, h, w), for outputs that were also inputs.
        visible: Input -> bool (B, rows, columns).
        raw: Modality -> stored values at the model's resolution; empty for tensor inputs.
    """

    spec: ModelSpec
    predictions: dict[str, Tensor]
    truth: dict[str, Tensor]
    visible: dict[str, npt.NDArray[np.bool_]]
    raw: dict[str, Tensor]

    def modality(self, name: str) -> Modality:
        """Modality of an output.

        Raises:
            KeyError: The model has no such output.
        """
        return {m.name: m for m in self.spec.outputs}[name]

    def values(self, name: str, index: int = 0) -> npt.NDArray[Any]:
        """A prediction in stored units.

        Returns:
            Labels: class ids (h, w). Images: float32 (h, w, C) on the scale of the stored values.
            Outputs with ``normalization: robust`` use the statistics of the ground truth; without
            it they are in standard deviations.
        """
        m, pred = self.modality(name), self.predictions[name][index : index + 1]
        if m.is_labels:
            ids: npt.NDArray[Any] = pred[0].argmax(dim=0).numpy()
            return ids
        if m.normalization != "robust":
            restored = from_model_output(pred, m) * m.max_value
        elif m.data_name in self.raw:
            statistics = statistics_of(self.raw[m.data_name][index : index + 1].cpu(), m)
            restored = from_model_output(pred, m, statistics) * m.max_value
        else:
            restored = pred.float()
        return restored[0].permute(1, 2, 0).numpy()

    def picture(self, name: str, column: Column = "prediction", index: int = 0) -> Picture:
        """Picture of an output.

        Args:
            name: Name of the output.
            column: ``input``: visible patches. ``masked``: visible patches, with the prediction
                elsewhere. ``prediction``: the prediction everywhere. ``truth``: ground truth.
                ``error``: error map.
            index: Index of the sample.

        Returns:
            (H, W, 3) at full resolution.

        Raises:
            KeyError: The model has no such output, or there is no ground truth, which all columns
                but ``prediction`` need.
        """
        m, pred = self.modality(name), self.predictions[name][index]
        if column == "prediction":
            truth = self.truth.get(name)
            return to_picture(pred, m, None if truth is None else truth[index])
        truth = self.truth[name][index]
        if column == "truth":
            return to_picture(truth, m)
        if column == "error":
            return error_picture(pred, truth, m)
        seen, filled, _, _ = tiles(truth, pred, self._mask(m, index), m, self.spec.patch_size)
        return seen if column == "input" else filled

    def grid(self, max_rows: int = 6) -> Image.Image:
        """Grid of all samples: visible patches, predictions, ground truth, legends."""
        masks = {name: torch.from_numpy(~seen).flatten(1) for name, seen in self.visible.items()}
        return reconstruction_grid(
            {self.modality(name).data_name: truth for name, truth in self.truth.items()},
            self.predictions,
            masks,
            self.spec.outputs,
            self.spec.patch_size,
            max_rows,
            restored=True,
        )

    def _mask(self, m: Modality, index: int) -> Tensor | None:
        seen = self.visible.get(m.data_name)
        return None if seen is None else torch.from_numpy(~seen[index]).flatten()


@torch.inference_mode()
def reconstruct(
    model: MultiModalTransformer,
    spec: ModelSpec,
    inputs: Inputs,
    visible: Visible = None,
    *,
    alphas: float | Mapping[str, float] = 1.0,
    seed: int = 0,
) -> Reconstruction:
    """Predict every output from some of the patches; see :meth:`multimae.MultiMAE.reconstruct`."""
    if not spec.outputs:
        raise ValueError(f"{spec.name} has no pre-training decoders: it cannot reconstruct")
    tokens, layout = model.embed(inputs.x)
    generator = torch.Generator().manual_seed(seed)
    masks = _make_masks(layout, len(tokens), visible, alphas, generator)
    device = tokens.device
    masks = TokenMasks(masks.ids_keep.to(device), masks.ids_restore.to(device), masks.task_masks)
    encoded = model.encode_tokens(gather_tokens(tokens, masks.ids_keep))
    folded = model.fold(model.decode(encoded, layout, masks), layout)
    truth, predictions = {}, {}
    for m in spec.outputs:
        prediction = folded[m.name].float().cpu()
        known = inputs.x.get(m.data_name)
        if known is not None:
            truth[m.name] = known.cpu()
            if m.norm_pix:
                patch = max(1, (m.patch_size or spec.patch_size) // m.stride)
                pairs = zip(prediction, truth[m.name], strict=True)
                prediction = torch.stack([unnormalize_patches(p, t, patch) for p, t in pairs])
        predictions[m.name] = prediction
    seen = {
        name: (mask == 0).view(-1, *layout.slices[name].grid).cpu().numpy()
        for name, mask in masks.task_masks.items()
    }
    return Reconstruction(spec, predictions, truth, seen, inputs.raw)


def _make_masks(
    layout: TokenLayout,
    batch: int,
    visible: Visible,
    alphas: float | Mapping[str, float],
    generator: torch.Generator,
) -> TokenMasks:
    """Masks for the caller's ``visible``, on the CPU."""
    if visible is None:
        visible = max(1, layout.num_task_tokens // _MASKING_FACTOR)
    if isinstance(visible, int):
        shares = alphas
        if isinstance(alphas, Mapping):
            shares = [float(alphas[name]) for name in layout.slices]  # type: ignore[assignment]
        return sample_masks(layout, batch, visible, shares, generator=generator)  # type: ignore[arg-type]
    unknown = [name for name in visible if name not in layout.slices]
    if unknown:
        raise ValueError(
            f"visible: {', '.join(unknown)} not among the inputs ({', '.join(layout.slices)})"
        )
    task_masks = {
        name: _hidden(name, visible.get(name, "none"), part.grid, batch, generator)
        for name, part in layout.slices.items()
    }
    if all(bool(mask.all()) for mask in task_masks.values()):
        raise ValueError("nothing is visible: show at least one patch")
    return masks_from_task_masks(task_masks, layout)


def _hidden(
    name: str, patches: Patches, grid: tuple[int, int], batch: int, generator: torch.Generator
) -> Tensor:
    """(batch, N_m) mask of one modality, 1 = masked."""
    count = grid[0] * grid[1]
    if isinstance(patches, str):
        if patches not in ("all", "none"):
            raise ValueError(f"visible[{name!r}] must be 'all', 'none', a number or a bool map")
        patches = count if patches == "all" else 0
    if isinstance(patches, int):
        if not 0 <= patches <= count:
            raise ValueError(f"visible[{name!r}] = {patches}: there are {count} patches")
        ranks = torch.rand(batch, count, generator=generator).argsort(dim=1).argsort(dim=1)
        return (ranks >= patches).long()
    shown = torch.as_tensor(np.asarray(patches)).bool()
    if tuple(shown.shape[-2:]) != grid or shown.ndim not in (2, 3):
        raise ValueError(
            f"visible[{name!r}] has shape {tuple(shown.shape)}; the patch grid is {grid} (rows, "
            "columns)"
        )
    return (~shown).long().flatten(-2).expand(batch, -1)


def from_model_output(
    x: Tensor, modality: Modality, statistics: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """Invert ``to_model_input`` for images, on the [0, 1] scale of the stored range.

    Args:
        x: ``(B, C, H, W)`` in the model's normalisation.
        modality: Modality of ``x``.
        statistics: For ``robust`` normalisation, :func:`statistics_of` the true images.

    Returns:
        float32 ``(B, C, H, W)``; predictions may fall outside [0, 1] and are not clipped.

    Raises:
        ValueError: The modality is labels, or it is ``robust`` and ``statistics`` is missing.
    """
    if modality.is_labels:
        raise ValueError(f"modality '{modality.name}' holds labels: there are no values to restore")
    check_shape(x, modality)
    if modality.normalization == "robust":
        if statistics is None:
            raise ValueError(
                f"modality '{modality.name}' is standardised per sample: pass the statistics that "
                "statistics_of(raw, modality) gave for these samples"
            )
        mean, std = statistics
        return (x.float() * std + mean) / modality.max_value
    scale, shift = affine(modality, x.device)
    return (x.float() - shift) / (scale * modality.max_value)
