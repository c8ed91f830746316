"""Add a modality to a finished checkpoint, as input and as target.

    python tools/graft_modality.py weights/multimae-tiny_rooms.safetensors \
        --add cfgs/pretrain/rooms/normals.yaml --clone rgb \
        --data_path data/rooms/train --eval_data_path data/rooms/val --output_dir output/graft

``--add`` is a YAML file with the new rows (a config's ``modalities:`` section; rows that the
checkpoint knows are passed over). ``--clone NAME`` starts the new parts from those of an input that
resembles it. First the new parts alone are trained, then everything, at a low rate; both are runs
of run_pretraining_multimae.py, whose configs and logs lie in the output folder, and the same
command goes on where it stopped. At the end the masked losses of the old modalities are compared
with the checkpoint's on the same samples and patches: 1 is returned if one grew by more than 3 %,
or if the new modality is no better than a constant. Further flags go to the script
(``--precision fp32``).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools.grafting.train_graft import GraftOptions, check, prepare_graft, train, write_outcome
from utils.logs.errors import UserError, exit_on_user_error


def main(argv: Sequence[str] | None = None) -> int:
    """Graft, train, check; 1 if the check fails."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    defaults = GraftOptions(Path(), Path(), Path())
    parser.add_argument("checkpoint", type=Path, help="pre-trained weights")
    parser.add_argument("--add", type=Path, required=True, help="YAML with the new rows")
    parser.add_argument("--clone", help="input whose parts the new ones start from")
    parser.add_argument("--data_path", type=Path, required=True, help="training samples")
    parser.add_argument("--eval_data_path", type=Path, required=True, help="samples of the check")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder of the results")
    parser.add_argument("--max_val_images", type=int, help="samples of the check; default: all")
    parser.add_argument("--num_encoded_tokens", type=int, help="default: a sixth of all patches")
    for name, kind, text in (
        ("warmup_steps", int, "updates of the new parts alone"),
        ("steps", int, "updates of everything"),
        ("batch_size", int, "samples per update"),
        ("warmup_lr", float, "peak learning rate of the warm-up"),
        ("lr", float, "peak learning rate of the rest"),
    ):
        default = getattr(defaults, name)
        parser.add_argument(f"--{name}", type=kind, default=default, help=f"{text} ({default:g})")
    args, more = parser.parse_known_args(argv)
    if min(args.warmup_steps, args.steps) < 0 or args.batch_size < 1:
        raise UserError("--warmup_steps and --steps are 0 or more, --batch_size 1 or more")
    options = GraftOptions(
        args.data_path,
        args.eval_data_path,
        args.output_dir,
        args.warmup_steps,
        args.steps,
        args.batch_size,
        args.warmup_lr,
        args.lr,
        args.num_encoded_tokens,
        tuple(more),
    )
    old, grown, rows = prepare_graft(args.checkpoint, args.add, args.clone, options)
    weights = train(grown.spec, rows, options)
    outcome = check(old, weights, options, args.max_val_images)
    write_outcome(outcome, args.output_dir / "check.json")
    print(f"\n{outcome.table()}\n\nweights: {weights}")
    for problem in outcome.problems():
        print(f"check: {problem}", file=sys.stderr)
    return 1 if outcome.problems() else 0


if __name__ == "__main__":
    with exit_on_user_error():
        sys.exit(main())
