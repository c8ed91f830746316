"""From image files to full batches of equal size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from multimae.images.pixels import ImageError
from multimae.images.readers import read
from tools.labelling.labellers import InputShapes, Size, as_tensor
from utils.data.folders import MultiModalFolder

Task = str


@dataclass(frozen=True)
class Pending:
    """An image of the folder, and what it still lacks."""

    index: int
    tasks: tuple[Task, ...]


@dataclass(frozen=True)
class Loaded:
    """An image as the models of its tasks take it.

    Attributes:
        index: In the folder.
        size: Of the upright image.
        inputs: By task, uint8 ``(3, h, w)``.
    """

    index: int
    size: Size
    inputs: dict[Task, Tensor]


class RgbFiles(Dataset["Loaded | str"]):
    """The images that lack something; a bad file gives a message instead."""

    def __init__(
        self,
        folder: MultiModalFolder,
        pending: Sequence[Pending],
        shapes: Mapping[Task, InputShapes],
    ) -> None:
        """Read ``pending`` of ``folder``, resized to the ``shapes`` of each task."""
        self.folder, self.pending, self.shapes = folder, pending, shapes

    def __len__(self) -> int:
        """Number of images."""
        return len(self.pending)

    def __getitem__(self, position: int) -> Loaded | str:
        """The image, upright, or what is wrong with its file."""
        wanted = self.pending[position]
        (row,) = self.folder.modalities
        try:
            pixels = read(self.folder.path(wanted.index, row), row)
        except ImageError as err:
            return str(err)
        image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
        inputs = {
            task: as_tensor(
                image.resize(
                    self.shapes[task].of(*image.size), Image.Resampling.BICUBIC, reducing_gap=3.0
                )
            )
            for task in wanted.tasks
        }
        return Loaded(wanted.index, (image.height, image.width), inputs)


def read_all(files: RgbFiles, num_workers: int) -> Iterator[Loaded | str]:
    """Every image in order, read ahead by ``num_workers`` processes."""
    workers: dict[str, Any] = {"prefetch_factor": 8} if num_workers else {}
    loader = DataLoader(files, batch_size=None, num_workers=num_workers, **workers)
    yield from loader


@dataclass(frozen=True)
class LabelBatch:
    """Images of one task whose inputs have one size.

    Attributes:
        task: The task.
        inputs: uint8 ``(B, 3, h, w)``; B is the batch size also where fewer images are left, so
            that an image gets the same labels whatever its company.
        images: The images, B or fewer.
    """

    task: Task
    inputs: Tensor
    images: list[Loaded]


class Batcher:
    """Collects images by task and input size until a batch is full."""

    def __init__(self, batch_size: int, patience: int = 8) -> None:
        """Hold back at most ``patience`` batches of images; then the fullest goes as it is."""
        self.batch_size, self.limit = batch_size, patience * batch_size
        self.waiting: dict[tuple[Task, tuple[int, ...]], list[Loaded]] = {}

    def add(self, image: Loaded) -> Iterator[LabelBatch]:
        """Take an image; the batches that are full by it."""
        for task, x in image.inputs.items():
            key = task, tuple(x.shape)
            self.waiting.setdefault(key, []).append(image)
            if len(self.waiting[key]) == self.batch_size:
                yield self._pop(key)
        if sum(map(len, self.waiting.values())) > self.limit:
            yield self._pop(max(self.waiting, key=lambda key: len(self.waiting[key])))

    def rest(self) -> Iterator[LabelBatch]:
        """Batches of what is left."""
        for key in list(self.waiting):
            yield self._pop(key)

    def _pop(self, key: tuple[Task, tuple[int, ...]]) -> LabelBatch:
        task, images = key[0], self.waiting.pop(key)
        inputs = [image.inputs[task] for image in images]
        inputs += inputs[-1:] * (self.batch_size - len(inputs))
        return LabelBatch(task, torch.stack(inputs), images)
