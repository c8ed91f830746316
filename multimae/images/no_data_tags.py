"""No-data values that TIFF files declare (GDAL_NODATA)."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

from multimae.images.folders import open_pack
from multimae.images.pack import AnyPath, is_packed, to_path
from multimae.images.readers import is_tiff
from multimae.specs.errors import UserError
from multimae.specs.modalities import Modality

TIFF_SUFFIXES = (".tif", ".tiff")
_PROBED, _PROBED_TAGS = 256, 16  # files of a folder among which TIFF files are looked for, and read
_LARGEST = 65535


def with_no_data_tags(
    modalities: Sequence[Modality], *roots: str | AnyPath | None
) -> list[Modality]:
    """Take ``no_data`` from TIFF files that declare it (GDAL_NODATA), where a spec has none.

    Photos, label maps and modalities that are interpolated keep none: readers refuse their empty
    pixels. A modality with a ``source`` gets the value of its source.

    Args:
        modalities: The modalities.
        roots: Data roots; those that do not exist are skipped.

    Raises:
        UserError: Files of a modality declare different values.
    """
    shared = {m.data_name for m in modalities if m.norm_pix}
    found = {
        m.name: tag
        for m in modalities
        if m.source is None
        and m.name not in shared
        and takes_no_data_tag(m)
        and (tag := no_data_tag(m, *roots)) is not None
    }
    return [
        replace(m, no_data=found[m.data_name])
        if m.data_name in found and takes_no_data_tag(m)
        else m
        for m in modalities
    ]


def takes_no_data_tag(m: Modality) -> bool:
    """Whether a modality can have empty pixels and declares none."""
    plain = m.no_data is None and not m.is_labels and not m.is_photo and not m.norm_pix
    return plain and m.interpolation == "nearest"


def no_data_tag(m: Modality, *roots: str | AnyPath | None) -> float | None:
    """GDAL's no-data value of a modality's first TIFF files; ``None`` if they cannot have it.

    Raises:
        UserError: They declare different values.
    """
    folders = [to_path(root) / m.data_folder for root in roots if root]
    return common_no_data(m, (file for folder in folders for file in _first_tiffs(folder)))


def no_data_tag_of(file: Path | bytes) -> float | None:
    """GDAL's no-data value of a TIFF file; ``None`` for others and without one."""
    if isinstance(file, bytes) and not is_tiff(file):
        return None
    try:
        from multimae.images.tiff import gdal_no_data

        return gdal_no_data(file)
    except ImportError:  # reading the file says what to install
        return None


def common_no_data(m: Modality, files: Iterable[tuple[str, Path | bytes]]) -> float | None:
    """GDAL's no-data value of TIFF files, ``(name, path or bytes)``; see :func:`no_data_tag`."""
    tags: dict[float, str] = {}
    for name, file in files:
        value = no_data_tag_of(file)
        if value is not None and m.storage != "float" and not 0 <= value <= _LARGEST:
            value = None  # the reader refuses such values, whatever they mean
        if value is not None:
            tags.setdefault(math.nan if math.isnan(value) else value, name)
    if len(tags) > 1:
        listed = ", ".join(f"{value:g} ({name})" for value, name in list(tags.items())[:2])
        raise UserError(
            f"modality '{m.name}': files declare different no-data values (GDAL_NODATA): {listed}. "
            "Write all with one value."
        )
    return next(iter(tags), None)


def _first_tiffs(folder: AnyPath) -> Iterator[tuple[str, Path | bytes]]:
    """A few TIFF files of a modality folder, plain or packed."""
    if is_packed(folder):
        pack = open_pack(folder, check_first=_PROBED)
        names = [pack.name(i).lower() for i in range(min(_PROBED, len(pack)))]
        tiffs = [i for i, name in enumerate(names) if name.endswith(TIFF_SUFFIXES)]
        for i in tiffs[:: max(1, len(tiffs) // _PROBED_TAGS)]:
            data = pack.read(i)
            if isinstance(data, bytes):
                yield pack.name(i), data
        return
    if not isinstance(folder, Path):
        return
    files = islice(_files_below(folder), _PROBED)
    paths = sorted(p for p in files if p.suffix.lower() in TIFF_SUFFIXES)
    yield from ((str(p), p) for p in paths[:: max(1, len(paths) // _PROBED_TAGS)])


def _files_below(folder: Path) -> Iterator[Path]:
    """Regular files, without listing large folders completely."""
    if folder.is_dir():
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir():
                    yield from _files_below(Path(entry.path))
                elif entry.is_file():
                    yield Path(entry.path)
