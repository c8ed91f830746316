"""What is each modality worth to a checkpoint? Scores on every subset of its inputs.

    python tools/modality_report.py weights/multimae-tiny_rooms.safetensors examples/rooms

A pre-trained checkpoint reconstructs every output from every subset of its inputs, a fine-tuned one
is scored on its task. DATA holds all modalities of the model (MODALITY/SUB-FOLDER/NAME), and the
truth of its heads. Prints tables; ``--json`` and ``--picture`` also write numbers and heat maps.
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
from multimae.weights.files import CheckpointError
from tools.subset_report.finetuned import downstream_report
from tools.subset_report.pretrained_subsets import VISIBLE, reconstruction_report
from tools.subset_report.report_picture import report_picture
from tools.subset_report.scores import Report
from utils.distributed.devices import default_device, device_problems
from utils.logs.errors import UserError, exit_on_user_error


def main(argv: Sequence[str] | None = None) -> None:
    """Score, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path, help="weights, pre-trained or fine-tuned")
    parser.add_argument("data", type=Path, help="folder with one sub-folder per modality")
    parser.add_argument("--json", type=Path, help="file for the numbers")
    parser.add_argument("--picture", type=Path, help="file for the heat maps, *.png")
    parser.add_argument(
        "--visible", type=float, default=VISIBLE, help="share of visible patches, masked (1/6)"
    )
    parser.add_argument("--limit", type=int, help="samples, spread evenly; default: all")
    parser.add_argument("--batch_size", type=int, default=16, help="samples at a time (16)")
    parser.add_argument("--device", default=default_device(), help="cuda, cuda:N, cpu or mps")
    args = parser.parse_args(argv)
    report = make_report(args)
    print(report.table())
    write(report, args.json, args.picture)


def make_report(args: argparse.Namespace) -> Report:
    """Score the checkpoint by what it is.

    Raises:
        UserError: Options, weights or data that do not fit.
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
        raise UserError(f"{args.checkpoint} has neither decoders nor heads: nothing to score")
    return reconstruction_report(
        model,
        str(args.checkpoint),
        args.data,
        visible=args.visible,
        batch_size=args.batch_size,
        limit=args.limit,
    )


def write(report: Report, numbers: Path | None, picture: Path | None) -> None:
    """Files of the numbers and of the heat maps, where they are asked for.

    Raises:
        UserError: They cannot be written.
    """
    for path in filter(None, (numbers, picture)):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path == numbers:
                text = json.dumps(report.to_json(), indent=2) + "\n"
                path.write_text(text, encoding="utf-8")
            else:
                report_picture(report).save(path, optimize=True)
        except (OSError, ValueError) as err:
            raise UserError(f"{path}: cannot be written ({err})") from err
        print(path)


if __name__ == "__main__":
    with exit_on_user_error():
        main()
