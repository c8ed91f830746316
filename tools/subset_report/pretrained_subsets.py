"""Cross-modal reconstruction losses of a pre-trained model on every subset of its inputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from multimae.images.folders import MultiModalFolder
from multimae.multimae import MultiMAE
from multimae.nn.masking import TokenMasks, masks_from_task_masks, no_masks
from multimae.nn.tokens import TokenLayout
from multimae.specs.errors import UserError
from tools.subset_report.scores import Matrix, Report, Score, Subset, drops, mean_score, subsets
from utils.data.batches import Batch, collate
from utils.data.dataset import MultiModalDataset
from utils.data.samplers import SampleKey
from utils.data.transforms import EvalTransform
from utils.tasks.pretraining import PretrainTask, Targets
from utils.tasks.reconstruction import EVAL_SEED, ConstantBaseline
from utils.training.seeding import MaskOptions

VISIBLE = 1 / 6  # as in pre-training: 98 of 588, 32 of 192

Losses = dict[str, list[Tensor]]
Draw = Callable[[Sequence[int], TokenLayout], TokenMasks]


def reconstruction_report(
    model: MultiMAE,
    checkpoint: str,
    data: str | Path,
    *,
    visible: float = VISIBLE,
    batch_size: int = 16,
    limit: int | None = None,
) -> Report:
    """Compute the loss of every output for every subset of the inputs.

    Two matrices: with all patches of the subset visible, the loss on the absent modalities; with a
    share of them visible, the loss on masked patches. A sample's visible patches of a modality are
    the same in every subset.

    Args:
        model: A model with pre-training decoders.
        checkpoint: File name for the report.
        data: Data folder with all modalities of the model.
        visible: Visible share of each input's patches.
        batch_size: Samples per forward pass.
        limit: Maximum number of samples, evenly spaced.

    Raises:
        UserError: Files do not fit the model, or ``visible`` is not between 0 and 1.
    """
    if not 0 < visible < 1:
        raise UserError(f"--visible {visible:g}: must be a share between 0 and 1")
    spec, scorer = model.spec, _Scorer(model, data, batch_size, limit)
    absent, masked = scorer.absent(), scorer.masked(visible)
    inputs = tuple(m.name for m in spec.inputs)
    return Report(
        checkpoint,
        str(data),
        len(scorer.dataset),
        inputs,
        (absent, masked),
        drops(masked, inputs),
    )


def subset_losses(
    model: MultiMAE,
    data: str | Path,
    subset: Subset,
    *,
    visible: float = VISIBLE,
    batch_size: int = 16,
    limit: int | None = None,
) -> tuple[dict[str, float], dict[str, float]]:
    """Losses on masked patches from a subset of the inputs, and the constant baseline's, by output.

    Visible patches depend on the sample and the input's index only, so models whose inputs start
    alike are compared on the same patches. Arguments: see :func:`reconstruction_report`.
    """
    scorer = _Scorer(model, data, batch_size, limit)
    losses, baseline = scorer.losses(subset, visible)
    means = ({n: mean_score(v).value for n, v in values.items()} for values in (losses, baseline))
    return next(means), next(means)


class _Scorer:
    """Evaluates the reconstruction losses of input subsets."""

    def __init__(
        self, model: MultiMAE, data: str | Path, batch_size: int, limit: int | None
    ) -> None:
        spec = model.spec
        self.dataset = MultiModalDataset(
            MultiModalFolder(data, spec.modalities),
            EvalTransform(spec.modalities, spec.image_size),
            patch_size=spec.patch_size,
            limit=limit,
        )
        # The task's own mask options are unused: masks are drawn here.
        task = PretrainTask(model, spec.inputs, spec.outputs, spec.patch_size, MaskOptions(1))
        self.task, self.batch_size = task, batch_size
        self.device = next(task.model.parameters()).device
        self.baseline = ConstantBaseline(task, map(self._batch, self._starts()))
        self.columns = tuple(m.name for m in task.outputs)
        self.all = subsets([m.name for m in task.inputs])

    def absent(self) -> Matrix:
        """Losses on absent modalities, with all patches of the subset visible."""

        def draw(indices: Sequence[int], layout: TokenLayout) -> TokenMasks:
            return no_masks(layout, len(indices), self.device)

        rows: dict[Subset, dict[str, Score | None]] = {}
        for subset in self.all:
            if all(m.data_name in subset for m in self.task.outputs):
                continue
            losses, baseline = self._losses(subset, draw, masked=False)
            rows[subset] = {
                m.name: None if m.data_name in subset else _score(losses, baseline, m.name)
                for m in self.task.outputs
            }
        return Matrix(
            "given_whole",
            "Loss on absent modalities",
            "all patches of the inputs are visible",
            self.columns,
            rows,
            frozenset(self.columns),
        )

    def masked(self, visible: float) -> Matrix:
        """Losses on masked patches, with a share of the subset's patches visible."""
        rows: dict[Subset, dict[str, Score | None]] = {}
        for subset in self.all:
            losses, baseline = self.losses(subset, visible)
            rows[subset] = {name: _score(losses, baseline, name) for name in self.columns}
        return Matrix(
            "masked",
            "Loss on masked patches",
            f"{visible:.0%} of each input's patches are visible, the same ones in every subset",
            self.columns,
            rows,
            frozenset(self.columns),
        )

    def losses(self, subset: Subset, visible: float) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Losses on masked patches per output and sample: the model's and the baseline's."""
        index = {m.name: i for i, m in enumerate(self.task.inputs)}

        def draw(indices: Sequence[int], layout: TokenLayout) -> TokenMasks:
            masks = {
                name: torch.stack(
                    [_draw_mask(part.num_tokens, visible, i, index[name]) for i in indices]
                )
                for name, part in layout.slices.items()
            }
            return masks_from_task_masks(masks, layout).to(self.device)

        return self._losses(subset, draw, masked=True)

    @torch.inference_mode()
    def _losses(
        self, subset: Subset, draw: Draw, *, masked: bool
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Losses per output and sample (nan without masked patches): model's and baseline's."""
        own: Losses = {name: [] for name in self.columns}
        baseline: Losses = {name: [] for name in self.columns}
        for start in self._starts():
            batch = self._batch(start)
            targets = Targets.from_batch(batch.to(self.device), self.task.modalities)
            indices = range(start, start + len(batch))
            out = self.task.model.forward_patches(
                {name: targets.x[name] for name in subset},
                partial(draw, indices),
            )
            for m in self.task.outputs:
                mask = out.masks.task_masks.get(m.data_name) if masked else None
                pred = out.patches[m.name]
                constant = self.baseline.patches(m.name, pred)
                for losses, patches in ((own, pred), (baseline, constant)):
                    values, counted = self.task.per_sample(m, patches, targets, mask)
                    losses[m.name].append(values.masked_fill(~counted, math.nan).cpu())
        return _concat(own), _concat(baseline)

    def _starts(self) -> range:
        return range(0, len(self.dataset), self.batch_size)

    def _batch(self, start: int) -> Batch:
        stop = min(start + self.batch_size, len(self.dataset))
        return collate([self.dataset[SampleKey(0, i)] for i in range(start, stop)])


def _draw_mask(tokens: int, visible: float, sample: int, modality: int) -> Tensor:
    """(tokens,) mask of one input, 1 = masked, seeded by sample and modality index."""
    seed = np.random.SeedSequence([EVAL_SEED, sample, modality])
    order = np.random.default_rng(seed).permutation(tokens)
    count = min(max(1, round(visible * tokens)), tokens - 1) if tokens > 1 else 1
    return torch.from_numpy(order >= count).long()


def _concat(values: Losses) -> dict[str, Tensor]:
    return {name: torch.cat(parts) for name, parts in values.items()}


def _score(losses: Mapping[str, Tensor], baseline: Mapping[str, Tensor], name: str) -> Score:
    return mean_score(losses[name], mean_score(baseline[name]).value)
