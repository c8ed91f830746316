"""Convert ViT weights (timm's names, also MAE's) to MultiMAE's.

    python tools/vit2multimae_converter.py --vit_ckpt_path vit.pth --multimae_ckpt_path multimae.pth

The class token becomes the global token. The final norm, the head and MAE's decoder are unused
(listed). ``*.safetensors`` is written as such, anything else as ``torch.save({"model": ...})``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from multimae.cli import convert, exit_code
from multimae.specs.arguments import CommandParser
from multimae.specs.commands import run_command


def main(argv: Sequence[str] | None = None) -> int:
    """Convert; returns 0, or 2 if the input or the flags are bad."""
    parser = CommandParser("Convert ViT weights (timm's names, also MAE's) to MultiMAE's.")
    parser.add_argument("--vit_ckpt_path", required=True, help="weights of a ViT")
    parser.add_argument("--multimae_ckpt_path", required=True, help="file to write")
    parser.add_argument("--modality", default="rgb", help="input that the patches belong to")
    args = parser.parse_args(argv)
    return exit_code(
        lambda: convert(
            args.vit_ckpt_path, args.multimae_ckpt_path, to="multimae", modality=args.modality
        )
    )


if __name__ == "__main__":
    run_command(main)
