"""One thing that is wrong, or worth knowing, about a data set."""

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
        severity: ``error``: training stops or learns from wrong data. ``warning``: look at it.
            ``info``: good to know.
        code: Short name of the kind of finding, the same for all of its kind.
        message: What is wrong and what to do.
        path: The offending file or folder; empty if it is about many.
        modality: Name of the row; empty if it is about none.
        sample: ``sub-folder/name``; empty if it is about none.
    """

    severity: Severity
    code: str
    message: str
    path: str = ""
    modality: str = ""
    sample: str = ""

    def line(self) -> str:
        """One line of text."""
        where = f"{self.path}: " if self.path else ""
        return f"{self.severity:<8}{self.code:<18}{where}{self.message}"


def in_order(findings: Iterable[Finding]) -> list[Finding]:
    """Errors first, then by kind and path, each once."""
    return sorted(
        dict.fromkeys(findings),
        key=lambda f: (SEVERITIES.index(f.severity), f.code, f.path, f.message),
    )


def count(findings: Iterable[Finding]) -> dict[Severity, int]:
    """Number of findings by severity."""
    out: dict[Severity, int] = dict.fromkeys(SEVERITIES, 0)
    for finding in findings:
        out[finding.severity] += 1
    return out
