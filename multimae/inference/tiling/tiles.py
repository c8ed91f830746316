"""Predictions of large images: read, predicted and blended tile by tile.

A tile is predicted at the resolution of the image. Images smaller than a tile are padded as in
evaluation (``ModelSpec.resize_mode`` ``pad``), else by copies of their last rows and columns.
``robust`` normalization uses the statistics of the image, not of a tile: tiles of one image would
else disagree about its values.

Shapes: B batch, C channels or classes, h and w of a tile, H and W of the image.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from multimae.images.inputs import PADDING, PHOTO_PADDING, Images, Inputs
from multimae.images.pixels import ImageError, ImageLike
from multimae.images.preprocess import to_model_input
from multimae.images.views import View
from multimae.inference.predict import (
    DensePrediction,
    Forward,
    LabelPrediction,
    Prediction,
    ValuePrediction,
    classes_of,
    forward_of,
    pad_batch,
    predict,
    to_predictions,
    to_unit,
)
from multimae.inference.tiling.grid import MAX_OVERLAP, Block, TileGrid, blend
from multimae.inference.tiling.tta import Augmentation, augmented_outputs, size_unit
from multimae.inference.tiling.windows import Scene
from multimae.inference.truth import MASK_THRESHOLD, MASK_VALID
from multimae.nn.network import MultiModalTransformer
from multimae.nn.tokens import Size, as_size
from multimae.specs.heads import HeadSpec, LinearOptions
from multimae.specs.modalities import Modality
from multimae.specs.spec import ModelSpec

OVERLAP = 0.25
VOID_ID = -1
"""Predicted id of pixels where no input has a value."""
_KEPT_LOGITS = 2**26


@dataclass(frozen=True)
class TileOptions:
    """Tiles of an image.

    Attributes:
        size: ``(h, w)`` of a tile; ``None``: the model's input size.
        overlap: Least share of a tile's side that the next tile covers, too.
        augmentation: Mirrored and resized tiles to average over.
    """

    size: Size | None = None
    overlap: float = OVERLAP
    augmentation: Augmentation = Augmentation()

    def tile(self, spec: ModelSpec, modalities: Sequence[Modality]) -> Size:
        """Size of a tile for a model.

        Raises:
            ValueError: The model does not take tiles of this size, or the overlap is out of range.
        """
        if not 0 <= self.overlap <= MAX_OVERLAP:
            raise ValueError(f"overlap {self.overlap:g} is not in [0, {MAX_OVERLAP:g}]")
        linear = [h.name for h in spec.heads if isinstance(h.options, LinearOptions)]
        if linear or not spec.heads:
            what = f"its head '{linear[0]}' predicts" if linear else "it has no heads, but decoders"
            raise ValueError(
                f"tiles are for heads that predict every pixel; {spec.name} cannot be used: {what}"
                + (" one class per image" if linear else "")
            )
        size, unit = self.size or as_size(spec.image_size), size_unit(spec, modalities)
        if any(side < unit or side % unit for side in size):
            fits = " ".join(str(max(1, round(side / unit)) * unit) for side in size)
            raise ValueError(
                f"tile {size[0]} {size[1]}: the sides must be multiples of {unit} for "
                f"{spec.name}; use {fits}"
            )
        return size


class Tiler:
    """A model that predicts tiles."""

    def __init__(
        self,
        forward: Forward,
        spec: ModelSpec,
        modalities: Sequence[Modality],
        options: TileOptions,
        *,
        batch_size: int = 8,
    ) -> None:
        """Take a model with dense heads.

        Args:
            forward: See :func:`forward_of`.
            spec: Spec of the model.
            modalities: Inputs that scenes have.
            options: Tiles.
            batch_size: Tiles per batch.

        Raises:
            ValueError: The model cannot predict such tiles.
        """
        self.forward, self.spec, self.modalities = forward, spec, tuple(modalities)
        self.options, self.size = options, options.tile(spec, modalities)
        self.batch_size = batch_size

    def grid(self, size: Size) -> TileGrid:
        """Tiles of an image of ``size`` ``(H, W)``, each as large as it or smaller."""
        tile = self.size
        unit = size_unit(self.spec, self.modalities)
        if self.spec.resize_mode != "pad":  # fewer made-up pixels than a full tile has
            pairs = zip(size, tile, strict=True)
            tile = tuple(min(t, -(-s // unit) * unit) for s, t in pairs)  # type: ignore[assignment]
        strides = math.lcm(*(m.stride for m in self.modalities))
        return TileGrid.over(size, tile, self.options.overlap, strides)

    def outputs(
        self, grid: TileGrid, batches: Iterable[Mapping[str, Tensor]]
    ) -> Iterator[dict[str, Tensor]]:
        """Output of every head for each tile of a grid, averaged over the augmentation.

        Args:
            grid: The tiles.
            batches: Inputs of ``batch_size`` tiles each; the last batch may be smaller. It is
                padded, as kernels, and with them the last digits, depend on the batch size.
        """
        fixed = self.batch_size if len(grid) >= self.batch_size else 0
        for x in batches:
            count = len(next(iter(x.values())))
            padded = {name: pad_batch(value, fixed) for name, value in x.items()}
            batch = augmented_outputs(self.forward, padded, self.spec, self.options.augmentation)
            for i in range(count):
                yield {name: output[i] for name, output in batch.items()}

    @torch.inference_mode()
    def blocks(self, scene: Scene) -> Iterator[tuple[Block, Tensor | None]]:
        """Predict a scene.

        Yields:
            Blocks that cover the image, in the order of the tiles, and bool (rows, columns): where
            an input has a value (``None``: everywhere).
        """
        grid = self.grid(scene.size)
        reader = _TileReader(scene, self, (grid.rows.tile, grid.columns.tile))
        known: deque[Tensor | None] = deque()

        def inputs() -> Iterator[dict[str, Tensor]]:
            for x, valid in reader.batches(grid, self.batch_size):
                known.extend(valid)
                yield x

        height, width = scene.size
        for block in blend(grid, self.outputs(grid, inputs())):
            rows, columns = height - block.top, width - block.left
            values = {name: v[:, :rows, :columns] for name, v in block.values.items()}
            mask, shape = known.popleft(), next(iter(values.values())).shape[-2:]
            if mask is not None:
                mask = mask[: shape[0], : shape[1]]
            yield replace(block, values=values), mask

    @torch.inference_mode()
    def bands(
        self,
        scene: Scene,
        *,
        confidence: bool = False,
        logits: bool = False,
        on_block: Callable[[Block], None] | None = None,
    ) -> Iterator[dict[str, DensePrediction]]:
        """Predict a scene as bands of full rows from top to bottom, by head.

        Args:
            scene: The images.
            confidence: Compute the confidence of labels.
            logits: Keep the logits of labels.
            on_block: Called with the outputs of every block.

        Yields:
            Predictions whose view is the band. Where no input has a value, ids are
            :data:`VOID_ID`, values NaN and the confidence is 0.
        """
        row: list[dict[str, DensePrediction]] = []
        width = 0
        for block, mask in self.blocks(scene):
            if on_block is not None:
                on_block(block)
            box = View(
                scene.size, block.top, block.left, *next(iter(block.values.values())).shape[-2:]
            )
            row.append(
                {
                    head.name: _prediction(
                        head, block.values[head.name], box, mask, confidence, logits
                    )
                    for head in self.spec.heads
                }
            )
            width += box.width
            if width == scene.size[1]:
                yield {name: _joined([part[name] for part in row], 1) for name in row[0]}
                row, width = [], 0


class _TileReader:
    """Model inputs of the tiles of a scene."""

    def __init__(self, scene: Scene, tiler: Tiler, tile: Size) -> None:
        self.scene, self.spec, self.tile = scene, tiler.spec, tile
        self.modalities = tiler.modalities
        self.mask = next((m for m in scene.modalities if m.name == MASK_VALID), None)
        self.statistics = {
            m.name: scene.statistics(m, self.mask if m.plot == "scalar" else None, MASK_THRESHOLD)
            for m in self.modalities
            if m.normalization == "robust" and not m.is_labels
        }

    def batches(
        self, grid: TileGrid, batch_size: int
    ) -> Iterator[tuple[dict[str, Tensor], list[Tensor | None]]]:
        """Inputs of up to ``batch_size`` tiles, and where each has a value; reads one ahead."""
        places = iter(grid)
        with self.scene.cache(self.tile[0]), ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(self._batch, list(islice(places, batch_size)))
            while True:
                batch = waiting.result()
                if batch is None:
                    return
                waiting = pool.submit(self._batch, list(islice(places, batch_size)))
                yield batch

    @torch.inference_mode()
    def _batch(
        self, places: Sequence[tuple[int, int]]
    ) -> tuple[dict[str, Tensor], list[Tensor | None]] | None:
        if not places:
            return None
        tiles = [self._tile(*place) for place in places]
        x = {m.name: torch.cat([tile[m.name] for tile, _ in tiles]) for m in self.modalities}
        return x, [known for _, known in tiles]

    def _tile(self, top: int, left: int) -> tuple[dict[str, Tensor], Tensor | None]:
        height = min(self.tile[0], self.scene.size[0] - top)
        width = min(self.tile[1], self.scene.size[1] - left)
        box = View(self.scene.size, top, left, height, width)
        x: dict[str, Tensor] = {}
        known: list[Tensor | None] = []
        for m in self.modalities:
            out = (-(-height // m.stride), -(-width // m.stride))
            raw, valid = self.scene.read(m, box, out)
            known.append(valid)
            if self.mask is not None and m.plot == "scalar":
                measured = self.scene.read(self.mask, box, out)[0][0] > MASK_THRESHOLD
                valid = measured if valid is None else valid & measured
            x[m.name] = pad_input(self._input(raw, valid, m)[None], m, self.tile, self.spec)
        return x, _any_value(known, (height, width))

    def _input(self, raw: Tensor, valid: Tensor | None, m: Modality) -> Tensor:
        if not m.is_labels:
            mask = None if valid is None else valid[None, None]
            return to_model_input(raw[None], m, mask, self.statistics.get(m.name))[0]
        ids = to_model_input(raw[None], m)[0]
        if valid is None or valid.all():
            return ids
        if m.no_data is None and not self.spec.padding_class:
            raise ImageError(
                f"modality '{m.name}' has empty pixels, for which {self.spec.name} has no class. "
                "Crop the image."
            )
        return ids.masked_fill(~valid, m.num_classes)


def pad_input(x: Tensor, m: Modality, tile: Size, spec: ModelSpec) -> Tensor:
    """Pad model inputs at bottom and right to a full tile.

    Args:
        x: ``(B, C, h, w)`` or ids ``(B, h, w)``, at the modality's resolution.
        m: Modality.
        tile: ``(h, w)`` of the result at full resolution.
        spec: Spec of the model.
    """
    below, right = (
        max(0, side // m.stride - have) for side, have in zip(tile, x.shape[-2:], strict=True)
    )
    if not below and not right:
        return x
    if spec.resize_mode != "pad":
        rows, columns = (
            torch.arange(have + more, device=x.device).clamp_max(have - 1)
            for have, more in zip(x.shape[-2:], (below, right), strict=True)
        )
        return x[..., rows[:, None], columns]
    if m.is_labels:
        return F.pad(x, (0, right, 0, below), value=m.num_classes)
    if m.plot == "scalar":
        return F.pad(x, (0, right, 0, below))
    padding = PHOTO_PADDING if m.is_photo else PADDING if m.no_data is None else m.no_data
    filler = to_model_input(torch.full((1, m.num_channels, 1, 1), float(padding)), m).to(x.device)
    out = filler.expand(*x.shape[:2], x.shape[2] + below, x.shape[3] + right).clone()
    out[..., : x.shape[2], : x.shape[3]] = x
    return out


def _any_value(known: Sequence[Tensor | None], size: Size) -> Tensor | None:
    """Where some modality has a value, at full resolution; ``None``: everywhere."""
    found = torch.zeros(size, dtype=torch.bool)
    for mask in known:
        if mask is None:
            return None
        found |= F.interpolate(mask[None, None].float(), size, mode="nearest-exact")[0, 0] > 0
    return None if found.all() else found


def _prediction(
    head: HeadSpec, output: Tensor, box: View, mask: Tensor | None, confidence: bool, logits: bool
) -> DensePrediction:
    """Prediction of a block."""
    if not head.target.is_labels:
        values = to_unit(head, output.cpu())
        if mask is not None:
            values[~mask.numpy()] = np.nan
        return ValuePrediction(values, head.unit, output.cpu(), head.target, box)
    scores = output[: head.target.num_classes]
    ids, share = classes_of(scores, confidence=confidence)
    if mask is not None:
        ids[~mask.numpy()] = VOID_ID
        if share is not None:
            share[~mask.numpy()] = 0
    kept = scores.cpu() if logits else scores.new_zeros((len(scores), 0, 0)).cpu()
    return LabelPrediction(ids, head.target.class_names, kept, head.target, box, share)


def _joined(parts: Sequence[DensePrediction], axis: int) -> DensePrediction:
    """Blocks side by side (``axis`` 1), or bands below each other (0)."""
    first, views = parts[0], [p.view for p in parts]
    box = first.view._replace(
        height=first.view.height if axis else sum(v.height for v in views),
        width=sum(v.width for v in views) if axis else first.view.width,
    )
    if isinstance(first, LabelPrediction):
        labels = [p for p in parts if isinstance(p, LabelPrediction)]
        shares = [p.confidence for p in labels if p.confidence is not None]
        return replace(
            first,
            ids=np.concatenate([p.ids for p in labels], axis),
            logits=torch.cat([p.logits for p in labels], axis + 1),
            view=box,
            confidence=np.concatenate(shares, axis) if shares else None,
        )
    values = [p for p in parts if isinstance(p, ValuePrediction)]
    return replace(
        values[0],
        values=np.concatenate([p.values for p in values], axis),
        normalized=torch.cat([p.normalized for p in values], axis + 1),
        view=box,
    )


def predict_tiles(
    model: MultiModalTransformer,
    spec: ModelSpec,
    images: Images | ImageLike,
    options: TileOptions,
) -> dict[str, Prediction]:
    """Predict one sample by tiles; see :meth:`multimae.MultiMAE.predict`."""
    if not isinstance(images, Mapping):
        images = {spec.inputs[0].name: images}
    unknown = [name for name in images if name not in {m.name for m in spec.inputs}]
    if unknown or any(isinstance(image, Tensor | list | tuple) for image in images.values()):
        raise ValueError(
            f"tiles need one stored image for each of {', '.join(m.name for m in spec.inputs)}"
            + (f"; got {', '.join(unknown)}" if unknown else ", not tensors or lists")
        )
    modalities = [m for m in spec.inputs if m.name in images]
    tiler = Tiler(forward_of(model), spec, modalities, options)
    with Scene(images, modalities) as scene:  # type: ignore[arg-type]
        most = max((h.channels for h in spec.heads if h.target.is_labels), default=0)
        logits = most * math.prod(scene.size) <= _KEPT_LOGITS
        bands = list(tiler.bands(scene, logits=logits))
        return {name: _joined([band[name] for band in bands], 0) for name in bands[0]}


@torch.inference_mode()
def predict_augmented(
    model: MultiModalTransformer, spec: ModelSpec, inputs: Inputs, augmentation: Augmentation
) -> dict[str, Prediction]:
    """Predict one sample without tiles, averaged over an augmentation."""
    if not spec.heads or not inputs.views:
        return predict(model, spec, inputs)[0]  # which says why not
    outputs = augmented_outputs(forward_of(model), inputs.x, spec, augmentation)
    return to_predictions(spec, outputs, inputs)[0]
