"""Write a model as an ONNX file for any batch and image size, and check it against torch.

    python tools/export_onnx.py weights/multimae-tiny_rooms.safetensors encoder.onnx --inputs rgb

`multimae/inference/export.py` documents inputs and outputs. The metadata holds the model's
description (normalisation, class names) under `multimae`. Needs `pip install 'multimae[export]'`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from multimae.cli import add_onnx_arguments, exit_code, export_graph
from multimae.specs.arguments import CommandParser
from multimae.specs.commands import run_command


def main(argv: Sequence[str] | None = None) -> int:
    """Export; returns 0, 1 if the file computes something else, or 2 for bad input or flags."""
    parser = CommandParser(__doc__)
    parser.add_argument("weights", help="weight file, model folder or hub repository")
    parser.add_argument("target", type=Path, help="file to write, *.onnx")
    add_onnx_arguments(parser)
    args = parser.parse_args(argv)
    if args.target.suffix != ".onnx":
        parser.error(f"{args.target}: the name must end in .onnx")
    return exit_code(
        lambda: export_graph(args.weights, args.target, args.what, args.inputs, args.pool)
    )


if __name__ == "__main__":
    run_command(main)
