"""Write the weights of a run in half precision, with the description of the model.

    python tools/export_weights.py output/demo/model.safetensors multimae-tiny.safetensors

``MultiMAE.from_pretrained(FILE)`` builds the model and loads them; ``--finetune FILE`` takes them,
too.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from multimae.weights.load import extract_state_dict, read_checkpoint
from multimae.weights.pretrained import read_spec, save_model


def main(argv: Sequence[str] | None = None) -> int:
    """Convert; returns 0, or 2 if the input or the flags are bad."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, help="model.safetensors of a run")
    parser.add_argument("target", type=Path, help="file to write, *.safetensors")
    parser.add_argument("--float32", action="store_true", help="keep all digits")
    args = parser.parse_args(argv)
    if args.target.suffix != ".safetensors":
        parser.error(f"{args.target}: the name must end in .safetensors")
    try:
        spec = read_spec(args.source)
        state = extract_state_dict(read_checkpoint(args.source))
        args.target.parent.mkdir(parents=True, exist_ok=True)
        save_model(state, spec, args.target, half=not args.float32)
    except (ValueError, OSError) as err:
        print(f"error: {err}", file=sys.stderr)
        return 2
    megabytes = args.target.stat().st_size / 1e6
    print(f"{args.target}: {spec.name}, {len(state)} tensors, {megabytes:.1f} MB")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
