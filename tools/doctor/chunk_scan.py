"""Scan a chunk of samples: check every file and correlate the modalities of each sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np

from multimae.images.pixels import ImageError, check_same_view, size_of
from multimae.specs.modalities import Modality
from tools.doctor.alignment.agreement import Pair
from tools.doctor.alignment.edge_correlation import Edges, PairScores, score_pair
from tools.doctor.alignment.edges import Floats, downsample, edge_features, normalize_features
from tools.doctor.files.duplicates import thumbnail
from tools.doctor.files.file_checks import check_file
from tools.doctor.files.file_listing import File
from tools.doctor.files.file_records import CheckedFile, FileRecord
from tools.doctor.files.modality_statistics import Totals
from tools.doctor.findings import Finding


@dataclass(frozen=True)
class Chunk:
    """Work item of one process.

    Attributes:
        modalities: Modalities.
        num_ids: Number of valid class ids by label modality.
        samples: Sample names with their files by modality.
        side: Side of the edge grid; 0 skips alignment checks.
    """

    modalities: tuple[Modality, ...]
    num_ids: Mapping[str, int]
    samples: tuple[tuple[str, dict[str, File]], ...]
    side: int


@dataclass
class ChunkResult:
    """Results of a chunk."""

    findings: list[Finding] = field(default_factory=list)
    records: list[FileRecord] = field(default_factory=list)
    totals: dict[str, Totals] = field(default_factory=dict)
    pairs: dict[Pair, PairScores] = field(default_factory=dict)

    def merge(self, other: ChunkResult) -> None:
        """Add the results of another chunk."""
        self.findings += other.findings
        self.records += other.records
        for name, totals in other.totals.items():
            self.totals.setdefault(name, Totals()).merge(totals)
        for pair, scores in other.pairs.items():
            self.pairs.setdefault(pair, PairScores()).extend(scores)


def scan(chunk: Chunk) -> ChunkResult:
    """Check all samples of a chunk; problems become findings."""
    out = ChunkResult(totals={modality.name: Totals() for modality in chunk.modalities})
    small: dict[str, dict[str, Floats]] = {modality.name: {} for modality in chunk.modalities}
    for key, files in chunk.samples:
        seen = {}
        for modality in chunk.modalities:
            if modality.name in files:
                seen[modality.name] = _check(
                    files[modality.name], key, modality, chunk, out, small[modality.name]
                )
        out.findings += _find_other_views(
            {name: e for name, e in seen.items() if e.pixels is not None}
        )
    edges = {
        modality.name: Edges.from_features(
            list(small[modality.name]), _features(small[modality.name], modality)
        )
        for modality in chunk.modalities
        if small[modality.name]
    }
    for (a, first), (b, second) in combinations(edges.items(), 2):
        out.pairs[a, b] = score_pair(first, second)
    return out


def read_features(
    samples: Sequence[tuple[str, File]], modality: Modality, side: int
) -> dict[str, Floats]:
    """Normalized edge features of one modality by sample name; unreadable files are skipped."""
    small: dict[str, Floats] = {}
    for key, file in samples:
        seen = check_file(file, key, modality, modality.num_classes)
        if seen.pixels is not None:
            small[key] = downsample(seen.pixels, modality, side)
    return dict(zip(small, _features(small, modality), strict=True)) if small else {}


def _check(
    file: File,
    key: str,
    modality: Modality,
    chunk: Chunk,
    out: ChunkResult,
    small: dict[str, Floats],
) -> CheckedFile:
    seen = check_file(file, key, modality, chunk.num_ids.get(modality.name, modality.num_classes))
    out.findings += seen.findings
    out.records.append(seen.record)
    if seen.pixels is not None:
        out.totals[modality.name].add_file(seen.counts, modality.is_labels, seen.sums)
        if chunk.side:
            small[key] = downsample(seen.pixels, modality, chunk.side)
            if modality.is_photo:
                seen.record.thumb = thumbnail(small[key])
    return seen


def _features(small: Mapping[str, Floats], modality: Modality) -> Floats:
    """Edge features of all images of a modality, one at a time to stay in the CPU's cache."""
    return np.concatenate(
        [normalize_features(edge_features(x[None], modality)) for x in small.values()]
    )


def _find_other_views(seen: Mapping[str, CheckedFile]) -> list[Finding]:
    """Find modalities whose aspect ratio differs from that of most others in the sample."""
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
