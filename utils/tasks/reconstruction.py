"""How good the reconstructions are: masked losses on fixed masks, a trivial predictor, pictures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from multimae.criterion import MaskedMSELoss
from multimae.multimae import PatchPredictions
from multimae.nn.masking import TokenMasks
from multimae.nn.patches import unpatchify
from multimae.nn.tokens import TokenLayout
from multimae.output_adapters.spatial import SpatialOutputAdapter
from multimae.plotting.grids import reconstruction_grid
from multimae.specs.modalities import Modality
from utils.data.batches import Batch
from utils.data.dataset import MultiModalDataset
from utils.data.samplers import SampleKey
from utils.distributed.world import World
from utils.logs.errors import UserError, bullet_list
from utils.logs.logger import RunLogger
from utils.tasks.base import StepPosition
from utils.tasks.pretraining import MaskOptions, PretrainTask, Targets
from utils.training.metrics import MeanMeter
from utils.training.precision import Precision
from utils.training.state import Goal

# Masks of evaluation: the same for every run, whatever its seed.
EVAL_SEED = 20220904
MAX_TRIVIAL_SAMPLES = 1024
MAX_TRIVIAL_VALUES = 2**22


class TrivialPredictor:
    """Predicts the same for every pixel: what a model must beat.

    Images: per channel, the constant that minimises the loss over the training set (the mean for
    squared, the median for absolute error). Labels: the training set's class frequencies.
    """

    def __init__(self, task: PretrainTask, batches: Iterable[Batch]) -> None:
        """Fit on ``batches`` of training samples, as the task's losses see them.

        Raises:
            UserError: None of the samples can be read.
        """
        values: dict[str, list[Tensor]] = {m.name: [] for m in task.outputs}
        problems: list[str] = []
        for batch in batches:
            problems += [bad.problem for bad in batch.bad]
            if not len(batch):
                continue
            targets = Targets.of(batch, task.rows)
            for m in task.outputs:
                present = targets.present.get(m.data_name)
                if present is None or present.any():
                    values[m.name].append(_target_values(task, m, targets))
        if not all(values.values()):
            raise UserError(f"none of the training samples can be read:\n{bullet_list(problems)}")
        self.constants = {
            m.name: _class_log_frequencies(values[m.name], m.num_classes)
            if m.is_labels
            else _best_constants(values[m.name], median=m.loss == "l1")
            for m in task.outputs
        }

    def patches(self, name: str, like: Tensor) -> Tensor:
        """The prediction as patch vectors shaped ``like`` (B, N, C*P*P)."""
        constants = self.constants[name].to(like.device)
        per_channel = like.shape[-1] // len(constants)
        return constants.repeat_interleave(per_channel).expand(like.shape)


@dataclass(frozen=True)
class Predictor:
    """Runs a model on batches with masks fixed by the samples' indices."""

    task: PretrainTask
    device: torch.device
    precision: Precision

    def __call__(
        self, model: nn.Module, batch: Batch, indices: Sequence[int]
    ) -> tuple[Targets, PatchPredictions]:
        """Prepared inputs and targets, and float32 predictions for them."""
        targets = Targets.of(batch.to(self.device), self.task.rows)
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


GOAL = Goal("gain")
"""What says which checkpoint of a pre-training is best."""


class ReconstructionEvaluator:
    """Masked loss per output on fixed masks, beside the trivial predictor's."""

    def __init__(
        self,
        predictor: Predictor,
        loader: DataLoader[Any],
        trivial: TrivialPredictor,
        world: World,
    ) -> None:
        """Score on ``loader`` (this rank's share of the set, every sample once over all ranks)."""
        self.predictor, self.loader, self.trivial = predictor, loader, trivial
        self.world = world

    @torch.inference_mode()
    def run(self, model: nn.Module, step: int) -> dict[str, float]:
        """``eval/{name}``, ``trivial/{name}``, ``gain/{name}`` (share of that loss saved).

        ``gain`` is the mean of the gains: one number for all outputs, whatever their scales.
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
                for kind, patches in (
                    ("eval", pred),
                    ("trivial", self.trivial.patches(m.name, pred)),
                ):
                    per_sample, counted = task.per_sample(m, patches, targets, mask)
                    meter.update({f"{kind}/{m.name}": per_sample}, counted)
        meter.load(self.world.sum(meter.state()))
        result = meter.compute()
        for n in names:
            result[f"gain/{n}"] = gain(result[f"eval/{n}"], result[f"trivial/{n}"])
        gains = [g for n in names if not math.isnan(g := result[f"gain/{n}"])]
        result[GOAL.metric] = sum(gains) / len(gains) if gains else math.nan
        return result


class PictureEvaluator:
    """Draws a fixed batch: input, masked, prediction and truth of every output."""

    def __init__(
        self, predictor: Predictor, batch: Batch, indices: Sequence[int], logger: RunLogger
    ) -> None:
        """Draw ``batch``, whose masks follow ``indices``."""
        self.predictor, self.batch, self.indices = predictor, batch, indices
        self.logger = logger

    @torch.inference_mode()
    def run(self, model: nn.Module, step: int) -> dict[str, float]:
        """Send the picture to the logger; no numbers."""
        task = self.predictor.task
        targets, out = self.predictor(model, self.batch, self.indices)
        preds = {}
        for name, adapter in task.model.output_adapters.items():
            spatial = cast(SpatialOutputAdapter, adapter)
            grid = spatial.grid(out.layout)
            preds[name] = unpatchify(out.patches[name], grid, spatial.patch_size).cpu()
        image = reconstruction_grid(
            {n: v.cpu() for n, v in targets.x.items()},
            preds,
            {n: v.cpu() for n, v in out.masks.task_masks.items()},
            task.outputs,
            task.patch_size,
            max_rows=len(self.batch),
        )
        self.logger.picture("reconstructions", step, image)
        return {}


def fixed_masks(
    layout: TokenLayout,
    indices: Sequence[int],
    options: MaskOptions,
    device: torch.device,
    present: Mapping[str, Tensor] | None = None,
) -> TokenMasks:
    """Masks that depend on the samples' indices (and what they lack) alone, drawn on the CPU."""
    cpu = torch.device("cpu")
    fixed = MaskOptions(
        options.num_visible, options.alphas, options.sample_tasks_uniformly, EVAL_SEED
    )
    of_each: list[dict[str, Tensor]] = [
        {name: there[row : row + 1].cpu() for name, there in (present or {}).items()}
        for row in range(len(indices))
    ]
    drawn = [
        fixed.draw(layout, StepPosition(i, 0, 1), 1, cpu, present=there)
        for i, there in zip(indices, of_each, strict=True)
    ]
    return TokenMasks(
        torch.cat([m.ids_keep for m in drawn]).to(device),
        torch.cat([m.ids_restore for m in drawn]).to(device),
        {n: torch.cat([m.task_masks[n] for m in drawn]).to(device) for n in layout.slices},
    )


def spread_keys(dataset: MultiModalDataset, count: int = MAX_TRIVIAL_SAMPLES) -> list[SampleKey]:
    """Up to ``count`` evenly spread samples of a set."""
    total = len(dataset)
    count = min(count, total)
    return [SampleKey(0, i * total // count) for i in range(count)]


def spread_complete_keys(dataset: MultiModalDataset, count: int) -> list[SampleKey]:
    """As :func:`spread_keys`, among the samples that lack no modality, if there are such."""
    rows = dataset.folder.modalities
    keys = spread_keys(dataset, len(dataset))
    whole = [key for key in keys if all(dataset.has(key.index, m) for m in rows)] or keys
    count = min(count, len(whole))
    return [whole[i * len(whole) // count] for i in range(count)]


def gain(loss: float, trivial: float) -> float:
    """Share of the trivial predictor's loss that the model saves; 1 is perfect, 0 trivial."""
    return 1.0 - loss / trivial if trivial > 0 else math.nan


def _target_values(task: PretrainTask, m: Modality, targets: Targets) -> Tensor:
    """Targets as the loss sees them, (C, values) or class counts."""
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


def _best_constants(values: Sequence[Tensor], median: bool) -> Tensor:
    """(C,) mean or median of (C, values); the median from a regular subsample of large sets."""
    if not median:
        total = torch.stack([v.double().sum(dim=1) for v in values]).sum(dim=0)
        return (total / sum(v.shape[1] for v in values)).float()
    step = max(1, sum(v.numel() for v in values) // MAX_TRIVIAL_VALUES)
    return torch.cat([v[:, ::step] for v in values], dim=1).median(dim=1).values


def _class_log_frequencies(counts: Sequence[Tensor], num_classes: int) -> Tensor:
    """(K,) logits that give the training set's class frequencies.

    Classes that never occur count half a pixel: an infinite loss would beat no model.
    """
    total = torch.zeros(num_classes, dtype=torch.float64)
    for count in counts:
        total[: len(count)] += count.cpu()
    return (total.clamp_min(0.5) / total.sum()).log().float()
