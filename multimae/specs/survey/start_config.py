"""Write a start config: a YAML file with the lines that a user has to think about."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from multimae.specs.errors import UserError
from multimae.specs.modalities import VOID, VOID_NAMES
from multimae.specs.survey.data_survey import DataSurvey
from multimae.specs.survey.guess_modality import Guess, declared


@dataclass(frozen=True)
class StartTask:
    """A task that configs are written for.

    Attributes:
        script: Script that trains.
        title: Name of the task.
        target: Content of the truth: ``label_map``, ``depth_map``, ``classes``; empty: the inputs.
        size: Largest input size, that of the published recipe.
        batch: Largest batch size.
        steps: Steps that the number of epochs is chosen for.
        epochs: Least and largest number of epochs.
        head: Output adapter of dense tasks.
    """

    script: str
    title: str
    target: str
    size: int
    batch: int
    steps: int
    epochs: tuple[int, int]
    head: str = ""

    @property
    def pretrains(self) -> bool:
        """Whether the task is pre-training."""
        return not self.target


_FEW, _MANY = (20, 200), (100, 1600)
START_TASKS = {
    "pretrain": StartTask(
        "run_pretraining_multimae.py", "Pre-training", "", 224, 64, 100_000, _MANY
    ),
    "semseg": StartTask(
        "run_finetuning_semseg.py",
        "Semantic segmentation",
        "label_map",
        512,
        8,
        20_000,
        _FEW,
        "convnext",
    ),
    "depth": StartTask(
        "run_finetuning_depth.py", "Depth estimation", "depth_map", 256, 16, 20_000, _FEW, "dpt"
    ),
    "cls": StartTask("run_finetuning_cls.py", "Classification", "classes", 224, 64, 20_000, _FEW),
}
_LEARNING_RATES = {"tiny": 1e-3, "small": 7e-4, "base": 3e-4}
_FINETUNING_RATES = {"tiny": 5e-4, "small": 2e-4, "base": 1e-4}
_HEAD_WIDTHS = {"tiny": 1024, "small": 2048, "base": 6144}
_PUBLISHED_TOKENS = 6  # visible: one of so many, 98 of 588
_MAX_BAD_SAMPLES = 100
_EVALUATIONS = 100  # at most twice as many
_MM = 1000.0


@dataclass(frozen=True)
class Line:
    """One option: key, value or block of modalities, and why it has this value."""

    key: str
    value: Any
    comment: str = ""


Section = tuple[str, list[Line]]
_KEPT = Line("keep_ckpts", 3, "full checkpoints kept beside the best weights; 0: all")


def write_start_config(survey: DataSurvey, task: str, path: Path) -> str:
    """Text of a config that trains on the surveyed data.

    Args:
        survey: What the data folder holds.
        task: Key of :data:`START_TASKS`.
        path: File that the text is for.

    Raises:
        UserError: The folder has no data for the task.
    """
    plan = _Plan(survey, START_TASKS[task])
    sections = [
        ("data", [*_data_lines(plan), *plan.target_lines()]),
        ("model", list(_model_lines(plan))),
        ("optimisation", list(_optimisation_lines(plan))),
        ("run", [Line("output_dir", f"output/{path.stem}", "checkpoints and logs"), _KEPT]),
    ]
    head = [
        f"# {plan.task.title} of {survey.root}. Every line is a guess from {plan.looked_at} files.",
        f"#   {command(task, path)}",
    ]
    return "\n".join([*head, *(line for section in sections for line in _format(section))]) + "\n"


def command(task: str, path: Path) -> str:
    """Command that runs the config."""
    return f"python {START_TASKS[task].script} --config {shlex.quote(str(path))}"


class _Plan:
    """Choices that several lines share."""

    def __init__(self, survey: DataSurvey, task: StartTask) -> None:
        self.survey, self.task = survey, task
        images, labels = survey.of_role("image"), survey.of_role("labels")
        self.target: Guess | None = None
        if task.target == "label_map":
            self.target = _required(labels, survey, "label maps (single-channel PNG of class ids)")
        elif task.target == "depth_map":
            depth = [g for g in images if g.content == "depth_map"] or [
                g for g in images if g.files.channels == 1 and g.content != "photo"
            ]
            self.target = _required(depth, survey, "depth maps (a folder named depth)")
        inputs = [g for g in images if g is not self.target]
        classifies = task.target == "classes"
        if task.pretrains or (not inputs and classifies):
            inputs = [*images, *labels]
        self.inputs = inputs
        _required(inputs, survey, "input images")
        if classifies and len(survey.classes) < 2:
            raise UserError(
                f"{survey.root}: no class folders. Classification needs MODALITY/CLASS/NAME, or "
                "CLASS/NAME."
            )
        sides = [min(size) for g in self.inputs for size in g.files.sizes]
        self.side = int(np.median(sides))
        self.patch = 16 if self.side >= 64 else 8
        largest = self.side // self.patch * self.patch
        self.size = max(self.patch, min(task.size, largest))
        samples = survey.complete
        self.model = "tiny" if samples < 20_000 else "small" if samples < 200_000 else "base"
        half = max(1, samples // 2)
        self.batch = max(1 + classifies, min(task.batch, 2 ** (half.bit_length() - 1)))
        self.steps = max(1, samples // self.batch)
        low, high = task.epochs
        self.epochs = int(np.clip(task.steps // self.steps, low, high))

    @property
    def looked_at(self) -> int:
        """Number of files that were read."""
        return sum(len(g.files.sizes) for g in self.survey.guesses)

    def target_lines(self) -> Iterator[Line]:
        """Lines about labels or depth."""
        if self.target is not None:
            is_depth = self.task.target == "depth_map"
            yield from _depth_lines(self.target) if is_depth else _label_lines(self.target)
        elif not self.task.pretrains:
            names = self.survey.classes
            shown = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
            yield Line("data_set", "image_folder", "a folder per class")
            yield Line("nb_classes", len(names), f"class folders: {shown}")


def _required(found: Sequence[Guess], survey: DataSurvey, what: str) -> Guess:
    if not found:
        names = ", ".join(f"{g.files.folder} ({g.role})" for g in survey.guesses)
        raise UserError(f"{survey.root} has no {what}; its folders: {names}.")
    return found[0]


def _data_lines(plan: _Plan) -> Iterator[Line]:
    survey, names = plan.survey, "-".join(g.name for g in plan.inputs)
    count = f"{survey.complete} samples"
    yield Line("data_path", str(survey.root), count)
    if survey.val is None:
        yield Line("eval_data_path", None, "no val/ beside train/: set it, or nothing is scored")
    else:
        every = max(1, plan.epochs // _EVALUATIONS)
        yield Line("eval_data_path", str(survey.val), "scored every eval_freq epochs")
        yield Line("eval_freq", every, f"{-(-plan.epochs // every)} evaluations in the run")
    if not plan.task.pretrains and survey.test is not None:
        yield Line("test_data_path", str(survey.test), "scored once, by --test")
    yield Line("in_domains", names, "inputs; remove those that you will not have in use")
    if plan.task.pretrains:
        yield Line("out_domains", names, "reconstructed; usually the inputs")
    missing = survey.samples - survey.complete
    if missing and plan.task.pretrains:
        yield Line("missing", "allow", f"{missing} of {survey.samples} samples lack a file")
    elif missing:
        reason = f"{missing} of {survey.samples} samples lack a file and are skipped"
        yield Line("on_bad_sample", "skip", reason)
        if missing > _MAX_BAD_SAMPLES:
            yield Line("max_bad_samples", missing, "as many as lack a file")
    if any(g.content == "depth_map" for g in plan.inputs):
        reason = "per image, by its middle 80 %: independent of the unit"
        yield Line("standardize_depth", True, reason)
    validity = [g for g in survey.of_role("validity")]
    is_depth = plan.task.target == "depth_map"
    scalar = is_depth or any(g.content == "depth_map" for g in plan.inputs)
    if validity and scalar and plan.task.head:
        yield Line("use_mask_valid", True, "mask_valid marks pixels with depth")
    fields = dict(declared(plan.inputs))
    if not plan.task.pretrains:
        fields = {name: _without_loss(rows) for name, rows in fields.items()}
    if is_depth and plan.target is not None:
        fields |= _target_fields(plan.target)
    fields = {name: rows for name, rows in fields.items() if rows}
    if fields:
        yield Line("modalities", fields)


def _without_loss(rows: Mapping[str, tuple[Any, str]]) -> dict[str, tuple[Any, str]]:
    """Fields that matter without a decoder."""
    is_labels = "kind" in rows
    return {key: row for key, row in rows.items() if key != "loss" or is_labels}


def _label_lines(target: Guess) -> Iterator[Line]:
    yield Line("label_folder", target.files.folder, "label maps, by the names of the images")
    if target.files.suffix:
        yield Line("label_suffix", target.files.suffix, "ending of their names")
    yield from _class_lines(target)
    yield Line("dataset_name", "own", "no names of a published data set")


def _class_lines(target: Guess) -> Iterator[Line]:
    ids, names = target.ids(), target.class_names
    if target.label_map:
        yield Line("label_map", *target.fields["label_map"])
        yield Line("num_classes", *target.fields["num_classes"])
        return
    has_void = bool(names) and names[0].strip().lower() in VOID_NAMES and names[1:] != ()
    count = len(names) if names else max(2, ids[-1] + 1 if ids else 2)
    if has_void:
        count -= 1
        yield Line("num_classes", count, f"names in classes.json, without '{names[0]}'")
        yield Line("seg_reduce_zero_label", True, f"id 0, '{names[0]}', is void")
    else:
        void = f"; {VOID} is void" if VOID in target.files.found_ids else ""
        shown = ", ".join(map(str, ids[:8])) + (f", ... {ids[-1]}" if len(ids) > 8 else "")
        source = "names in classes.json" if names else f"ids found: {shown}{void}"
        yield Line("num_classes", min(count, VOID - 1), source)
        reason = f"id 0 is a class. If it means unlabelled: true, and num_classes: {count - 1}"
        yield Line("seg_reduce_zero_label", False, reason)


def _depth_lines(target: Guess) -> Iterator[Line]:
    unit = target.unit or (0.001, "")
    yield Line("depth_folder", target.files.folder, "true depth; 0 and no_data are ignored")
    reason = f"files in {unit[1]}, by their median" if unit[1] else "CHECK: the unit is unknown"
    yield Line("depth_scale", unit[0], f"metres per stored unit; {reason}")
    values = target.files.pixels
    values = values[np.isfinite(values) & (values > 0)]
    scale = unit[0] * _MM
    mean, std = (float(values.mean()), float(values.std())) if values.size else (1.0, 1.0)
    where = f"in mm, of {len(target.files.sizes)} files"
    yield Line("depth_mean", _round(mean * scale), where)
    yield Line("depth_std", _round(max(std * scale, 1e-3)), where)
    yield Line("max_train_images", None, "all; the default is NYUv2's 1000")
    yield Line("max_val_images", None, "all; the default is 100")


def _target_fields(target: Guess) -> dict[str, dict[str, tuple[Any, str]]]:
    kept = {key: row for key, row in target.fields.items() if key in ("storage", "no_data")}
    if "storage" not in kept and kept.get("no_data", (0,))[0] == 0:
        return {}
    return {"target_depth": kept}


def _model_lines(plan: _Plan) -> Iterator[Line]:
    task, size, patch = plan.task, plan.size, plan.patch
    kind = "pretrain_multimae" if task.pretrains else "multivit"
    reason = f"for {plan.survey.complete} samples; published weights are of size base"
    if not task.pretrains:
        reason = "the size of the weights of --finetune; published: base"
    yield Line("model", f"{kind}_{plan.model}", reason)
    if not task.pretrains:
        yield Line("finetune", "", "pre-trained weights; empty: from scratch")
    yield Line("input_size", size, f"images are {plan.side} pixels on the shorter side (median)")
    yield Line("patch_size", patch, f"{(size // patch) ** 2} patches per modality")
    if task.pretrains:
        tokens = (size // patch) ** 2 * len(plan.inputs)
        yield Line(
            "num_encoded_tokens",
            max(1, tokens // _PUBLISHED_TOKENS),
            f"visible patches: a sixth of {tokens}, as published",
        )
    if task.head:
        yield Line("output_adapter", task.head, "head")
        if task.head != "dpt":
            yield Line("decoder_dim", _HEAD_WIDTHS[plan.model], "width of the head")
        names = "-".join(g.name for g in plan.inputs)
        yield Line("decoder_main_tasks", names, "inputs whose tokens the head reads")


def _optimisation_lines(plan: _Plan) -> Iterator[Line]:
    epoch = f"{plan.steps} steps per epoch on one GPU"
    yield Line("epochs", plan.epochs, f"{plan.epochs * plan.steps} steps")
    yield Line("batch_size", plan.batch, f"per GPU, as memory allows; {epoch}")
    if plan.task.pretrains:
        rate = _LEARNING_RATES[plan.model]
        reason = f"per 256 images: {rate:g} at this batch. Lower it if the loss is unstable"
        yield Line("blr", _round(rate * 256 / plan.batch), reason)
    else:
        rate = _FINETUNING_RATES[plan.model]
        yield Line("lr", rate, "try a third and three times of it")
    warmup = min(plan.epochs * plan.steps // 20, plan.steps - 1, 1000)
    if warmup > 0:
        yield Line("warmup_steps", warmup, "5 % of the run, at most an epoch")
    else:
        yield Line("warmup_epochs", 0, "the run is short")


def _format(section: Section) -> Iterator[str]:
    title, lines = section
    yield from ("", f"# {title}")
    for line in lines:
        if line.key != "modalities":
            yield _formatted(f"{line.key}: {_value(line.value)}", line.comment)
            continue
        yield "modalities:"
        for name, rows in line.value.items():
            yield f"  {name}:"
            for key, (value, comment) in rows.items():
                yield _formatted(f"    {key}: {_value(value)}", comment)


def _formatted(text: str, comment: str) -> str:
    return f"{text}  # {comment}" if comment else text


def _value(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=1 << 16)
    return text.removesuffix("\n").removesuffix("\n...")


def _round(value: float) -> float:
    return float(f"{value:.4g}")
