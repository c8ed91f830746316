"""Writing label images beside the models' work."""

from __future__ import annotations

import time
import zlib
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from tools.common.staging import STAGING_FOLDER, remove_staging
from tools.common.target_folder import Target
from tools.labelling.labellers import Array

_THREADS = 4
_WAITING = 64
_STALE_SECONDS = 3600


class Writers:
    """Threads that encode and write PNG files; a context that ends when all are on disk."""

    def __init__(self, done: Callable[[], object]) -> None:
        """Call ``done`` after every file, in this thread."""
        self.done = done
        # One queue per thread: temporary files are named after the file, so that files of one name
        # in several sub-folders must not be written at once.
        self.threads = [ThreadPoolExecutor(1) for _ in range(_THREADS)]
        self.jobs: deque[Future[None]] = deque()

    def __enter__(self) -> Writers:
        """Begin."""
        return self

    def put(self, target: Target, path: Path, image: Array) -> None:
        """Write a file soon; waits if too many are queued.

        Raises:
            OSError: An earlier file could not be written.
        """
        thread = self.threads[zlib.crc32(path.name.encode()) % len(self.threads)]
        self.jobs.append(thread.submit(target.write_png, path, image))
        while len(self.jobs) > _WAITING or (self.jobs and self.jobs[0].done()):
            self._collect()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Wait for all files; what was labelled before an error is kept."""
        for thread in self.threads:
            thread.shutdown()
        while self.jobs and kind is None:
            self._collect()

    def _collect(self) -> None:
        self.jobs.popleft().result()
        self.done()


def sweep(root: Path, alone: bool) -> None:
    """Remove what killed runs left in ``root/.tmp``.

    Args:
        root: Folder of a modality.
        alone: No other process writes there: everything goes. Otherwise only files that nobody has
            touched for an hour.
    """
    if alone:
        remove_staging(root)
        return
    for file in (root / STAGING_FOLDER).glob("*"):
        with suppress(FileNotFoundError):  # another process sweeps, too
            if time.time() - file.stat().st_mtime > _STALE_SECONDS:
                file.unlink()
