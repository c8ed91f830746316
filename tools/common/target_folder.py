"""A data set folder being written: paths, files, and the settings it was made with."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from multimae.images.folders import CLASSES_FILE
from multimae.images.index.listing import SETTINGS_FILE
from multimae.specs.errors import UserError
from tools.common.png import encode_png
from tools.common.staging import staged, write_file

Link = Literal["hard", "symlink", "copy"]
LINKS: tuple[Link, ...] = ("hard", "symlink", "copy")
ONE_FOLDER = "all"
"""Sub-folder of samples that are not grouped."""


@dataclass(frozen=True)
class Target:
    """A data set folder being written.

    Attributes:
        root: Data set folder.
        overwrite: Rewrite existing files.
    """

    root: Path
    overwrite: bool = False

    def path(self, split: str, modality: str, key: str, extension: str = ".png") -> Path:
        """``root/split/modality/key.extension``; ``key`` is ``sub-folder/name``."""
        return self.root / split / modality / f"{key}{extension}"

    def is_done(self, paths: Iterable[Path]) -> bool:
        """Whether all files exist and need not be rewritten."""
        return not self.overwrite and all(path.exists() for path in paths)

    def write_png(self, path: Path, image: npt.NDArray[Any]) -> None:
        """Write uint8 (H, W) or (H, W, 3), or uint16 (H, W)."""
        write_file(self.root, path, encode_png(image))

    def write_json(self, path: Path, content: object) -> None:
        """Write ``content`` as JSON."""
        write_file(self.root, path, (json.dumps(content, indent=2) + "\n").encode())

    def write_class_names(self, names: Sequence[str], splits: Iterable[str]) -> None:
        """Write the class names, id 0 first, next to the modality folders of each split."""
        for split in splits:
            self.write_json(self.root / split / CLASSES_FILE, {"classes": list(names)})

    def add_file(self, path: Path, source: Path, how: Link) -> None:
        """Link or copy ``source`` to ``path``.

        Raises:
            UserError: The file system does not support the link.
        """
        origin = source.resolve()
        if path.exists() and not path.is_symlink() and path.resolve() == origin:
            return
        with staged(self.root, path) as temp:
            if how == "copy":
                shutil.copyfile(origin, temp)
                return
            try:
                os.link(origin, temp) if how == "hard" else temp.symlink_to(origin)
            except OSError as err:
                raise UserError(
                    f"{path}: cannot link to {source} ({err.strerror}). Hard links need the same "
                    "file system: use --link symlink or --link copy."
                ) from err

    def claim(self, settings: Mapping[str, object]) -> None:
        """Record the settings of the folder, or check them against the recorded ones.

        Raises:
            UserError: The folder was made with other settings.
        """
        mark = self.root / SETTINGS_FILE
        if not mark.exists():
            self.write_json(mark, settings)
            return
        try:
            theirs = json.loads(mark.read_text(encoding="utf-8"))
        except (OSError, ValueError) as err:
            raise UserError(f"{mark}: not readable ({err}). Choose another --out.") from err
        if theirs != settings:
            raise UserError(
                f"{self.root} was made with other settings ({theirs}, now {dict(settings)}). "
                "Choose another --out, or remove the folder."
            )


def millimetres(metres: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.uint16]:
    """Depth in rounded mm; 0 where it is not finite, not positive or beyond 65.535 m."""
    with np.errstate(invalid="ignore", over="ignore"):
        mm = np.rint(metres.astype(np.float64) * 1000)
        good = (mm > 0) & (mm <= np.iinfo(np.uint16).max)
    return np.where(good, mm, 0).astype(np.uint16)


def valid_mask(valid: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    """Image of ``mask_valid``: 255 where valid, else 0."""
    return np.where(valid, 255, 0).astype(np.uint8)
