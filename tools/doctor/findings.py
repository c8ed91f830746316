"""Findings: problems of a data set, or facts worth knowing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "info"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info")


@dataclass(frozen=True)
class Finding:
    """One finding.

    Attributes:
        severity: ``error``: training would fail or learn from wrong data; ``warning``: needs a
            look; ``info``: a fact.
        code: Short name of the kind of finding.
        message: What is wrong and what to do.
        path: Offending file or folder; empty if there are several.
        modality: Name of the modality, if any.
        sample: ``sub-folder/name``, if any.
    """

    severity: Severity
    code: str
    message: str
    path: str = ""
    modality: str = ""
    sample: str = ""

    def line(self) -> str:
        """Format as one line."""
        where = f"{self.path}: " if self.path else ""
        return f"{self.severity:<8}{self.code:<18}{where}{self.message}"


def sort_findings(findings: Iterable[Finding]) -> list[Finding]:
    """Remove duplicates; sort by severity, code and path."""
    return sorted(
        dict.fromkeys(findings),
        key=lambda f: (SEVERITIES.index(f.severity), f.code, f.path, f.message),
    )


def count(findings: Iterable[Finding]) -> dict[Severity, int]:
    """Count findings by severity."""
    out: dict[Severity, int] = dict.fromkeys(SEVERITIES, 0)
    for finding in findings:
        out[finding.severity] += 1
    return out
