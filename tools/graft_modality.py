r"""Add a modality to a finished checkpoint, as input and as target.

    python tools/graft_modality.py weights/multimae-tiny_rooms.safetensors \
        --add cfgs/pretrain/rooms/normals.yaml --clone rgb \
        --data_path data/rooms/train --eval_data_path data/rooms/val --output_dir output/graft

``--add`` is a YAML file that declares the new modalities (a config's ``modalities:`` section; what
it says about modalities of the checkpoint must agree with it). ``--clone NAME`` initialises the new
adapters from those of a similar input. Training has two phases: the new adapters alone, then the
full model at a low learning rate. Both are runs of run_pretraining_multimae.py; their configs and
logs are in the output folder, and the same command resumes them. Finally, the masked losses of the
old modalities are compared with the checkpoint's on the same samples and masks. The exit code is 1
if one grew by more than 3 %, or if the new modality is no better than the constant baseline.
Unknown flags are passed to the training script (``--precision fp32``).
"""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import yaml

from multimae.images.folders import MultiModalFolder
from multimae.inference.graft import count_parameters_of, graft
from multimae.multimae import MultiMAE
from multimae.nn.tokens import as_size
from multimae.specs.arguments import CommandParser
from multimae.specs.coercion import did_you_mean
from multimae.specs.commands import run_command
from multimae.specs.errors import UserError, bullet_list
from multimae.specs.modalities import Modality, make_table
from multimae.specs.preparation import differing_fields
from multimae.specs.spec import ModelSpec
from multimae.weights.files import CheckpointError
from multimae.weights.pretrained import save_model
from tools.subset_report.pretrained_subsets import subset_losses
from utils.config.fields import options_of
from utils.config.options import FOLLOWS_SOURCE, DataOptions
from utils.config.parse import load_yaml
from utils.data.statistics import resolve_statistics
from utils.logs.paths import RunPaths

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "run_pretraining_multimae.py"
GRAFTED, WARM, FINAL = "grafted.safetensors", "warmup", "continued"
MAX_LOSS_INCREASE = 0.03
"""Largest accepted relative increase of an old modality's masked loss."""


@dataclass(frozen=True)
class GraftOptions:
    """Training options of both phases.

    Attributes:
        data: Training set with all old and new modalities.
        eval_data: Evaluation set of the final check.
        output_dir: Output folder.
        warmup_steps: Steps that train the new adapters alone.
        steps: Steps that train the full model.
        batch_size: Samples per step.
        warmup_lr: Peak learning rate of the first phase.
        lr: Peak learning rate of the second phase.
        visible: Visible patches; a sixth of all if ``None``.
        extra_flags: Further flags of the training script.
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
    extra_flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """Masked losses before and after, on the same samples and masks.

    Attributes:
        before: Old output -> loss of the checkpoint.
        after: Old output -> loss of the extended model, from the same inputs.
        new: New output -> (loss from all inputs, loss from the old inputs, constant baseline).
    """

    before: Mapping[str, float]
    after: Mapping[str, float]
    new: Mapping[str, tuple[float, float, float]]

    def problems(self) -> list[str]:
        """Failed checks, one line each."""
        out = [
            f"'{name}' got worse: masked loss {self.before[name]:.4f} -> {self.after[name]:.4f}, "
            f"{self.after[name] / self.before[name] - 1:+.1%}"
            for name in self.before
            if self.after[name] > (1 + MAX_LOSS_INCREASE) * self.before[name]
        ]
        out += [
            f"'{name}' does not beat the constant baseline: {loss:.4f} >= {baseline:.4f}"
            for name, (loss, _, baseline) in self.new.items()
            if loss >= baseline
        ]
        return out

    def table(self) -> str:
        """Losses as a text table."""
        lines = [f"{'modality':<16}{'before':>10}{'after':>10}{'change':>10}{'baseline':>10}"]
        for name, old in self.before.items():
            change = self.after[name] / old - 1
            lines.append(f"{name:<16}{old:>10.4f}{self.after[name]:>10.4f}{change:>+10.1%}")
        for name, (loss, cross, baseline) in self.new.items():
            lines.append(f"{name + ' (new)':<16}{'':>10}{loss:>10.4f}{'':>10}{baseline:>10.4f}")
            lines.append(f"{'  not an input':<16}{'':>10}{cross:>10.4f}{'':>10}{baseline:>10.4f}")
        return "\n".join(lines)


def read_new_modalities(path: Path, spec: ModelSpec) -> list[Modality]:
    """Read the modalities that a model lacks from a config, or from a ``modalities:`` mapping.

    Raises:
        UserError: Unreadable file, invalid modalities, no new ones, or fields that contradict the
            checkpoint's modalities.
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
    new = {str(name): fields for name, fields in declared.items() if str(name) not in known}
    if not new:
        raise UserError(f"--add {path}: the checkpoint already has {', '.join(map(str, declared))}")
    try:
        table = make_table(new)
        conflicts = [*_flag_contradictions(content, declared, spec)]
        conflicts += _contradictions(declared, spec)
        grown = [_as_source(table[name], new[name], spec, conflicts) for name in new]
    except ValueError as err:
        raise UserError(f"--add {path}: {err}") from err
    if conflicts:
        raise UserError(
            f"--add {path}: modalities of the checkpoint are declared otherwise:\n"
            + bullet_list(conflicts, limit=len(conflicts))
            + "\nRemove these fields: the checkpoint's modalities do not change. For other data, "
            "add a modality with another name."
        )
    return grown


def _flag_contradictions(
    content: Mapping[Any, Any], declared: Mapping[Any, Any], spec: ModelSpec
) -> Iterator[str]:
    """Fields of the checkpoint's modalities that options such as ``standardize_depth`` change."""
    options = options_of(DataOptions())
    values = {k: options[k].coerce(v) for k, v in content.items() if k in options}
    values.pop("modalities", None)
    data = dataclasses.replace(DataOptions(), **values, set_by_user=frozenset(values))
    table, trained = data.table(), {m.name: m for m in spec.modalities}
    for name, fields in data.fields_set().items():
        if name in trained:
            own = fields - set(declared.get(name) or ())
            for text in differing_fields(table[name], trained[name], own, spec.patch_size):
                yield f"{name}: {text}"


def _contradictions(declared: Mapping[Any, Any], spec: ModelSpec) -> list[str]:
    """Declared fields of the checkpoint's modalities that have other values there."""
    trained = {m.name: m for m in spec.modalities}
    known = {str(name): fields for name, fields in declared.items() if str(name) in trained}
    table = make_table(known, trained)
    return [
        f"{name}: {text}"
        for name, fields in known.items()
        for text in differing_fields(table[name], trained[name], fields, spec.patch_size)
    ]


def _as_source(
    m: Modality, declared: Mapping[str, Any], spec: ModelSpec, conflicts: list[str]
) -> Modality:
    """Prepare a target as its source in the checkpoint; other values go to ``conflicts``."""
    source = next((s for s in spec.inputs if s.name == m.source), None)
    if source is None:
        return m
    own = [field for field in FOLLOWS_SOURCE if field in declared]
    texts = differing_fields(m, source, own, spec.patch_size)
    conflicts += [f"{m.name} (source {source.name}): {text}" for text in texts]
    return dataclasses.replace(m, **{field: getattr(source, field) for field in FOLLOWS_SOURCE})


def prepare_graft(
    checkpoint: Path, add: Path, clone: str | None, options: GraftOptions
) -> tuple[MultiMAE, MultiMAE, list[Modality]]:
    """Extend the checkpoint and save it as ``grafted.safetensors``.

    Returns:
        The original model, the extended model, and the new modalities.

    Raises:
        UserError: Weights, modalities or data do not match.
    """
    try:
        old = MultiMAE.from_pretrained(checkpoint)
    except CheckpointError as err:
        raise UserError(str(err)) from err
    modalities = resolve_statistics(read_new_modalities(add, old.spec), [options.data])
    names = [m.name for m in old.spec.inputs]
    if clone is not None and clone not in names:
        raise UserError(
            f"--clone: unknown modality '{clone}'{did_you_mean(clone, names)} "
            f"(inputs of the checkpoint: {', '.join(names)})"
        )
    try:
        grown, report, cloned = graft(old, modalities, clone=clone, source=str(checkpoint))
    except ValueError as err:
        raise UserError(str(err)) from err
    options.output_dir.mkdir(parents=True, exist_ok=True)
    save_model(grown.state_dict(), grown.spec, options.output_dir / GRAFTED)
    print(report.summary())
    if cloned:
        print(f"  {len(cloned)} of the new tensors initialised from '{clone}'")
    size = count_parameters_of(grown, [m.name for m in modalities])
    print(f"{', '.join(m.name for m in modalities)}: {size / 1e6:.2f} M new parameters")
    return old, grown, modalities


def train(spec: ModelSpec, modalities: Sequence[Modality], options: GraftOptions) -> Path:
    """Run both training phases; return the path of the final weights.

    Raises:
        UserError: A phase failed; the script has printed why.
    """
    out = options.output_dir
    start = out / GRAFTED
    for phase, steps, lr, only in (
        (WARM, options.warmup_steps, options.warmup_lr, "-".join(m.name for m in modalities)),
        (FINAL, options.steps, options.lr, ""),
    ):
        folder = out / phase
        final = RunPaths(folder).model
        if steps and not final.exists():
            config = run_config(spec, options, steps, lr)
            config |= {"init_weights": str(start), "train_only": only, "output_dir": str(folder)}
            path = out / f"{phase}.yaml"
            path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
            command = [sys.executable, str(SCRIPT), "--config", str(path), *options.extra_flags]
            code = subprocess.run(command, check=False, cwd=Path.cwd()).returncode
            if code:
                raise UserError(f"{phase}: {' '.join(command)} exited with code {code}")
        start = final if steps else start
    return start


def run_config(spec: ModelSpec, options: GraftOptions, steps: int, lr: float) -> dict[str, Any]:
    """Config of the pre-training script for a model with this spec."""
    norm_pix = [m for m in spec.outputs if m.norm_pix and m.source]
    outputs = [m.name for m in spec.outputs if m not in norm_pix]
    height, width = as_size(spec.image_size)
    sides = [m.patch_size or spec.patch_size for m in spec.inputs]
    num_patches = [(height // side) * (width // side) for side in sides]
    return {
        "data_path": str(options.data),
        "in_domains": "-".join(m.name for m in spec.inputs),
        "out_domains": "-".join(outputs),
        "extra_norm_pix_loss": bool(norm_pix),
        "modalities": {m.name: _yaml_fields(m) for m in spec.modalities},
        "model": spec.name,
        "input_size": spec.image_size if isinstance(spec.image_size, int) else [height, width],
        "patch_size": spec.patch_size,
        "num_global_tokens": spec.num_global_tokens,
        "num_encoded_tokens": options.visible or max(1, sum(num_patches) // 6),
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
    """Evaluate both models on the same samples and masks.

    Raises:
        UserError: Samples cannot be read.
    """
    new = MultiMAE.from_pretrained(weights)
    names = tuple(m.name for m in old.spec.inputs)
    before, _ = subset_losses(old, options.eval_data, names, limit=limit)
    after, _ = subset_losses(new, options.eval_data, names, limit=limit)
    every = tuple(m.name for m in new.spec.inputs)
    full, baseline = subset_losses(new, options.eval_data, every, limit=limit)
    outputs = [m.name for m in old.spec.outputs]
    added = [m.name for m in new.spec.outputs if m.name not in outputs]
    return Outcome(
        {n: before[n] for n in outputs},
        {n: after[n] for n in outputs},
        {n: (full[n], after[n], baseline[n]) for n in added},
    )


def write_outcome(outcome: Outcome, path: Path) -> None:
    """Write the losses as JSON."""
    path.write_text(json.dumps(dataclasses.asdict(outcome), indent=2) + "\n", encoding="utf-8")


def _yaml_fields(m: Modality) -> dict[str, Any]:
    """All fields of a modality as YAML values."""
    fields = dataclasses.asdict(m)
    del fields["name"]
    return {k: list(v) if isinstance(v, tuple) else v for k, v in fields.items()}


def _epochs(spec: ModelSpec, options: GraftOptions, steps: int) -> int:
    """Number of epochs that contain ``steps`` steps."""
    samples = len(MultiModalFolder(options.data, spec.modalities))
    if samples < options.batch_size:
        raise UserError(f"{options.data} has {samples} samples, fewer than --batch_size")
    return math.ceil(steps / (samples // options.batch_size))


def main(argv: Sequence[str] | None = None) -> int:
    """Extend the model, train it, check it; return 1 if the check fails."""
    parser = CommandParser(__doc__, passes_unknown=True)
    defaults = GraftOptions(Path(), Path(), Path())
    parser.add_argument("checkpoint", type=Path, help="pre-trained weights")
    parser.add_argument("--add", type=Path, required=True, help="YAML with the new modalities")
    parser.add_argument("--clone", help="input to initialise the new adapters from")
    parser.add_argument("--data_path", type=Path, required=True, help="training set")
    parser.add_argument("--eval_data_path", type=Path, required=True, help="evaluation set")
    parser.add_argument("--output_dir", type=Path, required=True, help="output folder")
    group = parser.add_argument_group("samples")
    group.add_argument("--max_val_images", type=int, help="samples to evaluate; default: all")
    group.add_argument("--num_encoded_tokens", type=int, help="default: a sixth of all patches")
    group = parser.add_argument_group("training")
    for name, kind, text in (
        ("warmup_steps", int, "steps that train the new adapters alone"),
        ("steps", int, "steps that train the full model"),
        ("batch_size", int, "samples per step"),
        ("warmup_lr", float, "peak learning rate of the first phase"),
        ("lr", float, "peak learning rate of the second phase"),
    ):
        default = getattr(defaults, name)
        group.add_argument(f"--{name}", type=kind, default=default, help=text)
    args, more = parser.parse_known_args(argv)
    if min(args.warmup_steps, args.steps) < 0 or args.batch_size < 1:
        raise UserError("--warmup_steps and --steps must be >= 0, --batch_size >= 1")
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
    old, grown, modalities = prepare_graft(args.checkpoint, args.add, args.clone, options)
    weights = train(grown.spec, modalities, options)
    outcome = check(old, weights, options, args.max_val_images)
    write_outcome(outcome, args.output_dir / "check.json")
    print(f"\n{outcome.table()}\n\nweights: {weights}")
    for problem in outcome.problems():
        print(f"check: {problem}", file=sys.stderr)
    return 1 if outcome.problems() else 0


if __name__ == "__main__":
    run_command(main)
