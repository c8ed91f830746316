"""A chunk of samples: read every file once, check it, compare the modalities of each sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np

from multimae.images.pixels import ImageError, check_same_view, size_of
from multimae.specs.modalities import Modality
from tools.doctor.alignment.agreement import Pair
from tools.doctor.alignment.edge_correlation import Edges, PairScores, score_pair
from tools.doctor.alignment.edges import Floats, features, normalised, reduce
from tools.doctor.files.duplicates import thumbnail
from tools.doctor.files.file_checks import examine
from tools.doctor.files.file_listing import File
from tools.doctor.files.modality_statistics import Totals
from tools.doctor.files.records import Examined, FileRecord
from tools.doctor.findings import Finding


@dataclass(frozen=True)
class Chunk:
    """Work for one process.

    Attributes:
        rows: Modalities.
        num_ids: Valid class ids are below this, by name of the labels.
        samples: Names and files by modality.
        side: Side of the grid on which edges are compared; 0 compares none.
    """

    rows: tuple[Modality, ...]
    num_ids: Mapping[str, int]
    samples: tuple[tuple[str, dict[str, File]], ...]
    side: int


@dataclass
class ChunkResult:
    """What came out of a chunk."""

    findings: list[Finding] = field(default_factory=list)
    records: list[FileRecord] = field(default_factory=list)
    totals: dict[str, Totals] = field(default_factory=dict)
    pairs: dict[Pair, PairScores] = field(default_factory=dict)

    def merge(self, other: ChunkResult) -> None:
        """Add the samples of another chunk."""
        self.findings += other.findings
        self.records += other.records
        for name, totals in other.totals.items():
            self.totals.setdefault(name, Totals()).merge(totals)
        for pair, scores in other.pairs.items():
            self.pairs.setdefault(pair, PairScores()).extend(scores)


def scan(chunk: Chunk) -> ChunkResult:
    """Check all samples of a chunk; nothing wrong with a file stops it."""
    out = ChunkResult(totals={row.name: Totals() for row in chunk.rows})
    small: dict[str, dict[str, Floats]] = {row.name: {} for row in chunk.rows}
    for key, files in chunk.samples:
        seen = {}
        for row in chunk.rows:
            if row.name in files:
                seen[row.name] = _one(files[row.name], key, row, chunk, out, small[row.name])
        out.findings += _other_view({name: e for name, e in seen.items() if e.pixels is not None})
    edges = {
        row.name: Edges.of(list(small[row.name]), _edges(small[row.name], row))
        for row in chunk.rows
        if small[row.name]
    }
    for (a, first), (b, second) in combinations(edges.items(), 2):
        out.pairs[a, b] = score_pair(first, second)
    return out


def read_features(
    samples: Sequence[tuple[str, File]], row: Modality, side: int
) -> dict[str, Floats]:
    """Normalised features of one modality by name of the sample, without those not readable."""
    small: dict[str, Floats] = {}
    for key, file in samples:
        seen = examine(file.path, key, row, row.num_classes)
        if seen.pixels is not None:
            small[key] = reduce(seen.pixels, row, side)
    return dict(zip(small, _edges(small, row), strict=True)) if small else {}


def _one(
    file: File, key: str, row: Modality, chunk: Chunk, out: ChunkResult, small: dict[str, Floats]
) -> Examined:
    seen = examine(file.path, key, row, chunk.num_ids.get(row.name, row.num_classes))
    out.findings += seen.findings
    out.records.append(seen.record)
    if seen.pixels is not None:
        out.totals[row.name].take(seen.counts, row.is_labels)
        if chunk.side:
            small[key] = reduce(seen.pixels, row, chunk.side)
            if row.is_photo:
                seen.record.thumb = thumbnail(small[key])
    return seen


def _edges(small: Mapping[str, Floats], row: Modality) -> Floats:
    """Features of all pictures of a modality; one by one they stay in the processor's cache."""
    return np.concatenate([normalised(features(x[None], row)) for x in small.values()])


def _other_view(seen: Mapping[str, Examined]) -> list[Finding]:
    """Modalities whose aspect ratio is not that of most of the sample's."""
    if len({(e.record.height, e.record.width) for e in seen.values()}) < 2:
        return []

    def problem(name: str, reference: str) -> str:
        pair = {n: e.pixels for n, e in seen.items() if n in (name, reference)}
        known = {n: pixels for n, pixels in pair.items() if pixels is not None}
        try:
            check_same_view(known, {n: seen[n].record.path for n in pair})
        except ImageError as err:
            return str(err)
        return ""

    bad = {name: [n for n in seen if n != name and problem(name, n)] for name in seen}
    if not any(bad.values()):
        return []
    reference = min(bad, key=lambda name: len(bad[name]))
    findings = []
    for name in bad[reference]:
        (h, w), (ref_h, ref_w) = (
            size_of(pixels) for n in (name, reference) if (pixels := seen[n].pixels) is not None
        )
        text = (
            f"is {h} x {w} (H x W), but {seen[reference].record.path} is {ref_h} x {ref_w}: the "
            "aspect ratios differ, so they cannot show the same view. Check for an EXIF rotation."
        )
        record = seen[name].record
        findings.append(Finding("error", "aspect", text, record.path, name, record.key))
    return findings
