"""Records of checked files."""

from __future__ import annotations

from dataclasses import dataclass, field

from multimae.images.pixels import Pixels
from multimae.specs.modalities import Modality
from tools.doctor.files.histograms import Counts, Sums
from tools.doctor.findings import Finding, Severity

_SCALARS = frozenset({"scalar"})


def is_scalar_map(modality: Modality) -> bool:
    """Whether a modality has one measured integer per pixel, such as depth."""
    return (
        not modality.is_labels
        and modality.storage == "integer"
        and modality.num_channels == 1
        and modality.plot in _SCALARS
    )


@dataclass
class FileRecord:
    """What the scan keeps of a file.

    Attributes:
        key: ``sub-folder/name``.
        modality: Name of its modality.
        path: Path of the file.
        size: Bytes.
        digest: BLAKE2b of its bytes, 128 bits, hexadecimal; empty if it cannot be read.
        mode: Pillow's mode as stored; empty if it cannot be decoded.
        height: Pixels, upright.
        width: Pixels, upright.
        levels: Number of distinct stored values, maximum over channels.
        scale: Log10 of the median valid value of a scalar map, or NaN.
        step: Greatest common divisor of its valid values, or 0.
        thumb: 16 x 16 grey bytes of a photo, for near duplicates.
    """

    key: str
    modality: str
    path: str
    size: int
    digest: str = ""
    mode: str = ""
    height: int = 0
    width: int = 0
    levels: int = 0
    scale: float = float("nan")
    step: int = 0
    thumb: bytes = b""


@dataclass
class CheckedFile:
    """A checked file: record and findings, and pixels and histograms if it could be read."""

    modality: Modality
    record: FileRecord
    pixels: Pixels | None = None
    counts: list[Counts] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    sums: Sums | None = None

    def note(self, severity: Severity, code: str, text: str) -> None:
        """Add a finding about this file."""
        record = self.record
        finding = Finding(severity, code, text, record.path, record.modality, record.key)
        self.findings.append(finding)
