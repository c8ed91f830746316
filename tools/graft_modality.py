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
import dataclasses
import json
import math
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import yaml

from multimae.images.folders import MultiModalFolder
from multimae.inference.graft import graft, size_of_new_parts
from multimae.multimae import MultiMAE
from multimae.specs.coercion import did_you_mean
from multimae.specs.errors import UserError, exit_on_user_error
from multimae.specs.modalities import Modality, make_table
from multimae.specs.spec import ModelSpec
from multimae.weights.files import CheckpointError
from multimae.weights.pretrained import save_model
from tools.subset_report.pretrained_subsets import subset_losses
from utils.config.parse import load_yaml
from utils.data.statistics import resolve_statistics
from utils.logs.paths import RunPaths

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "run_pretraining_multimae.py"
GRAFTED, WARM, FINAL = "grafted.safetensors", "warmup", "continued"
WORST = 0.03
"""Largest share by which the masked loss of an old modality may grow."""


@dataclass(frozen=True)
class GraftOptions:
    """How to train; steps are updates of ``batch_size`` samples.

    Attributes:
        data: Training samples with all old and new modalities.
        eval_data: Samples for the check.
        output_dir: Folder of everything that is written.
        warmup_steps: Updates of the new parts alone.
        steps: Updates of everything.
        batch_size: Samples per update.
        warmup_lr: Peak learning rate of the warm-up.
        lr: Peak learning rate of the rest.
        visible: Visible patches; a sixth of all if ``None``.
        more: Further flags of the script.
    """

    data: Path
    eval_data: Path
    output_dir: Path
    warmup_steps: int = 300
    steps: int = 600
    batch_size: int = 16
    warmup_lr: float = 2e-3
    lr: float = 3e-5
    visible: int | None = None
    more: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """Masked losses before and after, on the same samples and masks.

    Attributes:
        before: Old outputs -> loss of the checkpoint.
        after: Old outputs -> loss of the grafted model from the same inputs.
        new: New outputs -> (loss from all inputs, loss from the old inputs alone, trivial loss).
    """

    before: Mapping[str, float]
    after: Mapping[str, float]
    new: Mapping[str, tuple[float, float, float]]

    def problems(self) -> list[str]:
        """What the graft did not reach."""
        out = [
            f"'{name}' forgot: masked loss {self.before[name]:.4f} -> {self.after[name]:.4f}, "
            f"{self.after[name] / self.before[name] - 1:+.1%}"
            for name in self.before
            if self.after[name] > (1 + WORST) * self.before[name]
        ]
        out += [
            f"'{name}' is no better than the trivial predictor: {loss:.4f} against {trivial:.4f}"
            for name, (loss, _, trivial) in self.new.items()
            if loss >= trivial
        ]
        return out

    def table(self) -> str:
        """For a terminal."""
        lines = [f"{'modality':<16}{'before':>10}{'after':>10}{'change':>10}{'trivial':>10}"]
        for name, old in self.before.items():
            change = self.after[name] / old - 1
            lines.append(f"{name:<16}{old:>10.4f}{self.after[name]:>10.4f}{change:>+10.1%}")
        for name, (loss, cross, trivial) in self.new.items():
            lines.append(f"{name + ' (new)':<16}{'':>10}{loss:>10.4f}{'':>10}{trivial:>10.4f}")
            lines.append(f"{'  not given':<16}{'':>10}{cross:>10.4f}{'':>10}{trivial:>10.4f}")
        return "\n".join(lines)


def read_rows(path: Path, spec: ModelSpec) -> list[Modality]:
    """Rows of a YAML file that a model lacks: a config with ``modalities:``, or rows alone.

    Raises:
        UserError: Not such a file, bad rows, or none that is new.
    """
    try:
        content = load_yaml(path.read_text(encoding="utf-8"))
    except OSError as err:
        raise UserError(f"--add {path}: {err.strerror or err}") from err
    except (ValueError, yaml.YAMLError) as err:
        raise UserError(f"--add {path}: not YAML ({err})") from err
    declared = content.get("modalities", content) if isinstance(content, Mapping) else None
    if not isinstance(declared, Mapping) or not declared:
        raise UserError(f"--add {path}: expected modalities: {{name: {{field: value}}}}")
    known = {m.name for m in spec.modalities}
    new = {str(name): row for name, row in declared.items() if str(name) not in known}
    if not new:
        raise UserError(
            f"--add {path}: the checkpoint knows {', '.join(map(str, declared))} already"
        )
    try:
        table = make_table(new)
    except ValueError as err:
        raise UserError(f"--add {path}: {err}") from err
    return [table[name] for name in new]


def prepare_graft(
    checkpoint: Path, add: Path, clone: str | None, options: GraftOptions
) -> tuple[MultiMAE, MultiMAE, list[Modality]]:
    """The old model, the grown one (saved as ``grafted.safetensors``), and the new rows.

    Raises:
        UserError: Weights, rows or data that do not fit.
    """
    try:
        old = MultiMAE.from_pretrained(checkpoint)
    except CheckpointError as err:
        raise UserError(str(err)) from err
    rows = resolve_statistics(read_rows(add, old.spec), options.data)
    names = [m.name for m in old.spec.inputs]
    if clone is not None and clone not in names:
        raise UserError(
            f"--clone: unknown modality '{clone}'{did_you_mean(clone, names)} "
            f"(inputs of the checkpoint: {', '.join(names)})"
        )
    try:
        grown, report, cloned = graft(old, rows, clone=clone, source=str(checkpoint))
    except ValueError as err:
        raise UserError(str(err)) from err
    options.output_dir.mkdir(parents=True, exist_ok=True)
    save_model(grown.state_dict(), grown.spec, options.output_dir / GRAFTED)
    print(report.summary())
    if cloned:
        print(f"  {len(cloned)} of the new ones start from '{clone}'")
    size = size_of_new_parts(grown, [m.name for m in rows])
    print(f"{', '.join(m.name for m in rows)}: {size / 1e6:.2f} M parameters of their own")
    return old, grown, rows


def train(spec: ModelSpec, rows: Sequence[Modality], options: GraftOptions) -> Path:
    """Both phases; the final weights.

    Raises:
        UserError: A phase failed; its own message is on the screen.
    """
    out = options.output_dir
    start = out / GRAFTED
    for phase, steps, lr, only in (
        (WARM, options.warmup_steps, options.warmup_lr, "-".join(m.name for m in rows)),
        (FINAL, options.steps, options.lr, ""),
    ):
        folder = out / phase
        final = RunPaths(folder).model
        if steps and not final.exists():
            config = run_config(spec, options, steps, lr)
            config |= {"init_weights": str(start), "train_only": only, "output_dir": str(folder)}
            path = out / f"{phase}.yaml"
            path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
            command = [sys.executable, str(SCRIPT), "--config", str(path), *options.more]
            code = subprocess.run(command, check=False, cwd=Path.cwd()).returncode
            if code:
                raise UserError(f"{phase}: {' '.join(command)} ended with status {code}")
        start = final if steps else start
    return start


def run_config(spec: ModelSpec, options: GraftOptions, steps: int, lr: float) -> dict[str, Any]:
    """Options of the pre-training script for a model of this description."""
    copies = [m for m in spec.outputs if m.norm_pix and m.source]
    plain = [m.name for m in spec.outputs if m not in copies]
    layout = [(spec.image_size // (m.patch_size or spec.patch_size)) ** 2 for m in spec.inputs]
    rows = {m.name: _plain(m) for m in spec.modalities}
    return {
        "data_path": str(options.data),
        "in_domains": "-".join(m.name for m in spec.inputs),
        "out_domains": "-".join(plain),
        "extra_norm_pix_loss": bool(copies),
        "modalities": rows,
        "model": spec.name,
        "input_size": spec.image_size,
        "patch_size": spec.patch_size,
        "num_global_tokens": spec.num_global_tokens,
        "num_encoded_tokens": options.visible or max(1, sum(layout) // 6),
        "decoder_dim": spec.decoder.dim,
        "decoder_depth": spec.decoder.depth,
        "decoder_num_heads": spec.decoder.num_heads,
        "decoder_use_task_queries": spec.decoder.use_task_queries,
        "decoder_use_xattn": spec.decoder.use_xattn,
        "crop_scale": [0.4, 1.0],
        "epochs": _epochs(spec, options, steps),
        "max_steps": steps,
        "schedule_to_max_steps": True,
        "batch_size": options.batch_size,
        "blr": lr * 256 / options.batch_size,
        "warmup_epochs": 0,
        "warmup_steps": max(1, steps // 10),
        "clip_grad": 3.0,
        "num_workers": 0,
        "log_every": 20,
    }


def check(old: MultiMAE, weights: Path, options: GraftOptions, limit: int | None) -> Outcome:
    """Score both models on the same samples and masks.

    Raises:
        UserError: Samples that cannot be read.
    """
    new = MultiMAE.from_pretrained(weights)
    names = tuple(m.name for m in old.spec.inputs)
    before, _ = subset_losses(old, options.eval_data, names, limit=limit)
    after, _ = subset_losses(new, options.eval_data, names, limit=limit)
    every = tuple(m.name for m in new.spec.inputs)
    full, trivial = subset_losses(new, options.eval_data, every, limit=limit)
    outputs = [m.name for m in old.spec.outputs]
    added = [m.name for m in new.spec.outputs if m.name not in outputs]
    return Outcome(
        {n: before[n] for n in outputs},
        {n: after[n] for n in outputs},
        {n: (full[n], after[n], trivial[n]) for n in added},
    )


def write_outcome(outcome: Outcome, path: Path) -> None:
    """As JSON."""
    path.write_text(json.dumps(dataclasses.asdict(outcome), indent=2) + "\n", encoding="utf-8")


def _plain(m: Modality) -> dict[str, Any]:
    """All fields of a row as YAML values."""
    fields = dataclasses.asdict(m)
    del fields["name"]
    return {k: list(v) if isinstance(v, tuple) else v for k, v in fields.items()}


def _epochs(spec: ModelSpec, options: GraftOptions, steps: int) -> int:
    """Passes over the samples that hold so many steps: the schedule spans them."""
    samples = len(MultiModalFolder(options.data, spec.modalities))
    if samples < options.batch_size:
        raise UserError(f"{options.data} has {samples} samples, fewer than --batch_size")
    return math.ceil(steps / (samples // options.batch_size))


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
