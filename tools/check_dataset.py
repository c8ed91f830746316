"""Check a data set on the CPU before training and report every problem, its file and the fix.

    python tools/check_dataset.py data/rooms/train --val_path data/rooms/val
    python tools/check_dataset.py data/mine --modalities rgb-depth --config mine.yaml --full

Reads 500 evenly spaced samples, or all with --full; the names and sizes of all files are always
compared. Writes to --out: report.html (self-contained), findings.json, statistics.json (means,
standard deviations and class weights in the units of the model's specs), manifest.json (size and
hash of every file) and class_weights_MODALITY.json of DIR for --class_weights. Exit code: 0 no
errors, 1 errors found, 2 invalid call.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    # Read when numpy is loaded. Matrix products are small here: more threads do not help.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from multimae.specs.arguments import CommandParser
from multimae.specs.commands import run_command
from multimae.specs.errors import UserError
from multimae.specs.label_map import parse_label_map
from multimae.specs.modalities import ModalityTable, default_table, select
from tools.doctor.examine import DEFAULT_LIMIT, Diagnosis, examine_dataset
from tools.doctor.findings import Finding, count
from tools.doctor.report.report_files import write_report
from utils.config.fields import options_of
from utils.config.parse import load_yaml

_PRINTED = 30

SEGMENTED = "semseg"
"""Modality of the label maps that semantic segmentation is trained on."""


def main(argv: Sequence[str] | None = None) -> int:
    """Check the data set, write the report and print a summary."""
    args = _parse(argv)
    table = _read_table(args.config)
    try:
        chosen = select(table, args.modalities.split("-")) if args.modalities else []
    except ValueError as err:
        raise UserError(f"--modalities: {err}") from err
    diagnosis = examine_dataset(
        args.data,
        list(table.values()),
        chosen=chosen,
        val=args.val_path,
        limit=None if args.full else DEFAULT_LIMIT,
        workers=args.workers,
    )
    written = write_report(diagnosis, args.out or Path("output/doctor") / args.data.resolve().name)
    print(_summary(diagnosis, diagnosis.findings))
    print(f"report: {written[0]}")
    return 1 if count(diagnosis.findings)["error"] else 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = CommandParser(__doc__)
    parser.add_argument(
        "data", type=Path, metavar="DIR", help="data root: one sub-folder per modality"
    )
    group = parser.add_argument_group("data")
    group.add_argument("--modalities", default="", help="e.g. rgb-depth; default: all known ones")
    group.add_argument(
        "--val_path", type=Path, metavar="DIR2", help="validation set, checked for leaks"
    )
    group.add_argument("--config", type=Path, help="YAML with a `modalities:` section")
    group = parser.add_argument_group("output and speed")
    group.add_argument("--full", action="store_true", help="read every sample")
    group.add_argument("--out", type=Path, help="report folder (output/doctor/NAME)")
    group.add_argument("--workers", type=int, default=1, help="processes")
    args = parser.parse_args(argv)
    if args.workers < 1:
        parser.error("--workers must be at least 1")
    return args


def _read_table(path: Path | None) -> ModalityTable:
    """Read the modality table that a YAML config declares.

    Args:
        path: Config of any script; other options are ignored. ``None``: the default table.

    Raises:
        UserError: The file cannot be read, or a spec is invalid.
    """
    if path is None:
        return default_table()
    from utils.config.options import DataOptions  # loads PyTorch

    try:
        content = load_yaml(path.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as err:
        reason = (str(err) or type(err).__name__).replace("\n", " ")
        raise UserError(f"--config {path}: {reason}") from err
    if not isinstance(content, dict):
        raise UserError(f"--config {path}: expected `option: value` lines, such as `modalities:`")
    options = options_of(DataOptions())
    try:
        values: dict[str, Any] = {
            key: options[key].coerce(value) for key, value in content.items() if key in options
        }
        table = dataclasses.replace(DataOptions(), **values).table()
        return _with_void(table, content)
    except ValueError as err:
        raise UserError(f"--config {path}: {err}") from err


def _with_void(table: ModalityTable, content: dict[str, Any]) -> ModalityTable:
    """Ids as segmentation takes them if the config is one of it: 255 is void."""
    count = content.get("num_classes")
    if not isinstance(count, int):
        return table
    ids = count + bool(content.get("seg_reduce_zero_label"))
    if SEGMENTED not in table:
        return table
    segmented = dataclasses.replace(
        table[SEGMENTED],
        num_classes=ids,
        no_data=255.0,
        suffix=str(content.get("label_suffix") or ""),
        label_map=parse_label_map(content.get("label_map") or {}),
    )
    return {**table, SEGMENTED: segmented}


def _summary(diagnosis: Diagnosis, findings: Sequence[Finding]) -> str:
    counts = count(findings)
    checked = sum(len(s.checked) for s in diagnosis.sets)
    total = sum(len(s.listing.keys()) for s in diagnosis.sets)
    names = ", ".join(m.name for m in diagnosis.sets[0].listing.modalities)
    lines = [f.line() for f in findings[:_PRINTED]]
    if len(findings) > _PRINTED:
        lines.append(f"... and {len(findings) - _PRINTED} more in the report")
    lines.append(
        f"{checked} of {total} samples of {names} read in {diagnosis.seconds:.1f} s: "
        f"{counts['error']} errors, {counts['warning']} warnings, {counts['info']} notes"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    run_command(main)
