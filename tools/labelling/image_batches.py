"""Load images and collect them into full batches of equal input size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from multimae.images.folders import MultiModalFolder
from multimae.images.pixels import ImageError
from tools.labelling.labellers import InputShapes, Size, as_tensor

Task = str


@dataclass(frozen=True)
class PendingImage:
    """An image of the folder and the tasks it has no labels for."""

    index: int
    tasks: tuple[Task, ...]


@dataclass(frozen=True)
class LoadedImage:
    """An image resized for the model of each task.

    Attributes:
        index: Index in the folder.
        size: Size of the upright image.
        inputs: Model inputs by task, uint8 ``(3, h, w)``.
    """

    index: int
    size: Size
    inputs: dict[Task, Tensor]


class PendingImages(Dataset["LoadedImage | str"]):
    """Images without labels; unreadable files yield an error message."""

    def __init__(
        self,
        folder: MultiModalFolder,
        pending: Sequence[PendingImage],
        shapes: Mapping[Task, InputShapes],
    ) -> None:
        """Read ``pending`` of ``folder``, resized to the ``shapes`` of each task."""
        self.folder, self.pending, self.shapes = folder, pending, shapes

    def __len__(self) -> int:
        """Number of images."""
        return len(self.pending)

    def __getitem__(self, position: int) -> LoadedImage | str:
        """Load an image upright and resized, or return the error message."""
        wanted = self.pending[position]
        (modality,) = self.folder.modalities
        try:
            pixels = self.folder.read(wanted.index, modality)
        except ImageError as err:
            return str(err)
        image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
        inputs = {
            task: as_tensor(
                image.resize(
                    self.shapes[task].input_size(*image.size),
                    Image.Resampling.BICUBIC,
                    reducing_gap=3.0,
                )
            )
            for task in wanted.tasks
        }
        return LoadedImage(wanted.index, (image.height, image.width), inputs)


def load_images(files: PendingImages, num_workers: int) -> Iterator[LoadedImage | str]:
    """Yield every image in order, prefetched by ``num_workers`` processes."""
    workers: dict[str, Any] = {"prefetch_factor": 8} if num_workers else {}
    loader = DataLoader(files, batch_size=None, num_workers=num_workers, **workers)
    yield from loader


@dataclass(frozen=True)
class LabelBatch:
    """Images of one task whose inputs have one size.

    Attributes:
        task: The task.
        inputs: uint8 ``(B, 3, h, w)``, padded to the batch size B: an image gets the same labels
            in any batch.
        images: At most B images.
    """

    task: Task
    inputs: Tensor
    images: list[LoadedImage]


class SizeBatcher:
    """Collects images by task and input size until a batch is full."""

    def __init__(self, batch_size: int, max_pending_batches: int = 8) -> None:
        """Buffer at most ``max_pending_batches`` batches of images; then emit the fullest."""
        self.batch_size, self.limit = batch_size, max_pending_batches * batch_size
        self.waiting: dict[tuple[Task, tuple[int, ...]], list[LoadedImage]] = {}

    def add(self, image: LoadedImage) -> Iterator[LabelBatch]:
        """Add an image; yield the batches that are ready."""
        for task, x in image.inputs.items():
            key = task, tuple(x.shape)
            self.waiting.setdefault(key, []).append(image)
            if len(self.waiting[key]) == self.batch_size:
                yield self._pop(key)
        if sum(map(len, self.waiting.values())) > self.limit:
            yield self._pop(max(self.waiting, key=lambda key: len(self.waiting[key])))

    def flush(self) -> Iterator[LabelBatch]:
        """Yield the remaining images as batches."""
        for key in list(self.waiting):
            yield self._pop(key)

    def _pop(self, key: tuple[Task, tuple[int, ...]]) -> LabelBatch:
        task, images = key[0], self.waiting.pop(key)
        inputs = [image.inputs[task] for image in images]
        inputs += inputs[-1:] * (self.batch_size - len(inputs))
        return LabelBatch(task, torch.stack(inputs), images)
