"""What is kept of a file after it was read."""

from __future__ import annotations

from dataclasses import dataclass, field

from multimae.images.pixels import Pixels
from multimae.specs.modalities import Modality
from tools.doctor.files.histograms import Counts
from tools.doctor.findings import Finding, Severity

_SCALARS = frozenset({"scalar"})


def is_scalar_map(row: Modality) -> bool:
    """Whether a row holds one measured quantity per pixel, such as depth."""
    return not row.is_labels and row.num_channels == 1 and row.plot in _SCALARS


@dataclass
class FileRecord:
    """What is kept of a file.

    Attributes:
        key: ``sub-folder/name``.
        modality: Name of its row.
        path: Where it is.
        size: Bytes.
        digest: BLAKE2b of its bytes, 128 bits, hexadecimal; empty if it cannot be read.
        mode: Pillow's mode as stored; empty if it cannot be decoded.
        height: Pixels, upright.
        width: Pixels, upright.
        levels: Number of different stored values, of the channel that has most.
        scale: Base 10 logarithm of the median of the valid values of a scalar map, or nan.
        step: Greatest common divisor of its valid values, or 0.
        thumb: 16 x 16 grey bytes of a photograph, for near duplicates.
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
class Examined:
    """A file after the checks: its record, and its pixels and counts if they could be read."""

    row: Modality
    record: FileRecord
    pixels: Pixels | None = None
    counts: list[Counts] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def note(self, severity: Severity, code: str, text: str) -> None:
        """Add a finding about this file."""
        record = self.record
        finding = Finding(severity, code, text, record.path, record.modality, record.key)
        self.findings.append(finding)
