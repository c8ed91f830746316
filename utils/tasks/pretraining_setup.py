"""From the pre-training configuration to data, task, optimiser and evaluators."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from multimae.multimae import MultiMAE
from multimae.nn.masking import sample_masks
from multimae.specs.build import DecoderOptions
from multimae.specs.modalities import Modality, select
from multimae.specs.spec import ModelSpec
from utils.checkpoint.start_weights import REPORT, load_pretrained
from utils.config.options import split_names
from utils.config.pretrain_options import PretrainConfig
from utils.data.batches import collate
from utils.data.dataset import MultiModalDataset, build_eval_loader, check_samples
from utils.data.folders import MultiModalFolder, read_class_names
from utils.data.samplers import EvalBatchSampler
from utils.data.statistics import resolve_statistics, statistics_warnings
from utils.data.transforms import EvalTransform, JointTransform, TrainTransform
from utils.distributed.world import World
from utils.logs.errors import UserError
from utils.logs.logger import RunLogger
from utils.tasks.base import Evaluator
from utils.tasks.pretraining import MaskOptions, PretrainTask
from utils.tasks.reconstruction import (
    PictureEvaluator,
    Predictor,
    ReconstructionEvaluator,
    TrivialPredictor,
    spread_complete_keys,
    spread_keys,
)
from utils.training.optim import build_optimizer, norm_and_bias, param_groups
from utils.training.precision import Precision

# Samples read before training, so that bad files end a run at once and not in its first epoch.
CHECKED_SAMPLES = 256


def modality_rows(cfg: PretrainConfig) -> tuple[list[Modality], list[Modality]]:
    """Rows of the inputs and of the targets, with the data's class names for legends.

    Statistics that are to be computed come from the training set.
    """
    names = read_class_names(cfg.data.data_path) if cfg.data.data_path else None
    table = {
        name: replace(m, class_names=names)
        if m.is_labels and names and not m.class_names and len(names) == m.num_classes
        else m
        for name, m in cfg.table().items()
    }
    wanted = select(table, tuple(dict.fromkeys((*cfg.in_names, *cfg.out_names))))
    rows = {m.name: m for m in resolve_statistics(wanted, cfg.data.data_path)}
    return select(rows, cfg.in_names), select(rows, cfg.out_names)


def build_train_set(cfg: PretrainConfig, rows: Sequence[Modality]) -> MultiModalDataset:
    """Augmented samples of ``--data_path``, checked; bad ones are left out if the options say."""
    transform = TrainTransform(
        rows,
        cfg.model.input_size,
        scale=cfg.data.crop_scale,
        ratio=cfg.data.crop_ratio,
        hflip=cfg.data.hflip,
    )
    return _dataset(cfg, cfg.data.data_path, rows, transform, train=True)


def build_eval_set(cfg: PretrainConfig, path: str, rows: Sequence[Modality]) -> MultiModalDataset:
    """Samples of ``path`` as they are, resized, centre crop; at most ``--max_val_images``."""
    transform = EvalTransform(rows, cfg.model.input_size)
    return _dataset(cfg, path, rows, transform, limit=cfg.data.max_val_images)


def model_spec(
    cfg: PretrainConfig, inputs: Sequence[Modality], outputs: Sequence[Modality]
) -> ModelSpec:
    """Description of the model that the options ask for."""
    model = cfg.model
    return ModelSpec(
        name=model.model,
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        patch_size=model.patch_size,
        image_size=model.input_size,
        num_global_tokens=model.num_global_tokens,
        decoder=DecoderOptions(
            model.decoder_dim,
            model.decoder_depth,
            model.decoder_num_heads,
            model.decoder_use_task_queries,
            model.decoder_use_xattn,
        ),
    )


def build_task(
    cfg: PretrainConfig, inputs: Sequence[Modality], outputs: Sequence[Modality]
) -> PretrainTask:
    """Model and losses, to be computed as the run section says.

    Raises:
        UserError: Options that no model can be built from.
    """
    model_options = cfg.model
    try:
        spec = model_spec(cfg, inputs, outputs)
        model = MultiMAE.from_spec(spec, drop_path_rate=model_options.drop_path)
        side = model_options.input_size
        layout = model.layout({m.name: (side // m.stride, side // m.stride) for m in inputs})
        sample_masks(layout, 1, model_options.num_encoded_tokens, model_options.alphas)
    except ValueError as err:
        raise UserError(str(err)) from err
    model.checkpoint_gradients(on=cfg.runtime.grad_checkpointing)
    task = PretrainTask(
        model,
        inputs,
        outputs,
        model_options.patch_size,
        MaskOptions(
            model_options.num_encoded_tokens,
            model_options.alphas,
            model_options.sample_tasks_uniformly,
            cfg.runtime.seed,
        ),
        balancer=cfg.optim.task_balancer,
        loss_on_unmasked=model_options.loss_on_unmasked,
        fp32_output_adapters=split_names(model_options.fp32_output_adapters),
    )
    if cfg.runtime.compile:
        task.compile_step()
    return task


def start_from(
    cfg: PretrainConfig, task: PretrainTask, train_set: MultiModalDataset
) -> Iterator[str]:
    """Load ``--init_weights``; what became of every key goes to ``weights.txt``.

    Yields:
        A summary, and a warning for every modality whose data is not what the weights know.

    Raises:
        UserError: The file is missing, unreadable or fits nothing.
    """
    start, output_dir = cfg.start, cfg.checkpoint.output_dir
    if not start.init_weights:
        return
    report = load_pretrained(task.model, start.weights, heads=True, flag="--init_weights")
    yield report.summary()
    if output_dir and Path(output_dir).is_dir():
        (Path(output_dir) / REPORT).write_text(report.details() + "\n", encoding="utf-8")
    yield from statistics_warnings(start.init_weights, train_set)


def train_parts_of(model: MultiMAE, outputs: Sequence[Modality], names: Sequence[str]) -> None:
    """Freeze all but the input adapters, decoders and task embeddings of some modalities."""
    own = {m.name for m in outputs if m.data_name in names}
    parts = tuple(
        [f"input_adapters.{n}." for n in names] + [f"output_adapters.{n}." for n in sorted(own)]
    )
    for key, parameter in model.named_parameters():
        new_embedding = ".task_embeddings." in key and key.rpartition(".")[2] in names
        parameter.requires_grad_(
            parameter.requires_grad and (key.startswith(parts) or new_embedding)
        )


def optimizer_for(cfg: PretrainConfig, task: PretrainTask) -> torch.optim.Optimizer:
    """Optimiser over model and balancer; the balancer has its own learning-rate scale."""
    optim = cfg.optim
    if cfg.start.train_only:
        train_parts_of(task.model, task.outputs, split_names(cfg.start.train_only))
    groups = param_groups(
        task.named_parameters(),
        optim.weight_decay,
        lr_scale=lambda name: optim.balancer_lr_scale if name.startswith("balancer.") else 1.0,
        no_decay=None if optim.decay_norm_bias else norm_and_bias,
        decoder_decay=optim.decoder_decay,
    )
    return build_optimizer(
        groups, optim.opt, optim.blr, betas=optim.opt_betas, eps=optim.opt_eps,
        momentum=optim.momentum,
    )  # fmt: skip


def build_evaluators(
    cfg: PretrainConfig,
    task: PretrainTask,
    train_set: MultiModalDataset,
    world: World,
    precision: Precision,
    logger: RunLogger,
) -> list[Evaluator]:
    """Masked losses and pictures on ``--eval_data_path``; none without it.

    The trivial predictor is fitted on ``train_set`` without its augmentation.
    """
    path = cfg.data.eval_data_path
    if not path:
        return []
    eval_set = build_eval_set(cfg, path, task.rows)
    plain_train_set = MultiModalDataset(
        train_set.folder, eval_set.transform, skip_bad=train_set.skip_bad
    )
    batch_size = cfg.data.eval_batch_size or cfg.runtime.batch_size
    sampler = EvalBatchSampler(len(eval_set), batch_size, rank=world.rank, world_size=world.size)
    loader = build_eval_loader(
        eval_set, sampler, num_workers=cfg.data.num_workers, pin_memory=cfg.data.pin_mem
    )
    keys = spread_keys(plain_train_set)
    trivial = TrivialPredictor(
        task,
        (
            collate([plain_train_set[key] for key in keys[i : i + batch_size]])
            for i in range(0, len(keys), batch_size)
        ),
    )
    predictor = Predictor(task, world.device, precision)
    evaluators: list[Evaluator] = [ReconstructionEvaluator(predictor, loader, trivial, world)]
    if cfg.log.num_pictures and world.is_main:
        pictured = spread_complete_keys(eval_set, cfg.log.num_pictures)
        batch = collate([eval_set[key] for key in pictured])
        indices = [key.index for key in pictured]
        evaluators.append(PictureEvaluator(predictor, batch, indices, logger))
    return evaluators


def _dataset(
    cfg: PretrainConfig,
    path: str,
    rows: Sequence[Modality],
    transform: JointTransform,
    *,
    train: bool = False,
    limit: int | None = None,
) -> MultiModalDataset:
    skip_bad, allow_missing = train and cfg.data.skips_bad, cfg.data.missing == "allow"
    folder = MultiModalFolder(path, rows, skip_incomplete=skip_bad, allow_missing=allow_missing)
    _check_patterns(cfg, folder)
    dataset = MultiModalDataset(
        folder,
        transform,
        seed=cfg.runtime.seed,
        patch_size=cfg.model.patch_size,
        limit=limit,
        skip_bad=skip_bad,
        fast_decode=train and cfg.data.fast_decode,
    )
    check_samples(dataset, CHECKED_SAMPLES, cfg.data.max_bad_samples)
    return dataset


def _check_patterns(cfg: PretrainConfig, folder: MultiModalFolder) -> None:
    """Whether every sample has inputs for the budget of visible patches.

    Raises:
        UserError: One has not, with its name.
    """
    size, budget = cfg.model.input_size, cfg.model.num_encoded_tokens
    inputs = [m for m in folder.modalities if m.name in cfg.in_names]
    sides = {m.name: max(1, (m.patch_size or cfg.model.patch_size) // m.stride) for m in inputs}
    tokens = {m.name: (size // m.stride // sides[m.name]) ** 2 for m in inputs}
    for names, index in folder.patterns().items():
        count = sum(tokens[name] for name in names if name in tokens)
        if count < min(budget, sum(tokens.values())):
            raise UserError(
                f"{folder.root}: sample '{folder.name(index)}' has only {', '.join(names)}: "
                f"{count} patches of inputs, fewer than num_encoded_tokens {budget}. Lower "
                "that, or remove such samples."
            )
