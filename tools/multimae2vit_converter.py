"""Convert MultiMAE weights to a ViT's (timm's names).

    python tools/multimae2vit_converter.py --multimae_ckpt_path multimae.pth --vit_ckpt_path vit.pth

The global token becomes the class token. MultiMAE has no final norm: in timm, set ``model.norm`` to
``nn.Identity()`` or train it. ``*.safetensors`` is written as such, anything else as
``torch.save({"model": ...})``.
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
    parser = CommandParser("Convert MultiMAE weights to a ViT's (timm's names).")
    parser.add_argument(
        "--multimae_ckpt_path", required=True, help="weights of a MultiMAE or MultiViT"
    )
    parser.add_argument("--vit_ckpt_path", required=True, help="file to write")
    parser.add_argument("--modality", default="rgb", help="image input to keep")
    parser.add_argument(
        "--keep_global_tokens",
        action="store_true",
        help="keep all global tokens under that name, and a pos_embed of the patches only",
    )
    args = parser.parse_args(argv)
    return exit_code(
        lambda: convert(
            args.multimae_ckpt_path,
            args.vit_ckpt_path,
            to="vit",
            modality=args.modality,
            keep_global_tokens=args.keep_global_tokens,
        )
    )


if __name__ == "__main__":
    run_command(main)
