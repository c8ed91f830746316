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
        data_set: Root of the set.
    """

    severity: Severity
    code: str
    message: str
    path: str = ""
    modality: str = ""
    sample: str = ""
    data_set: str = ""

    def line(self) -> str:
        """Format as one line."""
        where = f"{self.path}: " if self.path else ""
        about = ", ".join(filter(None, (self.modality, self.data_set)))
        text = f"{self.severity:<8}{self.code:<18}[{about}] {where}{self.message}"
        return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


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
