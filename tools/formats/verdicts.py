"""Read the files in three ways and judge what comes back."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from multimae.images.folders import MultiModalFolder
from multimae.images.pixels import Array, ImageError, Pixels, storage_dtype
from multimae.specs.errors import UserError
from multimae.specs.modalities import Modality, default_table, make_table
from tools import pack_dataset
from tools.doctor.files.file_checks import check_file
from tools.doctor.files.file_listing import list_files
from tools.doctor.findings import Finding
from tools.formats.format_samples import HEIGHT, WIDTH, Sample

COLUMNS = ("rgb", "labels", "depth", "float")
WAYS = ("plain", "packed", "doctor")
Verdict = Literal["right", "refused", "WRONG", "crash"]
Reader = Callable[[Path, str, Modality], Pixels]


@dataclasses.dataclass(frozen=True)
class Cell:
    """Outcome of one file, column and way.

    Attributes:
        verdict: ``right``: the values written; ``refused``: an error that names the file.
        detail: The error, or what is wrong.
    """

    verdict: Verdict
    detail: str = ""


Row = dict[tuple[str, str], Cell]
"""Cells by column and way."""


class Refusal(Exception):
    """Errors that the doctor reports."""


def modality_of(column: str, sample: Sample) -> Modality:
    """Modality of a column; ``float`` has the channels of the file."""
    if column == "float":
        channels = 1 if sample.values is None else sample.values.reshape(HEIGHT, WIDTH, -1).shape[2]
        spec = {"num_channels": channels, "storage": "float", "loss": "l1", "plot": "grey"}
        return make_table({"float": {**spec, "plot_channels": [0]}})["float"]
    return default_table()["semseg" if column == "labels" else column]


def build_table(rows: list[Sample], folder: Path) -> dict[str, Row]:
    """Write all samples below ``folder``, pack them, and read every cell.

    Returns:
        Rows by name of the sample.
    """
    together = [sample for sample in rows if not sample.alone]
    groups = [("all", together), *((slug(s), [s]) for s in rows if s.alone)]
    table: dict[str, Row] = {}
    for name, group in groups:
        if not group:
            continue
        root, packed = folder / name / "plain", folder / name / "packed"
        for sample in group:
            for column in COLUMNS:
                path = root / modality_of(column, sample).data_folder / "a" / file_name(sample)
                path.parent.mkdir(parents=True, exist_ok=True)
                sample.write(path)
        error = _pack(root, packed)
        for sample in group:
            table[sample.name] = dict(_cells(sample, root, packed, error))
    return {sample.name: table[sample.name] for sample in rows}


def slug(sample: Sample) -> str:
    """Name of a sample's files."""
    return re.sub(r"\W+", "_", sample.name).strip("_")


def file_name(sample: Sample) -> str:
    """File name of a sample."""
    return f"{slug(sample)}.{sample.suffix}"


def _pack(root: Path, out: Path) -> str:
    """Pack a folder; return what the command said if it failed."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = pack_dataset.main(["--data_path", str(root), "--out", str(out)])
    return said.getvalue() if code else ""


def _cells(
    sample: Sample, root: Path, packed: Path, pack_error: str
) -> Iterator[tuple[tuple[str, str], Cell]]:
    name = file_name(sample)
    for column in COLUMNS:
        modality = modality_of(column, sample)

        def read_pack(modality: Modality = modality) -> Pixels:
            if pack_error:
                raise UserError(pack_error)
            return _read(packed, name, modality)

        def doctor(modality: Modality = modality) -> Pixels:
            return _examine(root, name, modality)

        def plain(modality: Modality = modality) -> Pixels:
            return _read(root, name, modality)

        for way, read in zip(WAYS, (plain, read_pack, doctor), strict=True):
            yield (column, way), judge(read, sample, column, modality)


def judge(read: Callable[[], Pixels], sample: Sample, column: str, modality: Modality) -> Cell:
    """Compare what ``read`` returns or raises with what was written."""
    try:
        pixels = np.asarray(read())
    except (ImageError, UserError, Refusal) as err:
        text = str(err)
        named = file_name(sample) in text
        return Cell("refused" if named else "crash", text if named else f"unnamed: {text}")
    except Exception as err:  # a table of all outcomes
        return Cell("crash", f"{type(err).__name__}: {err}")
    problem = _difference(pixels, sample, column, modality)
    return Cell("WRONG", problem) if problem else Cell("right")


def _difference(pixels: Array, sample: Sample, column: str, modality: Modality) -> str:
    expected = expected_values(sample, column)
    if expected is None:
        return f"read as {pixels.dtype} {pixels.shape}, and should be refused"
    if pixels.dtype != storage_dtype(modality):
        return f"type {pixels.dtype}, expected {storage_dtype(modality)}"
    if pixels.shape != expected.shape:
        return f"shape {pixels.shape}, expected {expected.shape}"
    error = np.abs(pixels.astype(np.float64) - expected.astype(np.float64)).max()
    return f"values differ by up to {error:g}" if error > sample.tolerance else ""


def expected_values(sample: Sample, column: str) -> Array | None:
    """Values that a column may show for a file; ``None`` if it has to be refused."""
    values = sample.values
    if values is None:
        return None
    is_exact = sample.tolerance == 0
    if column == "rgb":
        return _colours(sample)
    if column == "float":
        return values.astype(np.float32) if is_exact else None
    is_whole = values.dtype.kind in "iu" and values.ndim == 2
    fits = is_whole and values.min() >= 0 and values.max() < (133 if column == "labels" else 65536)
    # Depth of 16 bits in lossy JPEG 2000 is a photograph of depth, off by little everywhere.
    is_deep = column == "depth" and values.dtype == np.uint16
    return values if fits and (is_exact or is_deep) else None


def _colours(sample: Sample) -> Array | None:
    values = sample.values if sample.rgb is None else sample.rgb
    if values is None or values.dtype.kind not in "iu" or values.max() > 255 or values.min() < 0:
        return None
    if sample.bits > 8:
        return None
    if values.ndim == 2:
        values = np.repeat(values[..., None] * (255 // (2**sample.bits - 1)), 3, -1)
    return values if values.shape[2] == 3 else None


def _read(root: Path, name: str, modality: Modality) -> Pixels:
    """Read a file as training does."""
    folder = MultiModalFolder(root, [modality])
    index = next(i for i in range(len(folder)) if folder.path(i, modality).name == name)
    return folder.read(index, modality)


def _examine(root: Path, name: str, modality: Modality) -> Pixels:
    """Read a file as the doctor does; its errors are raised."""
    listing = list_files(root, [modality])
    file = listing.files[modality.name].get(f"a/{name.rpartition('.')[0]}")
    if file is None:
        raise Refusal(_lines(listing.findings))
    seen = check_file(file, name, modality, modality.num_classes)
    if any(f.severity == "error" for f in seen.findings) or seen.pixels is None:
        raise Refusal(_lines(seen.findings))
    return seen.pixels


def _lines(findings: list[Finding]) -> str:
    return " ".join(f.line() for f in findings)
