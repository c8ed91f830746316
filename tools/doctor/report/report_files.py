"""Write the report folder: HTML page, findings, statistics and manifest."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import Any

from multimae.specs.errors import UserError
from multimae.weights.atomic import atomic_file
from tools.doctor.examine import Diagnosis, SetReport
from tools.doctor.files.modality_statistics import class_weights_file
from tools.doctor.findings import count
from tools.doctor.report.report_page import render_page

FILES = ("report.html", "findings.json", "statistics.json", "manifest.json")


def write_report(diagnosis: Diagnosis, out: Path) -> list[Path]:
    """Write all files of the report.

    Returns:
        Their paths; the HTML page is the first.

    Raises:
        UserError: The folder cannot be written.
    """
    texts = {
        "report.html": render_page(diagnosis),
        "findings.json": _json(
            {"counts": count(diagnosis.findings), "findings": list(map(asdict, diagnosis.findings))}
        ),
        "statistics.json": _json({str(s.listing.root): _statistics(s) for s in diagnosis.sets}),
        # No indent: it selects an encoder ten times slower, and there may be millions of files.
        "manifest.json": _json({str(s.listing.root): _manifest(s) for s in diagnosis.sets}, None),
    }
    for m in diagnosis.sets[0].listing.modalities:
        totals = diagnosis.sets[0].result.totals[m.name]
        if m.is_labels and totals.counts:
            texts[f"class_weights_{m.name}.json"] = _json(class_weights_file(m, totals))
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name in texts:
            with atomic_file(out / name) as stream:
                stream.write(texts[name].encode("utf-8", "backslashreplace"))  # surrogates
    except OSError as err:
        raise UserError(f"{out}: cannot be written ({err.strerror or err}).") from err
    return [out / name for name in texts]


def _json(content: Any, indent: int | None = 1) -> str:
    return json.dumps(content, indent=indent, ensure_ascii=False) + "\n"


def _statistics(report: SetReport) -> dict[str, Any]:
    agreement = {
        "-".join(pair): {**asdict(s), "deviations": s.deviations(s.median)}
        for pair, s in report.pairs.items()
    }
    return {
        "samples": len(report.listing.keys()),
        "checked": len(report.checked),
        "modalities": report.statistics,
        "agreement": agreement,
    }


def _manifest(report: SetReport) -> dict[str, Any]:
    """Counts, and the size of every file with its hash if it was read."""
    listing = report.listing
    hashes = {record.path: record.digest for record in report.result.records}
    files: dict[str, dict[str, Any]] = {}
    counts: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for name, by_key in listing.files.items():
        for file in by_key.values():
            relative = Path(file.path).relative_to(listing.root)
            folder = relative.parts[-2] if len(relative.parts) > 2 else ""
            counts[name][folder] += 1
            digest = hashes.get(file.path, "")
            files[str(relative)] = {"size": file.size, **({"blake2b": digest} if digest else {})}
    return {
        "samples": len(listing.keys()),
        "hashed": sum(bool(h) for h in hashes.values()),
        "counts": {name: {"files": sum(by.values()), "folders": by} for name, by in counts.items()},
        "files": files,
    }
