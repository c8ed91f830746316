"""Evaluators of pre-training: masked losses on fixed masks, a constant baseline, pictures."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from multimae.criterion import MaskedMSELoss
from multimae.images.folders import spread_indices
from multimae.inference.meters import MeanMeter
from multimae.nn.masking import TokenMasks
from multimae.nn.network import PatchPredictions
from multimae.nn.tokens import TokenLayout, unpatchify
from multimae.output_adapters.spatial import SpatialOutputAdapter
from multimae.specs.errors import UserError, bullet_list
from multimae.specs.modalities import Modality
from utils.config.pretrain_options import PretrainConfig
from utils.data.batches import Batch, collate
from utils.data.dataset import MultiModalDataset
from utils.data.samplers import SampleKey
from utils.distributed.world import World
from utils.logs.logger import RunLogger
from utils.tasks.base import Evaluator, PictureEvaluator, StepPosition
from utils.tasks.loaders import eval_loader, spread_keys
from utils.tasks.pretraining import PretrainTask, Targets, build_eval_set
from utils.training.seeding import MaskOptions
from utils.training.stepper import Precision

# Seed of the evaluation masks, the same for all runs.
EVAL_SEED = 20220904
MAX_BASELINE_SAMPLES = 1024
MAX_BASELINE_VALUES = 2**22


class ConstantBaseline:
    """Predicts a constant per channel or class.

    Images: the training set's mean for an MSE loss and median for an L1 loss. Labels: the training
    set's class frequencies.
    """

    def __init__(self, task: PretrainTask, batches: Iterable[Batch]) -> None:
        """Fit to the targets of ``batches`` of training samples.

        Raises:
            UserError: None of the samples can be read.
        """
        fits: dict[str, _Fit] = {m.name: _fit_of(m) for m in task.outputs}
        problems: list[str] = []
        for batch in batches:
            problems += [bad.problem for bad in batch.bad]
            if not len(batch):
                continue
            targets = Targets.from_batch(batch, task.modalities)
            for m in task.outputs:
                present = targets.present.get(m.data_name)
                if present is None or present.any():
                    fits[m.name].add(_target_values(task, m, targets))
        if not all(fit.seen for fit in fits.values()):
            raise UserError(f"none of the training samples can be read:\n{bullet_list(problems)}")
        self.constants = {name: fit.constants() for name, fit in fits.items()}

    def patches(self, name: str, like: Tensor) -> Tensor:
        """Prediction as patch vectors with the shape of ``like`` (B, N, C*P*P)."""
        constants = self.constants[name].to(like.device)
        per_channel = like.shape[-1] // len(constants)
        return constants.repeat_interleave(per_channel).expand(like.shape)


@dataclass(frozen=True)
class FixedMaskPredictor:
    """Runs a model with masks that depend only on sample indices."""

    task: PretrainTask
    device: torch.device
    precision: Precision

    def __call__(
        self, model: nn.Module, batch: Batch, indices: Sequence[int]
    ) -> tuple[Targets, PatchPredictions]:
        """Return targets and float32 predictions of a batch."""
        targets = Targets.from_batch(batch.to(self.device), self.task.modalities)
        with self.precision.autocast():
            out: PatchPredictions = model.forward_patches(  # type: ignore[operator]
                {m.name: targets.x[m.name] for m in self.task.inputs},
                lambda layout: fixed_masks(
                    layout, indices, self.task.masks, self.device, batch.present
                ),
                self.task.fp32_output_adapters,
            )
        patches = {n: p.float() for n, p in out.patches.items()}
        return targets, PatchPredictions(patches, out.masks, out.layout)


class ReconstructionEvaluator:
    """Masked loss per output on fixed masks, for the model and the constant baseline."""

    def __init__(
        self,
        predictor: FixedMaskPredictor,
        loader: DataLoader[Any],
        baseline: ConstantBaseline,
        world: World,
    ) -> None:
        """Evaluate ``loader``, this rank's shard of the evaluation set."""
        self.predictor, self.loader, self.baseline = predictor, loader, baseline
        self.world = world

    @torch.inference_mode()
    def run(self, model: nn.Module, step: int) -> dict[str, float]:
        """Return losses ``eval/{name}``, ``trivial/{name}`` (baseline), and ``gain/{name}``.

        ``gain/{name}`` is the :func:`relative_improvement`, ``gain`` its mean over the outputs.
        """
        task = self.predictor.task
        names = [m.name for m in task.outputs]
        meter = MeanMeter([f"{kind}/{n}" for n in names for kind in ("eval", "trivial")])
        first = self.world.rank
        for batch in self.loader:
            indices = [first + i * self.world.size for i in range(len(batch))]
            first += len(batch) * self.world.size
            targets, out = self.predictor(model, batch, indices)
            for m in task.outputs:
                mask = out.masks.task_masks.get(m.data_name)
                pred = out.patches[m.name]
                both = {"eval": pred, "trivial": self.baseline.patches(m.name, pred)}
                for kind, patches in both.items():
                    per_sample, counted = task.per_sample(m, patches, targets, mask)
                    meter.update({f"{kind}/{m.name}": per_sample}, counted)
        meter.load(self.world.sum(meter.state()))
        result = meter.compute()
        for n in names:
            result[f"gain/{n}"] = relative_improvement(result[f"eval/{n}"], result[f"trivial/{n}"])
        gains = [g for n in names if not math.isnan(g := result[f"gain/{n}"])]
        result["gain"] = sum(gains) / len(gains) if gains else math.nan
        return result


class ReconstructionPictures(PictureEvaluator):
    """Draws a fixed batch: input, masked, prediction and truth of every output."""

    def __init__(
        self, predictor: FixedMaskPredictor, batch: Batch, indices: Sequence[int], logger: RunLogger
    ) -> None:
        """Draw ``batch`` with the masks of ``indices``."""
        self.predictor, self.batch, self.indices = predictor, batch, indices
        self.logger = logger

    @torch.inference_mode()
    def run(self, model: nn.Module, step: int) -> dict[str, float]:
        """Log the picture; no metrics."""
        task = self.predictor.task
        targets, out = self.predictor(model, self.batch, self.indices)
        preds = {}
        for name, adapter in task.model.output_adapters.items():
            spatial = cast(SpatialOutputAdapter, adapter)
            grid = spatial.grid(out.layout)
            preds[name] = unpatchify(out.patches[name], grid, spatial.patch_size).cpu()
        from multimae.plotting.grids import reconstruction_grid

        image = reconstruction_grid(
            drawn_truth(targets, task.outputs),
            preds,
            {n: v.cpu() for n, v in out.masks.task_masks.items()},
            task.outputs,
            task.patch_size,
            max_rows=len(self.batch),
        )
        self.logger.picture("reconstructions", step, image)
        return {}


def drawn_truth(targets: Targets, outputs: Sequence[Modality]) -> dict[str, Tensor]:
    """Targets on the CPU, NaN where images have no value, which is drawn grey.

    Statistics of patches (``norm_pix``) need numbers: such a modality keeps its zeros.
    """
    truth = {name: x.cpu() for name, x in targets.x.items()}
    numbers = {m.data_name for m in outputs if m.is_labels or m.norm_pix}
    for name, valid in targets.valid.items():
        if name in truth and name not in numbers:
            truth[name] = truth[name].masked_fill(~valid.cpu(), math.nan)
    return truth


def fixed_masks(
    layout: TokenLayout,
    indices: Sequence[int],
    options: MaskOptions,
    device: torch.device,
    present: Mapping[str, Tensor] | None = None,
) -> TokenMasks:
    """Draw masks that depend only on sample indices and present modalities, on the CPU."""
    cpu = torch.device("cpu")
    fixed = MaskOptions(
        options.num_encoded_tokens, options.alphas, options.sample_tasks_uniformly, EVAL_SEED
    )
    drawn = [
        fixed.draw(
            layout,
            StepPosition(index, 0, 1),
            1,
            cpu,
            present={name: flags[i : i + 1].cpu() for name, flags in (present or {}).items()},
        )
        for i, index in enumerate(indices)
    ]
    return TokenMasks(
        torch.cat([m.ids_keep for m in drawn]).to(device),
        torch.cat([m.ids_restore for m in drawn]).to(device),
        {n: torch.cat([m.task_masks[n] for m in drawn]).to(device) for n in layout.slices},
    )


def spread_complete_keys(dataset: MultiModalDataset, count: int) -> list[SampleKey]:
    """As :func:`spread_keys`, preferring samples that have every modality."""
    keys = spread_keys(dataset, len(dataset))
    complete = [
        key for key in keys if all(dataset.has(key.index, m) for m in dataset.folder.modalities)
    ] or keys
    return [complete[i] for i in spread_indices(len(complete), count)]


def relative_improvement(loss: float, baseline: float) -> float:
    """``1 - loss / baseline``: 1 is perfect, 0 equals the baseline."""
    return 1.0 - loss / baseline if baseline > 0 else math.nan


def _target_values(task: PretrainTask, m: Modality, targets: Targets) -> Tensor:
    """Targets in the space of the loss, (C, values), or class counts."""
    x, valid = targets.x[m.name], targets.valid.get(m.data_name)
    present = targets.present.get(m.data_name)
    if present is not None:
        x, valid = x[present], None if valid is None else valid[present]
    if m.is_labels:
        return torch.bincount((x if valid is None else x[valid]).flatten())
    if valid is not None:
        known: Tensor = x.transpose(0, 1)[:, valid[:, 0]]
        return known
    loss = cast(MaskedMSELoss, task.losses[m.name])
    patches = loss.target_patches(x)
    channels = x.shape[1]
    values = patches.view(*patches.shape[:2], channels, patches.shape[2] // channels)
    return values.permute(2, 0, 1, 3).flatten(1)


class _Fit(ABC):
    """Streaming fit of the best constants of a modality."""

    seen = 0

    @abstractmethod
    def add(self, values: Tensor) -> None:
        """Add what :func:`_target_values` returns."""

    @abstractmethod
    def constants(self) -> Tensor:
        """(C,) constants."""


class _Mean(_Fit):
    """Mean per channel."""

    def __init__(self) -> None:
        self.total = torch.zeros((), dtype=torch.float64)

    def add(self, values: Tensor) -> None:
        self.total = self.total + values.double().sum(dim=1).cpu()
        self.seen += values.shape[1]

    def constants(self) -> Tensor:
        return (self.total / self.seen).float()


class _Median(_Fit):
    """Median per channel, of every ``stride``-th value, so that at most twice 2^22 are kept."""

    def __init__(self) -> None:
        self.kept: list[Tensor] = []
        self.stride = 1

    def add(self, values: Tensor) -> None:
        self.kept.append(values[:, -self.seen % self.stride :: self.stride].cpu())
        self.seen += values.shape[1]
        while sum(v.numel() for v in self.kept) > 2 * MAX_BASELINE_VALUES:
            self.kept = [torch.cat(self.kept, dim=1)[:, ::2]]
            self.stride *= 2

    def constants(self) -> Tensor:
        return torch.cat(self.kept, dim=1).median(dim=1).values


class _ClassLogFrequencies(_Fit):
    """Logits that give the class frequencies; classes that never occur count half a pixel."""

    def __init__(self, num_classes: int) -> None:
        self.counts = torch.zeros(num_classes, dtype=torch.float64)

    def add(self, values: Tensor) -> None:
        self.counts[: len(values)] += values.cpu()
        self.seen += 1

    def constants(self) -> Tensor:
        return (self.counts.clamp_min(0.5) / self.counts.sum()).log().float()


def _fit_of(m: Modality) -> _Fit:
    if m.is_labels:
        return _ClassLogFrequencies(m.num_classes)
    return _Median() if m.loss == "l1" else _Mean()


def build_evaluators(
    cfg: PretrainConfig,
    path: str,
    task: PretrainTask,
    train_set: MultiModalDataset,
    world: World,
    precision: Precision,
    logger: RunLogger,
) -> list[Evaluator]:
    """Build the evaluators of the images in ``path``.

    The constant baseline is fitted to ``train_set`` without augmentation.
    """
    eval_set = build_eval_set(cfg, path, task.modalities, world)
    plain_train_set = MultiModalDataset(
        train_set.folder, eval_set.transform, skip_bad=train_set.skip_bad
    )
    keys = spread_keys(plain_train_set, MAX_BASELINE_SAMPLES)
    size = cfg.data.eval_batch_size or cfg.runtime.batch_size
    parts = (keys[i : i + size] for i in range(0, len(keys), size))
    batches = (collate([plain_train_set[key] for key in part]) for part in parts)
    baseline = world.broadcast_from_main(lambda: ConstantBaseline(task, batches))
    predictor = FixedMaskPredictor(task, world.device, precision)
    loader = eval_loader(cfg, eval_set, world)
    evaluators: list[Evaluator] = [ReconstructionEvaluator(predictor, loader, baseline, world)]
    if cfg.log.num_pictures and world.is_main:
        pictured = spread_complete_keys(eval_set, cfg.log.num_pictures)
        batch = collate([eval_set[key] for key in pictured])
        indices = [key.index for key in pictured]
        evaluators.append(ReconstructionPictures(predictor, batch, indices, logger))
    return evaluators
