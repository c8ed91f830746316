"""Time a fixed pre-training task from start to finish, to a masked loss named in advance.

    python tools/speedrun.py short                 # tiny at 96 pixels, for two CPU cores
    python tools/speedrun.py small -- --compile    # small or base at 224 pixels, on a GPU
    python tools/speedrun.py base -- --compile --batch_size 512

The task is the data, the model, the evaluation and the target; everything after `--` may change the
recipe. The time is that of the whole process, with start, compilation and evaluation; rendering the
rooms is not timed. A run counts if the sum of the masked losses of its last evaluation is at most
the target. The row is added to docs/notes/SPEEDRUN.md.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from multimae.specs.arguments import CommandParser
from multimae.specs.commands import run_command
from multimae.specs.errors import UserError
from tools.common.origin import commit, processor

REPO = Path(__file__).resolve().parents[1]
TABLE = REPO / "docs/notes/SPEEDRUN.md"
OUTPUTS = ("rgb", "depth", "semseg", "norm_rgb")


@dataclass(frozen=True)
class Form:
    """A task and its first recipe.

    Attributes:
        model: Encoder.
        side: Image side in pixels.
        train: Rendered training samples.
        val: Rendered evaluation samples.
        target: Largest sum of masked losses that counts.
        recipe: Flags that a run may change.
    """

    model: str
    side: int
    train: int
    val: int
    target: float
    recipe: tuple[str, ...]

    @property
    def task(self) -> tuple[str, ...]:
        """Flags that belong to the task."""
        return (
            *("--model", f"pretrain_multimae_{self.model}", "--input_size", str(self.side)),
            *("--in_domains", "rgb-depth-semseg", "--out_domains", "rgb-depth-semseg"),
            *("--modalities", "{semseg: {num_classes: 41}}", "--standardize_depth"),
            *("--num_encoded_tokens", str(3 * (self.side // 16) ** 2 // 6)),
            *("--no_loss_on_unmasked", "--max_val_images", str(self.val), "--patch_size", "16"),
            *("--alphas", "1", "--no_sample_tasks_uniformly", "--extra_norm_pix_loss"),
            *("--init_weights", "none"),
        )


_GPU = (
    *("--batch_size", "256", "--epochs", "100", "--warmup_epochs", "5", "--blr", "3e-4"),
    *("--clip_grad", "3", "--num_workers", "14", "--precision", "bf16", "--crop_scale", "0.4", "1"),
)
FORMS = {
    "short": Form(
        "tiny", 96, 800, 96, 4.0,
        ("--batch_size", "16", "--epochs", "16", "--warmup_steps", "80", "--blr", "1.12e-2",
         "--decoder_dim", "96", "--decoder_depth", "1", "--decoder_num_heads", "4",
         "--crop_scale", "0.8", "1", "--clip_grad", "3", "--num_workers", "0"),
    ),
    "small": Form("small", 224, 8000, 400, 3.6, _GPU),
    "base": Form("base", 224, 8000, 400, 3.4, _GPU),
}  # fmt: skip
"""Targets of `small` and `base` are to be reached for the first time."""


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; 1 if the target is missed."""
    given = list(sys.argv[1:] if argv is None else argv)
    cut = given.index("--") if "--" in given else len(given)
    parser = CommandParser(__doc__)
    parser.add_argument("form", choices=FORMS)
    parser.add_argument("--work", type=Path, default=REPO / "output/speedrun", help="folder")
    parser.add_argument("--workers", type=int, default=2, help="processes that render")
    parser.add_argument("--table", type=Path, default=TABLE, help="where the row is added")
    parser.add_argument("--note", default="", help="what is special about this run")
    args = parser.parse_args(given[:cut])
    form, changes = FORMS[args.form], given[cut + 1 :]
    data = args.work / f"rooms-{form.side}-{form.train}"
    render(form, data, args.workers)
    out = args.work / f"{args.form}-{time.strftime('%Y%m%d-%H%M%S')}"
    started = commit("+")
    minutes = timed_run(form, data, out, changes)
    loss = last_loss(out / "log.jsonl")
    reached = loss <= form.target
    note = "; ".join(filter(None, ["" if reached else "missed", args.note, " ".join(changes)]))
    row = (
        f"| {time.strftime('%Y-%m-%d')} | {started} | {args.form} | {hardware()} | {minutes:.1f} "
        f"| {loss:.3f} | {form.target:g} | {note} |"
    )
    print(row)
    with args.table.open("a", encoding="utf-8") as file:
        file.write(row + "\n")
    return int(not reached)


def render(form: Form, data: Path, workers: int) -> None:
    """Render the rooms, once."""
    if not (data / "val").is_dir():
        sizes = ("--train", str(form.train), "--val", str(form.val), "--size", str(form.side))
        command = ("tools/make_rooms.py", "--out", str(data), *sizes, "--workers", str(workers))
        _run(command)


def timed_run(form: Form, data: Path, out: Path, changes: Sequence[str]) -> float:
    """Minutes of the training process."""
    run = (
        *("--data_path", str(data / "train"), "--eval_data_path", str(data / "val")),
        *("--output_dir", str(out), "--eval_freq", "1000", "--num_pictures", "0", "--no_save_ckpt"),
    )
    begin = time.perf_counter()
    _run(("run_pretraining_multimae.py", *form.recipe, *changes, *form.task, *run))
    return (time.perf_counter() - begin) / 60


def last_loss(log: Path) -> float:
    """Sum of the masked losses of the last evaluation."""
    rows = [json.loads(line) for line in log.read_text("utf-8").splitlines()]
    last = [row for row in rows if row["kind"] == "eval"][-1]
    return float(sum(last[f"eval/{name}"] for name in OUTPUTS))


def hardware() -> str:
    """GPUs, or processor and cores."""
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}"
    return f"CPU, {processor()}"


def _run(command: Sequence[str]) -> None:
    done = subprocess.run([sys.executable, *command], cwd=REPO)
    if done.returncode:
        raise UserError(f"{command[0]} ended with code {done.returncode}: see its message above")


if __name__ == "__main__":
    run_command(main)
