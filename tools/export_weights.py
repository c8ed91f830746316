"""Write the weights of a run in half precision, with the description of the model.

    python tools/export_weights.py output/demo/model.safetensors multimae-tiny.safetensors

``MultiMAE.from_pretrained(FILE)`` and ``--finetune FILE`` load them.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from multimae.cli import exit_code, export_weights
from multimae.specs.arguments import CommandParser
from multimae.specs.commands import run_command


def main(argv: Sequence[str] | None = None) -> int:
    """Convert; returns 0, or 2 if the input or the flags are bad."""
    parser = CommandParser(__doc__)
    parser.add_argument("source", type=Path, help="model.safetensors of a run")
    parser.add_argument("target", type=Path, help="file to write, *.safetensors")
    parser.add_argument("--float32", action="store_true", help="keep single precision")
    args = parser.parse_args(argv)
    if args.target.suffix != ".safetensors":
        parser.error(f"{args.target}: the name must end in .safetensors")
    return exit_code(lambda: export_weights(args.source, args.target, half=not args.float32))


if __name__ == "__main__":
    run_command(main)
