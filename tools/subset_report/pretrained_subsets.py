"""Cross-modal reconstruction of a pre-trained model on every subset of its inputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from multimae.multimae import MultiMAE
from multimae.nn.masking import TokenMasks, masks_from_task_masks, no_masks
from multimae.nn.tokens import TokenLayout
from tools.subset_report.scores import Matrix, Report, Score, Subset, drops, mean_score, subsets
from utils.data.batches import Batch, collate
from utils.data.dataset import MultiModalDataset
from utils.data.folders import MultiModalFolder
from utils.data.samplers import SampleKey
from utils.data.transforms import EvalTransform
from utils.logs.errors import UserError
from utils.tasks.pretraining import MaskOptions, PretrainTask, Targets
from utils.tasks.reconstruction import EVAL_SEED, ConstantBaseline

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
    """Losses of every output for every subset of the inputs.

    Two matrices: all patches of the given inputs visible (what is not given is predicted whole),
    and some of the patches of every given input visible, for a sample the same ones in every row
    (losses of hidden patches), so that the rows differ in the inputs alone.

    Args:
        model: With pre-training decoders.
        checkpoint: Its name, for the report.
        data: Folder with all modalities of the model.
        visible: Share of an input's patches that is visible.
        batch_size: Samples at a time.
        limit: Only so many samples, spread evenly.

    Raises:
        UserError: Folders or files that do not fit the model, or no such budget.
    """
    if not 0 < visible < 1:
        raise UserError(f"--visible {visible:g}: give a share between 0 and 1")
    spec, scorer = model.spec, _Scorer(model, data, batch_size, limit)
    whole, masked = scorer.whole(), scorer.masked(visible)
    inputs = tuple(m.name for m in spec.inputs)
    return Report(
        checkpoint,
        str(data),
        len(scorer.dataset),
        inputs,
        (whole, masked),
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
    """Losses of hidden patches from some inputs, and the trivial predictor's, by output.

    Which patches are visible follows the sample and the input's place alone: models whose inputs
    begin alike are compared on the same patches. Arguments as for :func:`reconstruction_report`.
    """
    scorer = _Scorer(model, data, batch_size, limit)
    own, trivial = scorer.losses(subset, visible)
    means = ({n: mean_score(v).value for n, v in values.items()} for values in (own, trivial))
    return next(means), next(means)


class _Scorer:
    """Runs a task over a set, once per subset of its inputs."""

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
        # The task's own budget is not used: the masks are drawn here.
        task = PretrainTask(model, spec.inputs, spec.outputs, spec.patch_size, MaskOptions(1))
        self.task, self.batch_size = task, batch_size
        self.device = next(task.model.parameters()).device
        self.trivial = ConstantBaseline(task, map(self._batch, self._starts()))
        self.columns = tuple(m.name for m in task.outputs)
        self.all = subsets([m.name for m in task.inputs])

    def whole(self) -> Matrix:
        """All patches of the given inputs are visible; outputs that are given are left out."""

        def draw(indices: Sequence[int], layout: TokenLayout) -> TokenMasks:
            return no_masks(layout, len(indices), self.device)

        rows: dict[Subset, dict[str, Score | None]] = {}
        for subset in self.all:
            if all(m.data_name in subset for m in self.task.outputs):
                continue
            losses, trivial = self._losses(subset, draw, masked=False)
            rows[subset] = {
                m.name: None if m.data_name in subset else _score(losses, trivial, m.name)
                for m in self.task.outputs
            }
        return Matrix(
            "given_whole",
            "Loss of what is not given",
            "all patches of the given inputs are visible",
            self.columns,
            rows,
            frozenset(self.columns),
        )

    def masked(self, visible: float) -> Matrix:
        """Some patches of every given input are visible."""
        rows: dict[Subset, dict[str, Score | None]] = {}
        for subset in self.all:
            losses, trivial = self.losses(subset, visible)
            rows[subset] = {name: _score(losses, trivial, name) for name in self.columns}
        return Matrix(
            "masked",
            "Loss of hidden patches",
            f"{visible:.0%} of the patches of each given input are visible, the same ones in every "
            "row; what is not given is hidden whole",
            self.columns,
            rows,
            frozenset(self.columns),
        )

    def losses(self, subset: Subset, visible: float) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Of hidden patches, for every sample by output: the model's, and the trivial ones."""
        places = {m.name: i for i, m in enumerate(self.task.inputs)}

        def draw(indices: Sequence[int], layout: TokenLayout) -> TokenMasks:
            masks = {
                name: torch.stack(
                    [_hidden(part.num_tokens, visible, i, places[name]) for i in indices]
                )
                for name, part in layout.slices.items()
            }
            return _moved(masks_from_task_masks(masks, layout), self.device)

        return self._losses(subset, draw, masked=True)

    @torch.inference_mode()
    def _losses(
        self, subset: Subset, draw: Draw, *, masked: bool
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Loss of every sample by output (nan: none hidden), the model's and the trivial one's."""
        own: Losses = {name: [] for name in self.columns}
        trivial: Losses = {name: [] for name in self.columns}
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
                constant = self.trivial.patches(m.name, pred)
                for kept, patches in ((own, pred), (trivial, constant)):
                    values, counted = self.task.per_sample(m, patches, targets, mask)
                    kept[m.name].append(values.masked_fill(~counted, math.nan).cpu())
        return _joined(own), _joined(trivial)

    def _starts(self) -> range:
        return range(0, len(self.dataset), self.batch_size)

    def _batch(self, start: int) -> Batch:
        stop = min(start + self.batch_size, len(self.dataset))
        return collate([self.dataset[SampleKey(0, i)] for i in range(start, stop)])


def _hidden(tokens: int, visible: float, sample: int, place: int) -> Tensor:
    """(tokens,) mask of one sample's input, 1 = masked; follows sample and input alone."""
    seed = np.random.SeedSequence([EVAL_SEED, sample, place])
    order = np.random.default_rng(seed).permutation(tokens)
    count = min(max(1, round(visible * tokens)), tokens - 1) if tokens > 1 else 1
    return torch.from_numpy(order >= count).long()


def _moved(masks: TokenMasks, device: torch.device) -> TokenMasks:
    task_masks = {name: mask.to(device) for name, mask in masks.task_masks.items()}
    return TokenMasks(masks.ids_keep.to(device), masks.ids_restore.to(device), task_masks)


def _joined(values: Losses) -> dict[str, Tensor]:
    return {name: torch.cat(parts) for name, parts in values.items()}


def _score(losses: Mapping[str, Tensor], trivial: Mapping[str, Tensor], name: str) -> Score:
    return mean_score(losses[name], mean_score(trivial[name]).value)
