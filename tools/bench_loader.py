"""Measure how fast samples load: a straightforward Pillow pipeline against this project's ways.

    python tools/bench_loader.py --work /tmp/bench               # renders its own data, some minutes
    python tools/bench_loader.py --work /tmp/bench --data_path data/mine/train --samples 512

The base reads the three files of a sample with Pillow, crops, resizes and flips them, and makes
normalised float tensors in the loader's workers (SPEC section 5). The others give stored values,
which are normalised where the training runs. All variants run in one process, interleaved, over
the same samples in the same order; the best of the rounds counts. With --normalise the time also
holds the normalisation of the others, on the CPU. Every sample's tensors are compared with the
base's. The last line is JSON: {variant: {"img_s", "ratio", "bit_identical", ...}}.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from multimae.modalities import Modality, make_table, select
from multimae.preprocess import prepare
from utils.data.folders import MultiModalFolder
from utils.data.listing import list_images
from utils.data.loaders import MultiModalDataset, build_train_loader
from utils.data.pack.writing import PackOptions, write_packs
from utils.data.rooms.generate import Job, make_rooms
from utils.data.samplers import GlobalBatchSampler, SampleKey, sample_rng
from utils.data.transforms import TrainTransform

SIZE = 224
NAMES = ("rgb", "depth", "semseg")
NUM_CLASSES = 41  # NYU40 and void
MEAN, STD = (np.array(v, np.float32) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
PHOTO = (640, 480)


class BaseDataset(Dataset[dict[str, Tensor]]):
    """SPEC section 5 with Pillow, numpy and torch, and nothing of this project's reading."""

    def __init__(self, root: Path, seed: int) -> None:
        """Sorted files of ``root/{rgb,depth,semseg}``."""
        self.files = [sorted((root / name).rglob("*.*")) for name in NAMES]
        self.seed = seed

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.files[0])

    def __getitem__(self, key: SampleKey) -> dict[str, Tensor]:
        """Normalised tensors."""
        rgb, depth, labels = self.stored(key)
        colours = (torch.from_numpy(rgb).permute(2, 0, 1).float() / 255).contiguous()
        mean, std = (torch.from_numpy(v).view(3, 1, 1) for v in (MEAN, STD))
        metres = depth.astype(np.float32)
        kept = np.sort(metres, axis=None)
        kept = kept[int(0.1 * kept.size) : int(0.9 * kept.size)]
        standard = (metres - kept.mean()) / np.sqrt(kept.var(ddof=1) + 1e-6)
        return {
            "rgb": (colours - mean) / std,
            "depth": torch.from_numpy(standard)[None],
            "semseg": torch.from_numpy(labels.astype(np.int64)),
        }

    def stored(self, key: SampleKey) -> list[npt.NDArray[Any]]:
        """Cropped, resized and flipped values as the files have them."""
        images = [Image.open(files[key.index]) for files in self.files]
        images[0] = images[0].convert("RGB")
        width, height = images[0].size
        with sample_rng(self.seed, key):
            shape = torch.empty(0, height, width)
            top, left, h, w = v2.RandomResizedCrop.get_params(shape, [0.2, 1.0], [3 / 4, 4 / 3])
            flip = bool(torch.rand(()) < 0.5)
        box = (left, top, left + w, top + h)
        photo = images[0].crop(box).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
        small = [photo, *(image.crop(box) for image in images[1:])]
        small[1] = small[1].resize((SIZE, SIZE), Image.Resampling.NEAREST)
        small[2] = small[2].resize((SIZE // 4, SIZE // 4), Image.Resampling.NEAREST)
        if flip:
            small = [image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for image in small]
        return [np.array(image) for image in small]


@dataclass
class Variant:
    """A way of loading, and what was measured of it."""

    name: str
    dataset: Dataset[Any]
    loader: DataLoader[Any]
    sampler: GlobalBatchSampler
    rows: Sequence[Modality] | None
    best: float = 0.0
    rates: tuple[float, ...] = ()
    memory: tuple[float, ...] = ()

    def epoch(self, epoch: int) -> float:
        """Images per second of one epoch."""
        self.sampler.set_epoch(epoch)
        count, start = 0, time.perf_counter()
        for batch in self.loader:
            if isinstance(batch, dict):
                count += len(batch["rgb"])
                continue
            if self.rows is not None:
                prepare(batch.images, self.rows)
            count += len(batch)
        return count / (time.perf_counter() - start)
