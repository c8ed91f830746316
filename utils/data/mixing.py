"""Several data sets in one training set, sampled by weight.

The order of an epoch is a function of (seed, epoch): the source of every position is drawn by
weight, and the k-th position of a source gets the k-th sample of a permutation of it; after all of
them, of another permutation, with other augmentation.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from multimae.images.folders import CLASSES_FILE, MultiModalFolder, read_class_names
from multimae.images.pack import AnyPath
from multimae.images.pixels import Pixels
from multimae.specs.errors import UserError
from multimae.specs.modalities import Modality
from utils.data.dataset import MultiModalDataset
from utils.data.samplers import GlobalBatchSampler
from utils.training.seeding import mix_seed

_SOURCES = -1  # sets the generator of the sources apart from those of the permutations


class Mix(NamedTuple):
    """Sizes and weights of the sources, and the seed of their order."""

    sizes: tuple[int, ...]
    weights: tuple[float, ...]
    seed: int

    def sources(self, epoch: int) -> Tensor:
        """(N,) source of every position of an epoch, which has as many as all sources together."""
        generator = torch.Generator().manual_seed(mix_seed(self.seed, epoch, _SOURCES))
        drawn = torch.rand(sum(self.sizes), generator=generator, dtype=torch.float64)
        bounds = torch.tensor(self.weights, dtype=torch.float64).cumsum(0)
        return torch.searchsorted(bounds / bounds[-1], drawn, right=True)

    def order(self, epoch: int) -> Tensor:
        """(N,) sample of every position, plus N for every time its source was used up before."""
        sources, total, first = self.sources(epoch), sum(self.sizes), 0
        order = torch.empty(total, dtype=torch.int64)
        for source, size in enumerate(self.sizes):
            positions = (sources == source).nonzero()[:, 0]
            for rerun, part in enumerate(torch.split(positions, size)):
                seed = mix_seed(self.seed, epoch, source, rerun)
                generator = torch.Generator().manual_seed(seed)
                drawn = torch.randperm(size, generator=generator)[: len(part)]
                order[part] = drawn + (first + rerun * total)
            first += size
        return order


class MixedBatchSampler(GlobalBatchSampler):
    """Global batches in the order of a :class:`Mix`."""

    mix: Mix

    def _order(self, epoch: int) -> Tensor:
        return self.mix.order(epoch)


def mixed_sampler(dataset: MultiModalDataset, *args: Any, **options: Any) -> MixedBatchSampler:
    """Sampler of training batches in the order of the mix."""
    assert isinstance(dataset.folder, MixedFolder)
    sampler = MixedBatchSampler(*args, **options)
    sampler.mix = dataset.folder.mix(dataset.seed)
    return sampler


def common_class_names(roots: Sequence[str]) -> tuple[str, ...] | None:
    """Class names of the folders; ``None`` if none of them has names.

    Raises:
        UserError: They differ.
    """
    found = {root: read_class_names(root) for root in roots}
    named = {root: names for root, names in found.items() if names is not None}
    if len(set(named.values())) > 1:
        raise UserError(
            f"{' and '.join(f'{root}/{CLASSES_FILE}' for root in named)} differ: equal ids must "
            "mean equal classes. Correct the files, or remap the label maps."
        )
    return next(iter(named.values()), None)


class MixedFolder(MultiModalFolder):
    """Samples of several folders, one after the other.

    Names begin with the number of the folder, as names of different folders may be equal.
    """

    def __init__(self, folders: Sequence[MultiModalFolder], weights: Sequence[float]) -> None:
        """Join ``folders``, which have the same modalities, with the weights of their samples."""
        self.folders, self.weights = tuple(folders), tuple(weights)
        self.modalities = folders[0].modalities
        self.root: AnyPath = Path(" + ".join(str(folder.root) for folder in folders))
        self.incomplete = [entry for folder in folders for entry in folder.incomplete]

    def _find(self, index: int) -> tuple[int, int]:
        """Number of the folder, and index in it."""
        for number, folder in enumerate(self.folders):
            if index < len(folder):
                return number, index
            index -= len(folder)
        raise IndexError(index)

    @property
    def parts(self) -> tuple[MultiModalFolder, ...]:
        """The folders."""
        return self.folders

    @property
    def shares(self) -> list[float]:
        """Share of the samples of an epoch that come from each folder, on average."""
        return [weight / sum(self.weights) for weight in self.weights]

    @property
    def times_per_epoch(self) -> tuple[float, ...]:
        """How often a sample of each folder is used in an epoch, on average."""
        sizes = map(len, self.folders)
        return tuple(w * len(self) / size for w, size in zip(self.shares, sizes, strict=True))

    def spread(self, count: int) -> list[int]:
        """About ``count`` samples: of every folder its share, evenly spaced, at least one."""
        indices, first = [], 0
        for folder, share in zip(self.folders, self.shares, strict=True):
            indices += [first + i for i in folder.spread(max(1, round(count * share)))]
            first += len(folder)
        return indices

    def part_of(self, index: int) -> int:
        """Number of the folder."""
        return self._find(index)[0]

    def mix(self, seed: int) -> Mix:
        """Order of the samples."""
        return Mix(tuple(map(len, self.folders)), self.weights, seed)

    def __getstate__(self) -> dict[str, object]:
        """Each folder drops its own mapped index."""
        return self.__dict__

    def __setstate__(self, state: dict[str, object]) -> None:
        """Restore the attributes."""
        self.__dict__.update(state)

    @property
    def modality_folders(self) -> tuple[AnyPath, ...]:
        """Modality folders of all folders."""
        return tuple(path for folder in self.folders for path in folder.modality_folders)

    def __len__(self) -> int:
        """Number of samples."""
        return sum(map(len, self.folders))

    def name(self, index: int) -> str:
        """``number/sub-folder/name`` of a sample."""
        number, index = self._find(index)
        return f"{number}/{self.folders[number].name(index)}"

    @property
    def digest(self) -> str:
        """Checksum of the names of all folders, in order."""
        joined = "".join(f"{len(f)} {f.digest}\n" for f in self.folders)
        return blake2b(joined.encode(), digest_size=16).hexdigest()

    def ignored_lines(self) -> list[str]:
        """Those of every folder."""
        return [line for folder in self.folders for line in folder.ignored_lines()]

    def has(self, index: int, modality: Modality) -> bool:
        """Whether a sample has a file of a modality."""
        number, index = self._find(index)
        return self.folders[number].has(index, modality)

    def patterns(self) -> dict[tuple[str, ...], int]:
        """Combinations of modalities that samples have, and the first sample with each."""
        found: dict[tuple[str, ...], int] = {}
        first = 0
        for folder in self.folders:
            found = {**{k: first + i for k, i in folder.patterns().items()}, **found}
            first += len(folder)
        return found

    def path(self, index: int, modality: Modality) -> AnyPath:
        """File of one modality of a sample, which must have it."""
        number, index = self._find(index)
        return self.folders[number].path(index, modality)

    def files(self, index: int) -> dict[str, str]:
        """Files of a sample by modality, for messages."""
        number, index = self._find(index)
        return self.folders[number].files(index)

    def read(
        self, index: int, modality: Modality, patch_size: int = 1, *, fast: bool = False
    ) -> Pixels:
        """Pixels of one modality of a sample."""
        number, index = self._find(index)
        return self.folders[number].read(index, modality, patch_size, fast=fast)

    def prefetch(self, indices: Sequence[int]) -> None:
        """Fetch samples of remote packs concurrently."""
        found = [self._find(index) for index in indices]
        for number, folder in enumerate(self.folders):
            folder.prefetch([index for source, index in found if source == number])

    def packed_original(self, index: int, modality: Modality) -> bytes | None:
        """Original bytes of a packed file; ``None`` if it is not packed."""
        number, index = self._find(index)
        return self.folders[number].packed_original(index, modality)


class MixedTargets:
    """Labels of samples of a :class:`MixedFolder`, found by their names in their own folders."""

    def __init__(self, labels: Any) -> None:
        """``labels`` of all folders."""
        self.labels = labels

    def targets(self, samples: Sequence[str], device: torch.device | None = None) -> Tensor:
        """Labels ``(B,)`` or ``(B, K)`` of samples."""
        found: Tensor = self.labels.targets([name.partition("/")[2] for name in samples], device)
        return found


class SourceCounts:
    """Counts the samples trained on by source; an :class:`utils.tasks.base.Evaluator`."""

    def __init__(self, dataset: MultiModalDataset, global_batch: int) -> None:
        """``global_batch``: samples per step."""
        assert isinstance(dataset.folder, MixedFolder)
        self.mix, self.global_batch = dataset.folder.mix(dataset.seed), global_batch
        self.per_epoch = len(dataset) // global_batch * global_batch
        roots = [str(folder.root) for folder in dataset.folder.folders]
        ends = [os.path.basename(root.rstrip("/")) for root in roots]
        unique = len(set(ends)) == len(ends)
        self.names = ends if unique else [f"{i}-{end}" for i, end in enumerate(ends)]
        self._epochs: dict[int, Counter[int]] = {}

    def run(self, model: nn.Module, step: int) -> dict[str, float]:
        """``samples/{folder}``: samples of every source up to ``step``."""
        epochs, rest = divmod(step * self.global_batch, self.per_epoch)
        total = Counter[int]()
        for epoch in range(epochs):
            if epoch not in self._epochs:
                self._epochs[epoch] = self._count(epoch, self.per_epoch)
            total += self._epochs[epoch]
        total += self._count(epochs, rest) if rest else Counter()
        return {f"samples/{name}": float(total[i]) for i, name in enumerate(self.names)}

    def _count(self, epoch: int, stop: int) -> Counter[int]:
        counts = torch.bincount(self.mix.sources(epoch)[:stop], minlength=len(self.names))
        return Counter(dict(enumerate(counts.tolist())))
