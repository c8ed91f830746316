"""Render a data set over processes; the files do not depend on workers or interruptions."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from tqdm import tqdm

from multimae.weights.atomic import checksum
from tools.common.staging import clean_staging
from tools.rooms.furniture.sh3f import ModelLibrary, load_library
from tools.rooms.rendering.tracer import require_tracer
from tools.rooms.sample import SPLITS, render_room
from tools.rooms.sample_files import (
    Settings,
    claim_folder,
    is_complete,
    write_index,
    write_sample,
)

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Job:
    """Settings of a data set.

    Attributes:
        out: Folder.
        train: Number of training samples.
        val: Number of validation samples.
        size: Width and height in pixels.
        seed: Seed of the data set.
        workers: Number of processes; 1 renders in the current one.
        furniture: Sweet Home 3D archives.
        layout: "multimae" or "taskonomy".
    """

    out: Path
    train: int
    val: int
    size: int = 256
    seed: int = 0
    workers: int = 1
    furniture: tuple[Path, ...] = ()
    layout: str = "multimae"


class _Worker:
    """Render and write samples; holds the furniture library of its process."""

    library: ModelLibrary | None = None
    job: Job | None = None

    @classmethod
    def start(cls, job: Job) -> None:
        """Prepare this process."""
        cls.job = job
        cls.library = load_library(list(job.furniture)) if job.furniture else None

    @classmethod
    def make(cls, task: tuple[str, int]) -> tuple[str, int]:
        """Render and write one sample.

        Raises:
            RuntimeError: The process has not been prepared.
        """
        if cls.job is None:
            raise RuntimeError("the worker has not been started")
        split, index = task
        sample = render_room(cls.job.seed, split, index, cls.job.size, cls.library)
        write_sample(cls.job.out, cls.job.layout, split, index, sample)
        return task


def make_rooms(job: Job, progress: bool = True) -> int:
    """Render the missing samples of a data set.

    Args:
        job: Settings of the data set.
        progress: Show a bar with images per second, on a terminal.

    Returns:
        Number of samples rendered by this call.

    Raises:
        SettingsError: The folder holds samples of other settings.
        Sh3fError: An archive cannot be read.
        TracerMissingError: embreex is not installed.
        RenderError: A sample has no acceptable view.
        OSError: A file cannot be read or written.
    """
    require_tracer()
    if job.furniture:
        # Read once here so that a bad archive is reported before anything is written.
        load_library(list(job.furniture))
    settings = Settings(
        job.size, job.seed, job.layout, tuple(checksum(p, sha256()).digest for p in job.furniture)
    )
    claim_folder(job.out, settings)
    with clean_staging(job.out):
        counts = {"train": job.train, "val": job.val}
        write_index(job.out, settings, counts)
        todo = [
            (split, i)
            for split in SPLITS
            for i in range(counts[split])
            if not is_complete(job.out, job.layout, split, i)
        ]
        hide = None if progress else True
        with tqdm(total=len(todo), unit="img", disable=hide, smoothing=0.1) as bar:
            for _ in _run(job, todo):
                bar.update()
    return len(todo)


def _run(job: Job, todo: list[tuple[str, int]]) -> Iterator[tuple[str, int]]:
    """Render samples, in this process or in several."""
    workers = min(job.workers, len(todo))
    if workers <= 1:
        _Worker.start(job)
        for task in todo:
            yield _Worker.make(task)
        return
    # Children read these on import; one thread each, since there is one process per core.
    saved = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    try:
        context = multiprocessing.get_context("spawn")
        with context.Pool(workers, _Worker.start, (job,)) as pool:
            yield from pool.imap_unordered(_Worker.make, todo, chunksize=2)
    finally:
        for name, value in saved.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
