"""``multimae predict --tile``: samples one after the other, each by tiles, written row by row.

Memory does not grow with the height of the images, except those that must be decoded at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from multimae.images.inputs import Framed
from multimae.images.pixels import Array, ImageError
from multimae.images.views import View, cut
from multimae.inference.predict import DensePrediction, LabelPrediction, ValuePrediction
from multimae.inference.prediction.loading import Masks
from multimae.inference.prediction.outputs import HeadOutput, LabelOutput, ValueOutput
from multimae.inference.prediction.samples import Samples
from multimae.inference.prediction.truth_files import Truth
from multimae.inference.tiling.grid import Block
from multimae.inference.tiling.row_files import RowFile
from multimae.inference.tiling.tiles import Tiler
from multimae.inference.tiling.windows import Scene
from multimae.inference.truth import mask_modality
from multimae.nn.tokens import Size
from multimae.plotting.overlays import MAX_SIDE, backdrop
from multimae.specs.modalities import Modality

_SHOWN_TILES = 64


@dataclass
class TiledRun:
    """What a run by tiles needs.

    Attributes:
        samples: The samples.
        tiler: The model.
        outputs: Files by head.
        truth: To score; ``None``: nothing.
        masks: Maps of valid pixels of the inputs.
        device: Of the scores.
        confidence: Compute the confidence of labels.
        clipped: Values that files cannot hold, by head.
    """

    samples: Samples
    tiler: Tiler
    outputs: Mapping[str, HeadOutput]
    truth: Truth | None
    masks: Masks | None
    device: torch.device
    confidence: bool
    clipped: Counter[str] = field(default_factory=Counter)

    def run(self, todo: Sequence[int], pending: set[int]) -> Iterator[tuple[int, str]]:
        """Predict the samples ``todo`` and write those that are ``pending``.

        Yields:
            Each sample with its problem, empty if there is none.
        """
        for index in todo:
            try:
                yield index, self._sample(index, write=index in pending)
            except ImageError as err:
                yield index, str(err)

    def _sample(self, index: int, *, write: bool) -> str:
        images: dict[str, Any] = self.samples.images(index)
        rows = list(self.samples.modalities)
        if self.masks is not None:
            images |= self.masks.read(index)
            rows.append(mask_modality())
        name = self.samples.names[index]
        with Scene(images, rows) as scene:
            scores, problem = self._scores(name, scene.size)
            with self._files(name, scene, write) as files:
                shown = len(self.tiler.grid(scene.size)) > _SHOWN_TILES
                bar = tqdm(
                    total=scene.size[0], unit=" rows", desc=name, leave=False,
                    disable=None if shown else True,
                )  # fmt: skip
                with bar:
                    for band in self.tiler.bands(
                        scene, confidence=self.confidence, on_block=scores.add if scores else None
                    ):
                        for head, prediction in band.items():
                            if head in files:
                                files[head].write(prediction)
                                self.clipped[head] += self.outputs[head].count_clipped(prediction)
                        bar.update(next(iter(band.values())).view.height)
            if scores is not None:
                scores.finish()
        return problem

    @contextmanager
    def _files(self, name: str, scene: Scene, write: bool) -> Iterator[dict[str, _HeadFiles]]:
        """Files of a sample; deleted if an error is raised."""
        files: dict[str, _HeadFiles] = {}
        keep = False
        try:
            if write:
                for head, output in self.outputs.items():
                    files[head] = _HeadFiles(output, name, scene)
            yield files
            keep = True
        finally:
            for opened in files.values():
                opened.close(keep=keep)

    def _scores(self, name: str, size: Size) -> tuple[_SampleScores | None, str]:
        """Scores of a sample, and why it has none."""
        if self.truth is None or not self.truth.has(name):
            return None, ""
        try:
            return _SampleScores(self.truth, name, size, self.device), ""
        except ImageError as err:
            return None, f"not scored: {err}"


class _SampleScores:
    """Adds a sample to the scores: labels block by block, values at once.

    Values are few, and scores of some tasks compare neighbouring pixels.
    """

    def __init__(self, truth: Truth, name: str, size: Size, device: torch.device) -> None:
        """Read the truth.

        Raises:
            ImageError: A file is bad.
        """
        self.truth, self.name, self.size, self.device = truth, name, size, device
        self.pixels = truth.read(name, size)
        self.maps: dict[str, Tensor] = {}

    def add(self, block: Block) -> None:
        """Count a block."""
        if self.truth.by_pixel:
            height, width = next(iter(block.values.values())).shape[-2:]
            self._update(block.values, View(self.size, block.top, block.left, height, width))
            return
        for name, values in block.values.items():
            if name not in self.maps:
                self.maps[name] = torch.empty(len(values), *self.size)
            box = self.maps[name][:, block.top :, block.left :]
            box[:, : values.shape[1], : values.shape[2]] = values.cpu()

    def finish(self) -> None:
        """Count the values of the sample."""
        if self.maps:
            self._update(self.maps, View(self.size, 0, 0, *self.size))

    def _update(self, outputs: Mapping[str, Tensor], box: View) -> None:
        size = (box.height, box.width)
        images = {
            m.name: cut(self.pixels[m.name], m, box, size)[None] for m in self.truth.modalities
        }
        framed = Framed(images, torch.ones(1, *size, dtype=torch.bool), (box,), (size,))
        batch = {name: values[None].to(self.device) for name, values in outputs.items()}
        self.truth.update(batch, framed, [self.name])


class _HeadFiles:
    """The files of one head and sample."""

    def __init__(self, output: HeadOutput, sample: str, scene: Scene) -> None:
        self.output, self.sample = output, sample
        self._every = max(1, -(-max(scene.size) // MAX_SIDE))
        self._top = 0
        self._small: list[Array] = []
        self._files: dict[str, RowFile] = {}
        self._photo = _photo(scene, self._every) if output.overlay else None
        assert isinstance(output, LabelOutput | ValueOutput)
        self._files = output.open_rows(sample, scene.size, scene.georeference)

    def write(self, band: DensePrediction) -> None:
        """Append the rows of a band."""
        for kind, rows in self._rows(band).items():
            self._files[kind].write(rows)
        if self._photo is not None:
            values = band.ids if isinstance(band, LabelPrediction) else band.values
            self._small.append(values[-self._top % self._every :: self._every, :: self._every])
        self._top += band.view.height

    def _rows(self, band: DensePrediction) -> dict[str, Array]:
        """Rows of each file; the band is written as an image of its own."""
        size = (band.view.height, band.view.width)
        local = View(size, 0, 0, *size)
        if isinstance(self.output, LabelOutput) and isinstance(band, LabelPrediction):
            return self.output.rows(replace(band, view=local))
        assert isinstance(self.output, ValueOutput) and isinstance(band, ValuePrediction)
        return self.output.rows(replace(band, view=local))

    def close(self, *, keep: bool) -> None:
        """Finish the files; delete them unless ``keep``."""
        if keep and self._photo is not None:
            assert isinstance(self.output, LabelOutput | ValueOutput)
            self.output.draw(self.sample, self._photo, np.concatenate(self._small))
        for file in self._files.values():
            file.close(keep=keep)


def _photo(scene: Scene, every: int) -> Array:
    """Picture to draw over."""
    photos = [m for m in scene.modalities if m.is_photo]
    chosen: Modality = (photos or list(scene.modalities))[0]
    return backdrop(scene.reduced(chosen, every), chosen)
