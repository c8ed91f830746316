"""What do missing modalities cost? The same short runs on complete data and on data with holes.

    python tools/missing_study.py data/rooms/train data/rooms/val --absent 0.3 --steps 500 --seeds 3

Every file of a copy of TRAIN (of links) is left out with the given probability, at least one
modality staying per sample. Both trainings see as many samples, for as many steps, and are scored
on the complete VAL. Prints the masked loss of every modality, and how far the two are apart in
standard deviations over the seeds. Further flags go to the pre-training script.
"""

from __future__ import annotations

import argparse
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

from multimae.specs.errors import UserError, exit_on_user_error
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


def with_holes(source: Path, target: Path, absent: float, seed: int) -> float:
    """Links to the files of a folder, some left out; returns the share that is missing."""
    rng = np.random.default_rng(seed)
    names = sorted(p.relative_to(source / MODALITIES[0]).with_suffix("")
                   for p in (source / MODALITIES[0]).rglob("*.*"))  # fmt: skip
    missing = 0
    for name in names:
        there = rng.random(len(MODALITIES)) >= absent
        if not there.any():
            there[rng.integers(len(MODALITIES))] = True
        missing += int((~there).sum())
        for modality, kept in zip(MODALITIES, there, strict=True):
            (path,) = (source / modality / name.parent).glob(f"{name.name}.*")
            link = target / modality / name.parent / path.name
            link.parent.mkdir(parents=True, exist_ok=True)
            if kept:
                os.symlink(path.resolve(), link)
    return missing / (len(names) * len(MODALITIES))


def run(
    train: Path, val: Path, out: Path, seed: int, steps: int, more: Sequence[str]
) -> dict[str, float]:
    """Train and score once; the last evaluation.

    Raises:
        UserError: It failed, or a loss was not finite.
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
        *more,
    ]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    rows = read_log(out)
    losses = [r["loss"] for r in rows if r["kind"] == "train"]
    if len(losses) != steps or not all(map(math.isfinite, losses)):
        raise UserError(f"{out}: {len(losses)} of {steps} steps, not all of them finite")
    return {k: v for k, v in rows[-1].items() if k.startswith(("eval/", "trivial/"))}


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("train", type=Path, help="complete training rooms")
    parser.add_argument("val", type=Path, help="complete rooms to score on")
    parser.add_argument("--absent", type=float, default=0.3, help="share of files left out (0.3)")
    parser.add_argument("--steps", type=int, default=500, help="of each run (500)")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each kind (3)")
    args, more = parser.parse_known_args(argv)
    scores: dict[str, list[dict[str, float]]] = {"complete": [], "with holes": []}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(args.seeds):
            holes = Path(folder) / f"data-{seed}"
            share = with_holes(args.train, holes, args.absent, seed)
            for kind, train in (("complete", args.train), ("with holes", holes)):
                out = Path(folder) / f"{kind}-{seed}"
                scores[kind].append(run(train, args.val, out, seed, args.steps, more))
                print(f"seed {seed}, {kind}: {scores[kind][-1]}", flush=True)
    print(f"\n{share:.0%} missing, {args.steps} steps, all losses finite\n{table(scores)}")


def table(scores: dict[str, list[dict[str, float]]]) -> str:
    """Mean and standard deviation of every masked loss for both kinds of data."""
    lines = [f"{'masked loss':<12}{'complete':>18}{'with holes':>18}{'apart':>14}{'trivial':>9}"]
    for key in (k for k in scores["complete"][0] if k.startswith("eval/")):
        a, b = ([s[key] for s in runs] for runs in scores.values())
        means = statistics.mean(a), statistics.mean(b)
        spreads = [statistics.stdev(v) if len(v) > 1 else math.nan for v in (a, b)]
        spread = math.sqrt(sum(s * s for s in spreads) / 2)
        cells = [f"{m:.4f} +- {s:.4f}" for m, s in zip(means, spreads, strict=True)]
        name = key.partition("/")[2]
        trivial = scores["complete"][0][f"trivial/{name}"]
        apart = f"{(means[1] - means[0]) / spread:+.1f} sd" if spread else "-"
        lines.append(f"{name:<12}{cells[0]:>18}{cells[1]:>18}{apart:>14}{trivial:>9.4f}")
    return "\n".join(lines)


if __name__ == "__main__":
    with exit_on_user_error():
        main()
