"""Compare short pre-training runs on complete data and on data with missing modalities.

    python tools/missing_study.py data/rooms/train data/rooms/val --absent 0.3 --steps 500 --seeds 3

Drops every file of TRAIN with the given probability, but keeps at least one modality per sample
(in a folder of symlinks). Both runs train for the same number of steps and are evaluated on the
complete VAL. Prints the masked loss of every modality and the difference in standard deviations
over seeds. Unknown flags are passed to the pre-training script.
"""

from __future__ import annotations

import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from multimae.specs.arguments import CommandParser
from multimae.specs.commands import run_command
from multimae.specs.errors import UserError
from tools.report.run_log import read_log

SCRIPT = Path(__file__).resolve().parents[1] / "run_pretraining_multimae.py"
BATCH_SIZE = 4
MODALITIES = ("rgb", "depth", "semseg")
CONFIG = (
    *("--standardize_depth", "--modalities", "{semseg: {num_classes: 41}}"),
    *("--model", "pretrain_multimae_tiny", "--input_size", "64", "--num_encoded_tokens", "16"),
    *("--decoder_dim", "64", "--decoder_depth", "1", "--decoder_num_heads", "4"),
    *("--blr", "3.2e-2", "--warmup_steps", "50", "--clip_grad", "3.0"),
    *("--num_workers", "0", "--num_pictures", "0", "--log_every", "1", "--no_save_ckpt"),
    *("--missing", "allow", "--eval_freq", "1000000"),
)


def link_with_missing(source: Path, target: Path, missing: float, seed: int) -> float:
    """Symlink the files of a folder, dropping some at random; return the missing fraction."""
    rng = np.random.default_rng(seed)
    names = sorted(p.relative_to(source / MODALITIES[0]).with_suffix("")
                   for p in (source / MODALITIES[0]).rglob("*.*"))  # fmt: skip
    dropped = 0
    for name in names:
        keep = rng.random(len(MODALITIES)) >= missing
        if not keep.any():
            keep[rng.integers(len(MODALITIES))] = True
        dropped += int((~keep).sum())
        for modality, kept in zip(MODALITIES, keep, strict=True):
            (path,) = (source / modality / name.parent).glob(f"{name.name}.*")
            link = target / modality / name.parent / path.name
            link.parent.mkdir(parents=True, exist_ok=True)
            if kept:
                os.symlink(path.resolve(), link)
    return dropped / (len(names) * len(MODALITIES))


def run(
    train: Path, val: Path, out: Path, seed: int, steps: int, extra_flags: Sequence[str]
) -> dict[str, float]:
    """Run pre-training once; return the losses of the last evaluation.

    Raises:
        UserError: The run failed, or a loss was NaN or Inf.
    """
    count = len(
        {
            p.relative_to(train / m).with_suffix("")
            for m in MODALITIES
            for p in (train / m).rglob("*.*")
        }
    )
    command = [
        *(sys.executable, str(SCRIPT), *CONFIG, "--data_path", str(train)),
        *("--eval_data_path", str(val), "--output_dir", str(out), "--seed", str(seed)),
        *("--epochs", str(math.ceil(steps / (count // BATCH_SIZE))), "--max_steps", str(steps)),
        *("--batch_size", str(BATCH_SIZE)),
        *extra_flags,
    ]
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    if result.returncode:
        raise UserError(f"{' '.join(command)} failed:\n{result.stderr[-2000:]}")
    log = read_log(out)
    losses = [r["loss"] for r in log if r["kind"] == "train"]
    if len(losses) != steps or not all(map(math.isfinite, losses)):
        raise UserError(f"{out}: {len(losses)} of {steps} steps logged, or a loss is NaN or Inf")
    return {k: v for k, v in log[-1].items() if k.startswith(("eval/", "trivial/"))}


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = CommandParser(__doc__, passes_unknown=True)
    parser.add_argument("train", type=Path, help="complete training set")
    parser.add_argument("val", type=Path, help="complete evaluation set")
    parser.add_argument("--absent", type=float, default=0.3, help="fraction of files to drop")
    parser.add_argument("--steps", type=int, default=500, help="steps per run")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    args, extra_flags = parser.parse_known_args(argv)
    scores: dict[str, list[dict[str, float]]] = {"complete": [], "incomplete": []}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(args.seeds):
            partial = Path(folder) / f"data-{seed}"
            share = link_with_missing(args.train, partial, args.absent, seed)
            for kind, train in (("complete", args.train), ("incomplete", partial)):
                out = Path(folder) / f"{kind}-{seed}"
                scores[kind].append(run(train, args.val, out, seed, args.steps, extra_flags))
                print(f"seed {seed}, {kind}: {scores[kind][-1]}", flush=True)
    print(f"\n{share:.0%} missing, {args.steps} steps, all losses finite\n{table(scores)}")


def table(scores: dict[str, list[dict[str, float]]]) -> str:
    """Mean and standard deviation of every masked loss, for both data sets."""
    lines = [
        f"{'masked loss':<12}{'complete':>18}{'incomplete':>18}{'difference':>14}{'baseline':>9}"
    ]
    for key in (k for k in scores["complete"][0] if k.startswith("eval/")):
        a, b = ([s[key] for s in runs] for runs in scores.values())
        means = statistics.mean(a), statistics.mean(b)
        spreads = [statistics.stdev(v) if len(v) > 1 else math.nan for v in (a, b)]
        spread = math.sqrt(sum(s * s for s in spreads) / 2)
        cells = [f"{m:.4f} +- {s:.4f}" for m, s in zip(means, spreads, strict=True)]
        name = key.partition("/")[2]
        baseline = scores["complete"][0][f"trivial/{name}"]
        difference = f"{(means[1] - means[0]) / spread:+.1f} sd" if spread else "-"
        lines.append(f"{name:<12}{cells[0]:>18}{cells[1]:>18}{difference:>14}{baseline:>9.4f}")
    return "\n".join(lines)


if __name__ == "__main__":
    run_command(main)
