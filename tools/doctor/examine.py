"""The whole examination: list, sample, scan in processes, compare, and what follows from it."""

from __future__ import annotations

import dataclasses
import multiprocessing
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from multimae.images.pixels import ImageError, check_readable
from multimae.specs.modalities import Modality
from tools.doctor.alignment.agreement import PairSummary, summarise_pairs
from tools.doctor.alignment.edges import Floats
from tools.doctor.alignment.misaligned import find_misaligned
from tools.doctor.chunk_scan import Chunk, ChunkResult, read_features, scan
from tools.doctor.files.duplicates import find_duplicates
from tools.doctor.files.file_listing import Listing, find_rows, list_files
from tools.doctor.files.modality_statistics import Totals, describe
from tools.doctor.files.outliers import compare
from tools.doctor.findings import Finding, in_order
from utils.data.folders import CLASSES_FILE, read_class_names
from utils.logs.errors import RunError, UserError

CHUNK = 32
SAMPLED = 500
_PROBED = 32


@dataclass
class SetReport:
    """One set: the data set itself, or its validation set.

    Attributes:
        listing: All its files.
        checked: Names of the samples that were read.
        result: What was read.
        pairs: How well each two modalities agree.
        statistics: By modality, see :func:`tools.doctor.files.summary.describe`.
    """

    listing: Listing
    checked: list[str] = field(default_factory=list)
    result: ChunkResult = field(default_factory=ChunkResult)
    pairs: dict[tuple[str, str], PairSummary] = field(default_factory=dict)
    statistics: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass
class Diagnosis:
    """All that is known about a data set, for the report.

    Attributes:
        sets: The data set, then the validation set if there is one.
        findings: Errors first.
        seconds: Time it took.
    """

    sets: list[SetReport]
    findings: list[Finding]
    seconds: float


def examine_dataset(
    root: Path,
    table: Sequence[Modality],
    *,
    chosen: Sequence[Modality] = (),
    val: Path | None = None,
    limit: int | None = SAMPLED,
    workers: int = 1,
) -> Diagnosis:
    """Examine a data set.

    Args:
        root: Folder with one sub-folder per modality.
        table: Rows to look for.
        chosen: Rows that must be there; those of ``table`` with a folder if empty.
        val: Validation set of the same layout.
        limit: Read so many samples, evenly spread; all if ``None``. Names are always compared.
        workers: Processes; 1 works in this one.

    Raises:
        UserError: A folder does not exist, or no modality is there.
        RunError: A worker process was killed.
    """
    start = time.perf_counter()
    rows = tuple(row for row in chosen if row.source is None) or find_rows(root, table)
    try:
        for row in rows:
            check_readable(row)
    except ImageError as err:
        raise UserError(str(err)) from err
    sets: list[SetReport] = []
    findings: list[Finding] = []
    for folder in (root, *([val] if val is not None else [])):
        report = _examine_set(folder, rows, findings, limit, workers)
        sets.append(report)
    images = [_of_images(report) for report in sets]
    findings += find_duplicates(images[0], images[1] if len(sets) > 1 else [])
    return Diagnosis(sets, in_order(findings), time.perf_counter() - start)


def _examine_set(
    root: Path,
    rows: Sequence[Modality],
    findings: list[Finding],
    limit: int | None,
    workers: int,
) -> SetReport:
    rows = _named(root, rows, findings)
    report = SetReport(list_files(root, rows))
    listing = report.listing
    findings += listing.findings
    keys = listing.keys()
    count = len(keys) if limit is None else min(limit, len(keys))
    report.checked = [keys[i * len(keys) // count] for i in range(count)]
    report.result.totals = {row.name: Totals() for row in listing.rows}
    side = _grid(report)
    for result in _results(_chunks(report, side), workers, root.name):
        report.result.merge(result)
    findings += report.result.findings
    for row in listing.rows:
        records = [r for r in report.result.records if r.modality == row.name]
        findings += compare(row, records)
        report.statistics[row.name] = describe(row, report.result.totals[row.name])

    def features_of(names: Sequence[str], row: Modality) -> dict[str, Floats]:
        files = listing.files[row.name]
        return read_features([(n, files[n]) for n in names if n in files], row, side)

    pairs = report.result.pairs
    report.pairs = summarise_pairs(listing, pairs, features_of)
    findings += find_misaligned(listing, pairs, report.pairs, features_of)
    return report


def _named(root: Path, rows: Sequence[Modality], findings: list[Finding]) -> tuple[Modality, ...]:
    """Rows with the names of ``classes.json``, if the labels have none and are the only ones."""
    try:
        names = read_class_names(root)
    except UserError as err:
        path = str(root / CLASSES_FILE)
        findings.append(Finding("error", "classes-file", str(err).removeprefix(path), path))
        return tuple(rows)
    unnamed = [row for row in rows if row.is_labels and not row.class_names]
    if names is None or len(unnamed) != 1:
        return tuple(rows)
    return tuple(
        dataclasses.replace(row, class_names=names) if row in unnamed else row for row in rows
    )


def _grid(report: SetReport) -> int:
    """Side of the grid that edges are compared on: no finer than the files; 0 for tiny ones."""
    keys = report.checked
    sides = []
    for i in range(min(_PROBED, len(keys))):
        for file in report.listing.sample(keys[i * len(keys) // min(_PROBED, len(keys))]).values():
            try:
                with Image.open(file.path) as image:
                    sides.append(min(image.size))
            except (OSError, Image.DecompressionBombError):
                continue  # the scan reports it
    usual = sorted(sides)[len(sides) // 2] if sides else 0
    return next((side for side in (64, 32) if usual >= side), 0)


def _chunks(report: SetReport, side: int) -> list[Chunk]:
    """Samples of a chunk lie far apart, so that they hardly show the same scene."""
    keys, listing = report.checked, report.listing
    num_ids = {
        row.name: min(row.num_classes, len(row.class_names) or row.num_classes)
        for row in listing.rows
        if row.is_labels
    }
    count = -(-len(keys) // CHUNK)
    return [
        Chunk(listing.rows, num_ids, tuple((k, listing.sample(k)) for k in keys[i::count]), side)
        for i in range(count)
    ]


def _results(chunks: Sequence[Chunk], workers: int, title: str) -> Iterator[ChunkResult]:
    with tqdm(total=sum(len(c.samples) for c in chunks), unit="sample", disable=None) as bar:
        bar.set_description(title)
        for chunk, result in zip(chunks, _map(chunks, workers), strict=True):
            bar.update(len(chunk.samples))
            yield result


def _map(chunks: Sequence[Chunk], workers: int) -> Iterator[ChunkResult]:
    if workers <= 1 or len(chunks) < 2:
        yield from map(scan, chunks)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(chunks)), mp_context=context)
    try:
        yield from pool.map(scan, chunks)
    except BrokenProcessPool as err:
        raise RunError("a worker process was killed: use fewer --workers.") from err
    finally:
        pool.shutdown(cancel_futures=True)


def _of_images(report: SetReport) -> list[Any]:
    images = {row.name for row in report.listing.rows if not row.is_labels}
    return [r for r in report.result.records if r.modality in images]
