"""Measure what each modality contributes: scores of a checkpoint on every subset of its inputs.

    python tools/modality_report.py weights/multimae-tiny_rooms.safetensors examples/rooms

A pre-trained checkpoint is scored by its reconstruction losses, a fine-tuned one by its task
metrics. DATA holds all modalities of the model (MODALITY/SUB-FOLDER/NAME) and the ground truth of
its heads. Prints tables; ``--json`` writes the numbers, ``--picture`` heat maps (needs matplotlib:
``pip install 'multimae[plots]'``).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from multimae.multimae import MultiMAE
from multimae.specs.arguments import CommandParser
from multimae.specs.commands import run_command
from multimae.specs.errors import UserError
from multimae.weights.files import CheckpointError
from tools.subset_report.finetuned import downstream_report
from tools.subset_report.pretrained_subsets import VISIBLE, reconstruction_report
from tools.subset_report.report_picture import report_figure
from tools.subset_report.scores import Report
from utils.config.options import default_device, device_problems


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = CommandParser(__doc__)
    parser.add_argument("checkpoint", type=Path, help="pre-trained or fine-tuned weights")
    parser.add_argument("data", type=Path, help="data folder, one sub-folder per modality")
    group = parser.add_argument_group("output")
    group.add_argument("--json", type=Path, help="write the numbers to this file")
    group.add_argument("--picture", type=Path, help="write heat maps to this file")
    group = parser.add_argument_group("computation")
    group.add_argument(
        "--visible", type=float, default=VISIBLE, help="visible share of the patches"
    )
    group.add_argument(
        "--limit", type=int, help="maximum number of samples, evenly spaced; default: all"
    )
    group.add_argument("--batch_size", type=int, default=16, help="samples per forward pass")
    group.add_argument("--device", default=default_device(), help="cuda, cuda:N, cpu or mps")
    args = parser.parse_args(argv)
    report = make_report(args)
    print(report.table())
    write(report, args.json, args.picture)


def make_report(args: argparse.Namespace) -> Report:
    """Score the checkpoint by reconstruction losses or by task metrics.

    Raises:
        UserError: Invalid options, or weights or data that do not fit.
    """
    problems = list(device_problems(args.device))
    problems += [
        f"{name}: {value} must be at least 1"
        for name in ("limit", "batch_size")
        if (value := getattr(args, name)) is not None and value < 1
    ]
    if problems:
        raise UserError("; ".join(problems))
    try:
        model = MultiMAE.from_pretrained(args.checkpoint).to(torch.device(args.device))
    except CheckpointError as err:
        raise UserError(str(err)) from err
    if model.spec.heads:
        return downstream_report(model, str(args.checkpoint), args.data, limit=args.limit)
    if not model.spec.outputs:
        raise UserError(
            f"{args.checkpoint} has neither decoders nor heads, so there is nothing to score"
        )
    return reconstruction_report(
        model,
        str(args.checkpoint),
        args.data,
        visible=args.visible,
        batch_size=args.batch_size,
        limit=args.limit,
    )


def write(report: Report, numbers: Path | None, picture: Path | None) -> None:
    """Write the numbers and the heat maps, if requested.

    Raises:
        UserError: A file cannot be written, or matplotlib is missing.
    """
    for path in filter(None, (numbers, picture)):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path == numbers:
                text = json.dumps(report.to_json(), indent=2) + "\n"
                path.write_text(text, encoding="utf-8")
            else:
                report_figure(report).savefig(path)
        except ModuleNotFoundError as err:
            raise UserError("--picture needs matplotlib: pip install 'multimae[plots]'") from err
        except (OSError, ValueError) as err:
            raise UserError(f"{path}: cannot be written ({err})") from err
        print(path)


if __name__ == "__main__":
    run_command(main)
