"""Examine a data set: list its files, scan a sample of them in processes, compare the results."""

from __future__ import annotations

import dataclasses
import multiprocessing
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from multimae.images.folders import CLASSES_FILE, read_class_names, spread_indices
from multimae.images.no_data_tags import with_no_data_tags
from multimae.images.pixels import ImageError, check_readable, range_problems
from multimae.specs.coercion import repeated
from multimae.specs.errors import RunError, UserError
from multimae.specs.label_map import mapped_names
from multimae.specs.modalities import Modality
from tools.doctor.alignment.agreement import PairSummary, summarise_pairs
from tools.doctor.alignment.edges import Floats
from tools.doctor.alignment.misaligned import find_misaligned
from tools.doctor.chunk_scan import Chunk, ChunkResult, read_features, scan
from tools.doctor.files.duplicates import find_duplicates
from tools.doctor.files.file_checks import check_file
from tools.doctor.files.file_listing import Listing, find_modalities, list_files
from tools.doctor.files.modality_statistics import Totals, compute_statistics
from tools.doctor.files.outliers import find_outliers
from tools.doctor.findings import Finding, sort_findings

CHUNK = 32
DEFAULT_LIMIT = 500
_MAX_PROBED = 32


@dataclass
class SetReport:
    """Results of one set: the data set or its validation set.

    Attributes:
        listing: All its files.
        checked: Names of the samples read.
        result: Results of the scan.
        pairs: Agreement of each pair of modalities.
        statistics: By modality; see :func:`tools.doctor.files.summary.compute_statistics`.
    """

    listing: Listing
    checked: list[str] = field(default_factory=list)
    result: ChunkResult = field(default_factory=ChunkResult)
    pairs: dict[tuple[str, str], PairSummary] = field(default_factory=dict)
    statistics: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass
class Diagnosis:
    """All results about a data set.

    Attributes:
        sets: The data set, then the validation set if there is one.
        findings: Errors first.
        seconds: Elapsed time.
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
    limit: int | None = DEFAULT_LIMIT,
    workers: int = 1,
) -> Diagnosis:
    """Examine a data set.

    Args:
        root: Folder with one sub-folder per modality.
        table: Known modalities.
        chosen: Required modalities; empty: those of ``table`` that have a folder.
        val: Validation set with the same layout.
        limit: Number of evenly spaced samples to read; ``None``: all. All names are compared.
        workers: Processes; 1 runs in the current one.

    Raises:
        UserError: A folder does not exist or has no modality.
        RunError: A worker process was killed.
    """
    start = time.perf_counter()
    modalities = tuple(
        modality for modality in chosen if modality.source is None
    ) or find_modalities(root, table)
    try:
        for modality in modalities:
            check_readable(modality)
    except ImageError as err:
        raise UserError(str(err)) from err
    sets: list[SetReport] = []
    findings: list[Finding] = []
    for folder in (root, *([val] if val is not None else [])):
        found: list[Finding] = []
        read = _with_no_data_tags(modalities, folder, found)
        report = _examine_set(folder, read, found, limit, workers)
        findings += [dataclasses.replace(f, data_set=str(folder)) for f in found]
        sets.append(report)
    images = [_image_records(report) for report in sets]
    for f in find_duplicates(images[0], images[1] if len(sets) > 1 else []):
        roots = [str(s.listing.root) for s in sets]
        inside = [root for root in roots if f.path.startswith(f"{root}/")]
        findings.append(dataclasses.replace(f, data_set=max(inside or [", ".join(roots)], key=len)))
    return Diagnosis(sets, sort_findings(findings), time.perf_counter() - start)


def _examine_set(
    root: Path,
    modalities: Sequence[Modality],
    findings: list[Finding],
    limit: int | None,
    workers: int,
) -> SetReport:
    modalities = _with_class_names(root, modalities, findings)
    report = SetReport(list_files(root, modalities))
    listing = report.listing
    findings += listing.findings
    keys = listing.keys()
    count = len(keys) if limit is None else limit
    report.checked = [keys[i] for i in spread_indices(len(keys), count)]
    report.result.totals = {modality.name: Totals() for modality in listing.modalities}
    side = _edge_grid_side(report)
    for result in _scan_with_progress(_chunks(report, side), workers, root.name):
        report.result.merge(result)
    findings += report.result.findings
    for modality in listing.modalities:
        records = [r for r in report.result.records if r.modality == modality.name]
        findings += find_outliers(modality, records)
        report.statistics[modality.name] = compute_statistics(
            modality, report.result.totals[modality.name]
        )
        coded = {f.code for f in findings if f.modality == modality.name}
        if "bit-depth" not in coded:
            findings += _range_findings(modality, report.statistics[modality.name])

    def features_of(names: Sequence[str], modality: Modality) -> dict[str, Floats]:
        files = listing.files[modality.name]
        return read_features([(n, files[n]) for n in names if n in files], modality, side)

    pairs = report.result.pairs
    report.pairs = summarise_pairs(listing, pairs, features_of)
    findings += find_misaligned(listing, pairs, report.pairs, features_of)
    return report


def _with_no_data_tags(
    modalities: Sequence[Modality], root: Path, findings: list[Finding]
) -> list[Modality]:
    """Take ``no_data`` from the tags of TIFF files, as training does."""
    try:
        return with_no_data_tags(modalities, root)
    except UserError as err:
        findings.append(Finding("error", "no-data", str(err), str(root)))
        return list(modalities)


def _range_findings(modality: Modality, statistics: Mapping[str, Any]) -> Iterator[Finding]:
    """Warn about values of a scalar map that the spec makes useless."""
    if modality.plot == "scalar" and "max" in statistics:
        low, high = statistics["min"][0], statistics["max"][0]
        for text in range_problems(modality, low, high):
            yield Finding("warning", "range", text, modality=modality.name)


def _with_class_names(
    root: Path, modalities: Sequence[Modality], findings: list[Finding]
) -> tuple[Modality, ...]:
    """Add the names of ``classes.json`` if exactly one label modality has no class names."""
    try:
        names = read_class_names(root)
    except UserError as err:
        path = str(root / CLASSES_FILE)
        names_of = ", ".join(m.name for m in modalities if m.is_labels)
        text = str(err).removeprefix(path)
        findings.append(Finding("error", "classes-file", text, path, names_of))
        return tuple(modalities)
    unnamed = [
        modality for modality in modalities if modality.is_labels and not modality.class_names
    ]
    if names is None or len(unnamed) != 1:
        return tuple(modalities)
    (first,) = unnamed
    names = mapped_names(names, first.label_map)
    if repeated(names):
        text = f"two classes are called {repeated(names)}; training refuses that"
        findings.append(
            Finding("error", "classes-file", text, str(root / CLASSES_FILE), first.name)
        )
    return tuple(
        dataclasses.replace(modality, class_names=names) if modality in unnamed else modality
        for modality in modalities
    )


def _edge_grid_side(report: SetReport) -> int:
    """Side of the grid for edges: at most the typical file size; 0 for tiny images."""
    keys = report.checked
    modalities = {m.name: m for m in report.listing.modalities}
    sides = []
    for i in spread_indices(len(keys), _MAX_PROBED):
        for name, file in report.listing.sample(keys[i]).items():
            record = check_file(file, "", modalities[name], modalities[name].num_classes).record
            if record.levels:
                sides.append(min(record.height, record.width))
    usual = sorted(sides)[len(sides) // 2] if sides else 0
    return next((side for side in (64, 32) if usual >= side), 0)


def _chunks(report: SetReport, side: int) -> list[Chunk]:
    """Split the samples; those of a chunk are far apart and rarely show the same scene."""
    keys, listing = report.checked, report.listing
    num_ids = {
        modality.name: min(modality.num_classes, len(modality.class_names) or modality.num_classes)
        for modality in listing.modalities
        if modality.is_labels
    }
    count = -(-len(keys) // CHUNK)
    return [
        Chunk(
            listing.modalities, num_ids, tuple((k, listing.sample(k)) for k in keys[i::count]), side
        )
        for i in range(count)
    ]


def _scan_with_progress(chunks: Sequence[Chunk], workers: int, title: str) -> Iterator[ChunkResult]:
    with tqdm(total=sum(len(c.samples) for c in chunks), unit="sample", disable=None) as bar:
        bar.set_description(title)
        for chunk, result in zip(chunks, _scan_chunks(chunks, workers), strict=True):
            bar.update(len(chunk.samples))
            yield result


def _scan_chunks(chunks: Sequence[Chunk], workers: int) -> Iterator[ChunkResult]:
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


def _image_records(report: SetReport) -> list[Any]:
    images = {modality.name for modality in report.listing.modalities if not modality.is_labels}
    return [r for r in report.result.records if r.modality in images]
