"""Packed data sets: the files of each modality in a few large ones.

Start with :mod:`~multimae.images.pack.layout`, the format;
:mod:`~multimae.images.pack.reading` reads it, :mod:`~multimae.images.pack.remote` through URLs.
tools/pack_dataset.py writes it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from multimae.images.pack.remote import RemotePath

AnyPath: TypeAlias = "Path | RemotePath"
PACK_FILE = "pack.json"
FIRST_SHARD = "00000.shard"


def to_path(path: str | AnyPath) -> AnyPath:
    """A path, or a URL with the same operations."""
    if not isinstance(path, str) or not re.match(r"\w[\w+.-]+://", path):
        return Path(path) if isinstance(path, str) else path
    from multimae.images.pack.remote import RemotePath  # needed for URLs only

    return RemotePath(path)


def is_packed(folder: AnyPath) -> bool:
    """Whether a modality folder is packed, fully or in part."""
    return (folder / PACK_FILE).exists() or (folder / FIRST_SHARD).exists()
