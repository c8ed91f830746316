"""Data sets and loaders of a run, built from its options."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from torch.utils.data import DataLoader

from multimae.images.folders import MultiModalFolder
from multimae.images.index.listing import FindIndex, SampleIndex
from multimae.specs.errors import UserError
from utils.config.options import RunConfig
from utils.data.dataset import MultiModalDataset, build_loader, check_samples
from utils.data.samplers import EvalBatchSampler, GlobalBatchSampler, SampleKey
from utils.data.transforms import JointTransform
from utils.distributed.world import ALONE, World

# Read before training: bad files must fail early, not during the first epoch.
CHECKED_SAMPLES = 256

MIN_CACHED_FILES = 100_000
"""Smaller sets are listed by every process, in a fraction of a second."""

DatasetT = TypeVar("DatasetT", bound=MultiModalDataset)


def index_finder(cfg: RunConfig, world: World) -> FindIndex:
    """Finds indices of data sets in ``--index_cache``; one process per machine lists (collective).

    A folder that cannot be written costs a warning, and every process lists by itself.
    """

    def find(key: str, list_samples: Callable[[], SampleIndex]) -> SampleIndex:
        cache, index = _index_folder(cfg.data.index_cache), None

        def on_first() -> str:
            nonlocal index
            index = _stored(cache, key, list_samples)
            return "" if index.entry is None else str(index.entry)

        entry = world.once_per_machine(on_first)
        if index is not None:
            return index
        return _mapped(Path(entry), list_samples) if entry else list_samples()

    return find


def _index_folder(option: str) -> Path | None:
    """Folder of ``--index_cache``; ``None`` to keep nothing."""
    if option != "auto":
        return Path(option).expanduser() if option else None
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "multimae" / "index"


def _mapped(entry: Path, list_samples: Callable[[], SampleIndex]) -> SampleIndex:
    from multimae.images.index.index_cache import load  # small sets do not load it

    try:
        return load(entry)
    except (OSError, ValueError):  # another run has just replaced it
        return list_samples()


def _stored(cache: Path | None, key: str, list_samples: Callable[[], SampleIndex]) -> SampleIndex:
    if cache is None:
        return list_samples()
    if (cache / key).is_dir():
        from multimae.images.index.index_cache import find, load

        entry = find(cache, key)
        if entry is not None:
            index = load(entry)
            print(f"{len(index.names)} samples from the index {entry}", flush=True)
            return index
    start = time.time_ns()
    index = list_samples()
    if index.num_files < MIN_CACHED_FILES or not index.stamps:
        return index
    from multimae.images.index.index_cache import load, store

    try:
        return load(store(cache, key, index, start))
    except OSError as err:
        print(f"warning: cannot write to --index_cache {cache} ({err})", flush=True)
        return index


def build_dataset(
    kind: type[DatasetT],
    cfg: RunConfig,
    folder: MultiModalFolder,
    transform: JointTransform,
    *,
    world: World = ALONE,
    train: bool = False,
    limit: int | None = None,
    **options: Any,
) -> DatasetT:
    """Build a data set and check a few of its samples.

    Args:
        kind: Class of the data set.
        cfg: Configuration of the run.
        folder: Index of the files.
        transform: Joint transform of the folder's modalities.
        world: Processes, the first of which checks; all call this function.
        train: Apply the options ``on_bad_sample: skip`` and ``fast_decode``.
        limit: Maximum number of samples; ``None`` for all.
        **options: Further arguments of ``kind``.

    Raises:
        UserError: Unreadable samples that may not be skipped, or an output folder among the images.
    """
    output_dir = Path(cfg.checkpoint.output_dir).resolve()
    for path in folder.modality_folders:
        if isinstance(path, Path) and output_dir.is_relative_to(path.resolve()):
            raise UserError(
                f"output_dir {output_dir} lies in the modality folder {path}, where its pictures "
                "would be read as samples: choose another folder."
            )
    dataset = kind(
        folder,
        transform,
        seed=cfg.runtime.seed,
        patch_size=cfg.model.patch_size,
        limit=limit,
        skip_bad=train and cfg.data.skips_bad,
        fast_decode=train and cfg.data.fast_decode,
        **options,
    )
    if world.is_main:
        for line in folder.ignored_lines():
            print(line, flush=True)

    def check() -> tuple[Any, ...]:
        bad = check_samples(dataset, CHECKED_SAMPLES, cfg.data.max_bad_samples)
        return bad, [(p.label_counts, p.value_ranges, p.tops) for p in dataset.parts]

    dataset.known_bad, statistics = world.broadcast_from_main(check)
    for part, found in zip(dataset.parts, statistics, strict=True):
        part.label_counts, part.value_ranges, part.tops = found
    return dataset


def open_train_folder(
    cfg: RunConfig, open_root: Callable[[str], MultiModalFolder]
) -> MultiModalFolder:
    """Open ``--data_path``: a folder, or several that are mixed."""
    folders = [open_root(root) for root in cfg.data.roots]
    if not cfg.data.sources:
        return folders[0]
    from utils.data.mixing import MixedFolder

    return MixedFolder(folders, [float(source["weight"]) for source in cfg.data.sources])


def train_loader(
    cfg: RunConfig, dataset: MultiModalDataset, world: World
) -> tuple[DataLoader[Any], GlobalBatchSampler]:
    """Training loader of this rank, and its sampler."""
    sampler = dataset.sampler(
        len(dataset),
        cfg.runtime.batch_size,
        rank=world.rank,
        world_size=world.size,
        seed=cfg.runtime.seed,
    )
    loader = build_loader(
        dataset,
        sampler,
        num_workers=cfg.data.num_workers,
        pin_memory=cfg.data.pin_mem,
        num_held=cfg.optim.update_freq,
    )
    return loader, sampler


def eval_loader(cfg: RunConfig, dataset: MultiModalDataset, world: World) -> DataLoader[Any]:
    """Evaluation loader of this rank; ranks get disjoint samples without padding."""
    sampler = EvalBatchSampler(
        len(dataset),
        cfg.data.eval_batch_size or cfg.runtime.batch_size,
        rank=world.rank,
        world_size=world.size,
    )
    return build_loader(
        dataset, sampler, num_workers=cfg.data.num_workers, pin_memory=cfg.data.pin_mem
    )


def spread_keys(dataset: MultiModalDataset, count: int) -> list[SampleKey]:
    """Keys of at most ``count`` evenly spaced samples."""
    return [SampleKey(0, i) for i in dataset.spread(count)]
