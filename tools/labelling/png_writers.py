"""Write label images in threads while the models run."""

from __future__ import annotations

import time
import zlib
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from tools.common.staging import remove_staging, staged_files
from tools.common.target_folder import Target
from tools.labelling.labellers import Array

_THREADS = 4
_MAX_QUEUED = 64
_STALE_SECONDS = 3600


class PngWriters:
    """Threads that encode and write PNG files; the context exits when all are written."""

    def __init__(self, done: Callable[[], object]) -> None:
        """Call ``done`` after every file, in the caller's thread."""
        self.done = done
        # One queue per thread, chosen by file name: staged files of the same name would collide.
        self.threads = [ThreadPoolExecutor(1) for _ in range(_THREADS)]
        self.jobs: deque[Future[None]] = deque()

    def __enter__(self) -> PngWriters:
        """Enter the context."""
        return self

    def put(self, target: Target, path: Path, image: Array) -> None:
        """Queue a file; wait if too many are queued.

        Raises:
            OSError: An earlier file could not be written.
        """
        thread = self.threads[zlib.crc32(path.name.encode()) % len(self.threads)]
        self.jobs.append(thread.submit(target.write_png, path, image))
        while len(self.jobs) > _MAX_QUEUED or (self.jobs and self.jobs[0].done()):
            self._collect()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Wait for all files, also after an error."""
        for thread in self.threads:
            thread.shutdown()
        while self.jobs and kind is None:
            self._collect()

    def _collect(self) -> None:
        self.jobs.popleft().result()
        self.done()


def remove_stale_files(root: Path, alone: bool) -> None:
    """Remove staged files of killed runs.

    Args:
        root: Folder of a modality.
        alone: No other process writes there: remove all files, else those older than an hour.
    """
    if alone:
        remove_staging(root)
        return
    for file in staged_files(root):
        with suppress(FileNotFoundError):  # another process may remove it first
            if time.time() - file.stat().st_mtime > _STALE_SECONDS:
                file.unlink()
