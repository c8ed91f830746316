"""What the report says about one modality: facts, a histogram, the row to put into a config."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

from multimae.plotting.colours import label_palette
from multimae.specs.modalities import Modality
from tools.doctor.examine import SetReport
from tools.doctor.files.histograms import Counts, quantile
from tools.doctor.files.records import is_scalar_map
from tools.doctor.files.summary import Totals
from tools.doctor.report.charts import classes, histogram

_MOST_CLASSES = 14


def modality_card(row: Modality, report: SetReport) -> str:
    """A card with the statistics of one modality."""
    facts = report.statistics[row.name]
    totals = report.result.totals[row.name]
    records = [r for r in report.result.records if r.modality == row.name and r.mode]
    sizes = Counter(f"{r.height} × {r.width}" for r in records)
    modes = Counter(r.mode for r in records)
    table = [
        ("files read", f"{facts['files']:,} of {len(report.listing.files[row.name]):,}"),
        ("size (H × W)", _most(sizes)),
        ("mode", _most(modes)),
        *_lines(row, facts),
    ]
    rows = "".join(f"<tr><td>{name}</td><td>{escape(text)}</td></tr>" for name, text in table)
    chart = _chart(row, facts, totals) if totals.counts else ""
    return (
        f'<div class="card"><h3>{escape(row.name)} <span class="soft">{row.kind}</span></h3>'
        f'<table class="facts">{rows}</table>{chart}{_yaml(row, facts)}</div>'
    )


def _most(found: Counter[str]) -> str:
    shown = ", ".join(f"{name} ({n:,})" for name, n in found.most_common(3))
    return shown + (f" and {len(found) - 3} others" if len(found) > 3 else "") or "none"


def _lines(row: Modality, facts: dict[str, Any]) -> list[tuple[str, str]]:
    if not facts["files"]:
        return []
    if row.is_labels:
        pixels = facts["pixels"]
        used = sum(n > 0 for n in pixels)
        void = facts["void_share"]
        share = [("void", f"{void:.2%} (id {facts['void']})")] if void is not None else []
        return [("ids in use", f"{used} of {row.num_classes}"), *share]
    lines = [
        ("mean", f"{_numbers(facts['mean'])}  (stored {_numbers(facts['mean_stored'])})"),
        ("std", f"{_numbers(facts['std'])}  (stored {_numbers(facts['std_stored'])})"),
        ("range", ", ".join(f"{a}..{b}" for a, b in zip(facts["min"], facts["max"], strict=True))),
    ]
    if is_scalar_map(row):
        lines += [("invalid", f"{facts['invalid_share']:.2%}"), ("unit", facts["unit"])]
    return lines


def _chart(row: Modality, facts: dict[str, Any], totals: Totals) -> str:
    if row.is_labels:
        palette = label_palette(len(facts["pixels"]))
        colours = [f"rgb({r},{g},{b})" for r, g, b in palette.tolist()]
        weights = facts["weights"]["median_frequency"]
        return classes(facts["pixels"], facts["names"], colours, weights, _MOST_CLASSES)
    low, high = 0, 255
    if is_scalar_map(row) or row.max_value > 255:
        valid = totals.counts[0].copy()
        valid[0] = 0
        low, high = 0, int(quantile(valid, 0.999)) if valid.any() else 1
    channels = [np.pad(c, (0, max(0, high + 1 - len(c)))) for c in totals.counts]
    return histogram([_without_zero(c) if is_scalar_map(row) else c for c in channels], low, high)


def _without_zero(counts: Counts) -> Counts:
    out: Counts = counts.copy()
    out[0] = 0
    return out


def _yaml(row: Modality, facts: dict[str, Any]) -> str:
    """The row's fields as measured, to copy."""
    if row.is_labels or not facts["files"] or row.normalization != "mean_std":
        return ""
    fields = [f"{key}: [{_numbers(facts[key])}]" for key in ("mean", "std")]
    lines = ["modalities:", f"  {row.name}:", *(f"    {field}" for field in fields)]
    return f"<pre>{escape(chr(10).join(lines))}</pre>"


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{v:.4g}" for v in values)
