"""Evaluation of dense tasks by tiles at full resolution, and with test-time augmentation.

Shapes: B batch, C channels, H and W of the image, h and w of a tile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from multimae.images.pixels import Pixels, size_of
from multimae.images.views import View
from multimae.inference.tiling.grid import TileGrid, blend
from multimae.inference.tiling.tiles import TileOptions, Tiler, pad_input
from multimae.inference.tiling.tta import Augmentation, augmented_outputs
from multimae.nn.tokens import Size
from multimae.specs.errors import UserError
from multimae.specs.spec import ModelSpec
from utils.config.finetune_options import TileEvalOptions
from utils.data.batches import Batch, collate
from utils.data.dataset import MultiModalDataset
from utils.data.dense_transforms import INSIDE
from utils.data.samplers import EvalBatchSampler
from utils.data.transforms import JointTransform
from utils.distributed.world import World

Predict = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]


class FullSizeTransform(JointTransform):
    """Every modality at the size of the largest, over its stride; emits :data:`INSIDE`."""

    def draw_view(self, size: Size) -> View:
        """The full image."""
        return View(size, 0, 0, *size)

    def __call__(self, pixels: Mapping[str, Pixels]) -> dict[str, Tensor]:
        """See the class."""
        size = max(size_of(p) for p in pixels.values())
        view = self.draw_view(size)
        images = {
            m.name: self._cut(
                pixels[m.name], m, view, (-(-size[0] // m.stride), -(-size[1] // m.stride))
            )
            for m in self.modalities
        }
        return {**images, INSIDE: torch.ones(size, dtype=torch.bool)}


class AugmentedEvaluation:
    """Outputs of batches under the options of evaluation."""

    def __init__(self, options: TileEvalOptions, spec: ModelSpec, batch_size: int) -> None:
        """Check the options; ``batch_size``: tiles per batch.

        Raises:
            UserError: The model cannot predict such tiles.
        """
        self.spec, self.tiles, self.batch_size = spec, options.eval_tiles, batch_size
        augmentation = Augmentation.parse(options.eval_tta)
        self.options = TileOptions(None, options.eval_overlap, augmentation)
        try:
            if self.tiles:
                self.options.tile(spec, spec.inputs)
        except ValueError as err:
            raise UserError(f"eval_tiles: {err}") from err

    def loader(self, dataset: MultiModalDataset, num_workers: int, world: World) -> DataLoader[Any]:
        """Loader of this rank's samples at full resolution, one at a time."""
        dataset.transform = FullSizeTransform(dataset.transform.modalities, self.spec.image_size)
        sampler = EvalBatchSampler(len(dataset), 1, rank=world.rank, world_size=world.size)
        return DataLoader(
            dataset, batch_sampler=sampler, num_workers=num_workers, collate_fn=collate,
            generator=torch.Generator(),
        )  # fmt: skip

    def outputs(self, predict: Predict, x: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Outputs of a batch, averaged over the augmentation."""
        return augmented_outputs(predict, x, self.spec, self.options.augmentation)

    def parts(
        self,
        predict: Predict,
        batch: Batch,
        x: Mapping[str, Tensor],
        *,
        by_pixel: bool,
    ) -> Iterator[tuple[Batch, dict[str, Tensor]]]:
        """Predict a sample by tiles.

        Args:
            predict: Model inputs -> float32 output of every head.
            batch: The sample.
            x: Its model inputs.
            by_pixel: Yield parts of the sample, whose pixels are scored one by one; else the whole.

        Yields:
            Stored values at full resolution and outputs, of parts that cover the sample once.
        """
        modalities = [m for m in self.spec.inputs if m.name in x]
        height, width = size = tuple(batch.images[INSIDE].shape[-2:])
        tiler = Tiler(predict, self.spec, modalities, self.options, batch_size=self.batch_size)
        grid = tiler.grid((height, width))
        full: dict[str, Tensor] = {}
        for block in blend(grid, tiler.outputs(grid, self._inputs(grid, x))):
            below, right = height - block.top, width - block.left
            values = {name: v[None, :, :below, :right] for name, v in block.values.items()}
            rows, columns = next(iter(values.values())).shape[-2:]
            box = (..., slice(block.top, block.top + rows), slice(block.left, block.left + columns))
            if by_pixel:
                images = {
                    name: image[box]
                    for name, image in batch.images.items()
                    if tuple(image.shape[-2:]) == size
                }
                yield replace(batch, images=images), values
                continue
            for name, value in values.items():
                if name not in full:
                    full[name] = value.new_empty(*value.shape[:2], height, width)
                full[name][box] = value
        if not by_pixel:
            yield batch, full

    def _inputs(self, grid: TileGrid, x: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
        places, (h, w) = iter(grid), (grid.rows.tile, grid.columns.tile)
        modalities = [m for m in self.spec.inputs if m.name in x]
        while chosen := list(islice(places, self.batch_size)):
            tiles: dict[str, Tensor] = {}
            for m in modalities:
                s = m.stride
                parts = [
                    x[m.name][..., y // s : (y + h) // s, left // s : (left + w) // s]
                    for y, left in chosen
                ]
                tiles[m.name] = torch.cat([pad_input(p, m, (h, w), self.spec) for p in parts])
            yield tiles
