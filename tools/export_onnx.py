"""Write a model as an ONNX file for any batch and image size, and check it against torch.

    python tools/export_onnx.py weights/multimae-tiny_rooms.safetensors encoder.onnx --inputs rgb

`multimae/export.py` says what goes in and comes out; the file's metadata has the description of the
model (normalisation, class names) under `multimae`. Needs `pip install 'multimae[export]'`.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from multimae import MultiMAE
from multimae.inference.encode import Pool
from multimae.inference.export import export_onnx, onnx_differences, require
from multimae.inference.programs import What

TOLERANCE = 1e-3


def main(argv: Sequence[str] | None = None) -> int:
    """Export; returns 0, 1 if the file computes something else, or 2 for bad input or flags."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("weights", help="weight file, model folder or hub repository")
    parser.add_argument("target", type=Path, help="file to write, *.onnx")
    parser.add_argument(
        "--what",
        choices=get_args(What),
        help="default: predict if the model has heads, else encoder",
    )
    parser.add_argument("--inputs", help="modalities that will be given, rgb-depth; default: all")
    parser.add_argument("--pool", choices=get_args(Pool), help="of encoder: one vector per sample")
    args = parser.parse_args(argv)
    if args.target.suffix != ".onnx":
        parser.error(f"{args.target}: the name must end in .onnx")
    inputs = args.inputs.split("-") if args.inputs else None
    try:
        require("onnx", "onnxscript", "onnxruntime")
        model = MultiMAE.from_pretrained(args.weights)
        args.target.parent.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecations inside the exporter
            export_onnx(model, args.target, args.what, inputs=inputs, pool=args.pool)
        differences = onnx_differences(model, args.target)
    except (ValueError, OSError, ModuleNotFoundError) as err:
        print(f"error: {err}", file=sys.stderr)
        return 2
    print(f"{args.target}: {model.spec.name}, {args.target.stat().st_size / 1e6:.1f} MB")
    print("largest difference from torch")
    for size, outputs in differences.items():
        print(f"  {size}: " + ", ".join(f"{name} {d:.1e}" for name, d in outputs.items()))
    if not all(d <= TOLERANCE for outputs in differences.values() for d in outputs.values()):
        print(f"error: file and model differ by more than {TOLERANCE:.0e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
