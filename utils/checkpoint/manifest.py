"""``checkpoints/manifest.json``: which files are there, of which step, with which checksum."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from multimae.weights.atomic import atomic_file, checksum

NAME = "manifest.json"
_VERSION = 1


@dataclass(frozen=True)
class Entry:
    """One checkpoint.

    Attributes:
        file: Its name in the folder.
        step: Updates done.
        epoch: Epochs completed.
        size: Bytes.
        digest: Checksum of the contents.
        at_epoch_end: Saved after an epoch; those in between are kept for a while only.
    """

    file: str
    step: int
    epoch: int
    size: int
    digest: str
    at_epoch_end: bool

    def verifies(self, folder: Path) -> bool:
        """Whether the file is there and is what was written."""
        path = folder / self.file
        if not path.is_file() or path.stat().st_size != self.size:
            return False
        return checksum(path).digest == self.digest


def read_manifest(folder: Path) -> list[Entry]:
    """The entries, oldest first; empty if there is no manifest or it is damaged.

    Names that lead out of the folder are passed over: files are deleted by these names.
    """
    try:
        raw = json.loads((folder / NAME).read_text("utf-8"))
        entries = [Entry(**entry) for entry in raw["checkpoints"]]
        inside = [e for e in entries if e.file == Path(e.file).name and e.file.endswith(".pth")]
        return sorted(inside, key=lambda e: e.step)
    except (OSError, ValueError, KeyError, TypeError):
        return []


def write_manifest(folder: Path, entries: Sequence[Entry]) -> None:
    """Replace the manifest.

    Raises:
        OSError: The folder cannot be written to.
    """
    raw = {"version": _VERSION, "checkpoints": [asdict(entry) for entry in entries]}
    text = json.dumps(raw, indent=1) + "\n"
    with atomic_file(folder / NAME) as stream:
        stream.write(text.encode())
