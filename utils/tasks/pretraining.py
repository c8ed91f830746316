"""Pre-training by masked reconstruction, and its setup from the options.

Shape legend: b batch, n patches of a modality, p values of a patch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from multimae.criterion import (
    MaskedLoss,
    NoWeightingStrategy,
    build_loss,
    counted_samples,
    mean_over_counted,
    per_sample_where,
    without_absent,
)
from multimae.images.folders import CLASSES_FILE, MultiModalFolder, read_class_names
from multimae.images.no_data_tags import with_no_data_tags
from multimae.images.preprocess import pixels_with_value, prepare
from multimae.multimae import MultiMAE
from multimae.nn.masking import MaskNoise, TokenMasks, masks_from_noise
from multimae.nn.tokens import TokenLayout, as_size
from multimae.specs.coercion import repeated
from multimae.specs.errors import UserError
from multimae.specs.modalities import Modality, select
from multimae.specs.registry import DecoderOptions
from multimae.specs.spec import ModelSpec
from utils.config.options import split_names
from utils.config.pretrain_options import PretrainConfig
from utils.data.batches import Batch
from utils.data.dataset import MultiModalDataset
from utils.data.sample_checks import label_tables, range_warnings
from utils.data.transforms import EvalTransform, JointTransform, TrainTransform
from utils.distributed.world import ALONE, World
from utils.tasks.base import StepOutput, StepPosition, Task
from utils.tasks.loaders import build_dataset, index_finder, open_train_folder
from utils.training.optim import build_optimizer, norm_and_bias, param_groups
from utils.training.seeding import MaskOptions

if TYPE_CHECKING:
    from utils.checkpoint.start_weights import StartWeights


@dataclass(frozen=True)
class Targets:
    """Inputs and targets in model space.

    Attributes:
        x: Modality -> images.
        valid: Stored modality -> bool, pixels with a value; only for modalities with ``no_data``.
        present: Modality -> (b,) bool, samples that have it; only if some sample lacks it.
    """

    x: dict[str, Tensor]
    valid: dict[str, Tensor] = field(default_factory=dict)
    present: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def from_batch(cls, batch: Batch, modalities: Sequence[Modality]) -> Targets:
        """Preprocess a batch on its device."""
        valid = valid_pixels(batch, modalities)
        return cls(prepare(batch.images, modalities), valid, batch.present)


def valid_pixels(batch: Batch, modalities: Sequence[Modality]) -> dict[str, Tensor]:
    """Pixels with a value, by stored modality; only for modalities with ``no_data``."""
    stored = ((m, batch.images[m.name]) for m in modalities if m.source is None)
    found = {m.name: pixels_with_value(image, m) for m, image in stored}
    return {name: where for name, where in found.items() if where is not None}


class PretrainTask(Task):
    """MultiMAE with one loss per output modality and a task balancer."""

    model: MultiMAE
    compiled = ("_plan", "_losses")
    compiled_in_shards = ("_plan", "losses_of")

    def __init__(
        self,
        model: MultiMAE,
        inputs: Sequence[Modality],
        outputs: Sequence[Modality],
        patch_size: int,
        masks: MaskOptions,
        *,
        balancer: str = "none",
        loss_on_unmasked: bool = False,
        fp32_output_adapters: Sequence[str] = (),
        may_lack: Sequence[str] = (),
    ) -> None:
        """Build the losses.

        Args:
            model: Model with one output adapter per modality of ``outputs``.
            inputs: Input modalities.
            outputs: Target modalities.
            patch_size: Patch side of modalities without one.
            masks: Mask sampling options.
            balancer: ``none`` or ``uncertainty``.
            loss_on_unmasked: Include visible patches in the loss.
            fp32_output_adapters: Outputs decoded in float32.
            may_lack: Modalities that samples may lack.
        """
        super().__init__()
        self.model = model
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)
        self.modalities = tuple(dict.fromkeys((*inputs, *outputs)))
        self.masks, self.patch_size = masks, patch_size
        self.losses: dict[str, MaskedLoss] = {m.name: build_loss(m, patch_size) for m in outputs}
        names = [m.name for m in outputs]
        self.loss_names = tuple(f"loss/{name}" for name in names)
        self.balancer: nn.Module = NoWeightingStrategy()
        if balancer == "uncertainty":
            from multimae.nn.balancing import UncertaintyWeightingStrategy

            self.balancer = UncertaintyWeightingStrategy(names)
        self.loss_on_unmasked = loss_on_unmasked
        self.fp32_output_adapters = tuple(fp32_output_adapters)
        self.may_lack = tuple(may_lack)
        self._always_present: tuple[str, ...] = ()

    def compile_step(self, *, sharded: bool = False, **options: Any) -> None:
        """As for all tasks; one graph also serves batches where no sample lacks a modality."""
        self._always_present = self.may_lack
        super().compile_step(sharded=sharded, **options)

    def forward(self, batch: Batch, position: StepPosition) -> StepOutput:
        """Balanced sum of the masked losses; logs ``loss/{modality}`` before weighting."""
        masks = position.masks or self.draw_masks(batch, position)
        batch = batch.always_present(self._always_present)
        return self._losses(batch, masks, position.counts, position.num_batches)

    def _losses(
        self, batch: Batch, masks: TokenMasks, counts_t: Tensor | None, num_batches: int
    ) -> StepOutput:
        targets, counts = Targets.from_batch(batch, self.modalities), None
        if counts_t is not None:
            names = (m.name for m in self.outputs)
            counts = dict(zip(names, counts_t.unbind(), strict=True))
        losses = self.compute_losses(targets, masks, counts)
        weighted = self.balancer(losses, counts, num_batches)
        total = torch.stack([m.loss_weight * weighted[m.name] for m in self.outputs]).sum()
        return StepOutput(total, {f"loss/{n}": v.detach() for n, v in losses.items()})

    def plan(self, batch: Batch, position: StepPosition) -> StepPosition:
        """Add masks, and the number of samples with a counted patch."""
        ids_keep, ids_restore, task_masks, counts = self._plan(
            batch.always_present(self._always_present), self._noise(batch, position)
        )
        masks = TokenMasks(ids_keep, ids_restore, task_masks)
        return position._replace(masks=masks, counts=counts)

    def _plan(
        self, batch: Batch, drawn: MaskNoise
    ) -> tuple[Tensor, Tensor, dict[str, Tensor], Tensor]:
        """Masks and counts; a tuple, because a graph returns no dataclass."""
        masks = self._masks(batch, drawn)
        return masks.ids_keep, masks.ids_restore, masks.task_masks, self._count(batch, masks)

    def count(self, batch: Batch, position: StepPosition) -> Tensor:
        """Number of samples with a counted patch, per output."""
        return self._count(batch, position.masks or self.draw_masks(batch, position))

    def _count(self, batch: Batch, masks: TokenMasks) -> Tensor:
        valid = valid_pixels(batch, self.modalities)
        counts = torch.zeros(len(self.outputs), dtype=torch.int64, device=masks.ids_keep.device)
        for i, m in enumerate(self.outputs):
            mask, present = self._counted_patches(m, masks), batch.present.get(m.data_name)
            if present is not None:
                mask = present[:, None] if mask is None else without_absent(mask, present)
            counts[i] = counted_samples(
                self.losses[m.name], mask, valid.get(m.data_name), masks.ids_keep.shape[0]
            )
        return counts

    def draw_masks(self, batch: Batch, position: StepPosition) -> TokenMasks:
        """Masks of the batch's part of the global batch."""
        return self._masks(batch, self._noise(batch, position))

    def _noise(self, batch: Batch, position: StepPosition) -> MaskNoise:
        device = next(iter(batch.images.values())).device
        return self.masks.draw_noise(
            self._layout(batch), position, batch.full_size, device, batch.sample_indices
        )

    def _masks(self, batch: Batch, drawn: MaskNoise) -> TokenMasks:
        count = self.masks.num_encoded_tokens
        return masks_from_noise(drawn, self._layout(batch), count, batch.present)

    def _layout(self, batch: Batch) -> TokenLayout:
        return self.model.layout_of({m.name: batch.images[m.data_name] for m in self.inputs})

    def _counted_patches(self, m: Modality, masks: TokenMasks) -> Tensor | None:
        """(b, n), 1 = counted in the loss; ``None``: all patches."""
        return None if self.loss_on_unmasked else masks.task_masks.get(m.data_name)

    def per_sample(
        self, m: Modality, pred_bnp: Tensor, targets: Targets, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Per-sample loss (b,) of an output, and whether the sample counts (b,).

        Args:
            m: Output modality.
            pred_bnp: Prediction as patch vectors.
            targets: Targets.
            mask: (b, n), 1 = counted; ``None``: all patches.
        """
        loss, target = self.losses[m.name], targets.x[m.name]
        present, valid = targets.present.get(m.data_name), targets.valid.get(m.data_name)
        if present is not None:
            mask = torch.ones_like(pred_bnp[..., 0]) if mask is None else mask
            mask = without_absent(mask, present)
        if valid is not None:
            return per_sample_where(loss, pred_bnp, target, valid, mask)
        return loss.per_sample(pred_bnp, target, mask)

    def compute_losses(
        self, targets: Targets, masks: TokenMasks, counts: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Masked loss of every output.

        Args:
            targets: Inputs and targets.
            masks: Token masks.
            counts: Output -> divisor, see :class:`StepPosition`; ``None``: count of the batch.
        """
        out = self.model.forward_patches(
            {m.name: targets.x[m.name] for m in self.inputs},
            lambda _: masks,
            self.fp32_output_adapters,
        )
        return self.losses_of(out.patches, targets, masks, counts)

    def losses_of(
        self,
        patches: Mapping[str, Tensor],
        targets: Targets,
        masks: TokenMasks,
        counts: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Masked loss of every output, of predictions as patch vectors."""
        losses = {}
        for m in self.outputs:
            mask = self._counted_patches(m, masks)
            per_sample = self.per_sample(m, patches[m.name], targets, mask)
            losses[m.name] = mean_over_counted(*per_sample, counts[m.name] if counts else None)
        return losses


def start_weights(cfg: PretrainConfig) -> StartWeights | None:
    """Weights of ``--init_weights``; ``None`` without."""
    if not cfg.start.init_weights:
        return None
    from utils.checkpoint.start_weights import StartWeights

    return StartWeights(cfg.start.weights, "--init_weights")


def run_modalities(
    cfg: PretrainConfig, start: StartWeights | None = None, world: World = ALONE
) -> tuple[list[Modality], list[Modality]]:
    """Select inputs and outputs, with class names and statistics of the training set.

    Inputs of the weights ``start`` keep the preprocessing of these weights.

    Raises:
        UserError: Options contradict the weights, or statistics cannot be computed.
    """
    if start is not None:
        from utils.checkpoint.find import newest_checkpoint
        from utils.checkpoint.trained_inputs import trained_spec, with_trained_inputs

        source, spec = trained_spec(newest_checkpoint(cfg.checkpoint), start)
        cfg, _ = with_trained_inputs(cfg, spec, source, computes_statistics=True)
    names = read_class_names(cfg.data.roots[0]) if cfg.data.roots[0] else None
    if cfg.data.sources:
        from utils.data.mixing import common_class_names

        names = common_class_names(cfg.data.roots)
    if names is None:
        from multimae.specs.class_names import COCO_CLASSES

        names = COCO_CLASSES  # of the published pseudo labels
    table = {name: _with_class_names(m, names) for name, m in cfg.table().items()}
    wanted = select(table, tuple(dict.fromkeys((*cfg.in_names, *cfg.out_names))))
    wanted = with_no_data_tags(wanted, *cfg.data.roots, cfg.data.eval_data_path)
    if any(m.normalization == "computed" for m in wanted):
        from utils.data.statistics import resolve_statistics

        weights = [float(source["weight"]) for source in cfg.data.sources]
        find = index_finder(cfg, world)
        wanted = resolve_statistics(wanted, cfg.data.roots, world, find, weights)
    filled = {m.name: m for m in wanted}
    return select(filled, cfg.in_names), select(filled, cfg.out_names)


def _with_class_names(m: Modality, names: Sequence[str]) -> Modality:
    """Name the classes of labels, if there is one name per class."""
    if not m.is_labels or m.class_names:
        return m
    if m.label_map:
        from multimae.specs.label_map import mapped_names

        names = mapped_names(names, m.label_map)
    if len(names) != m.num_classes:
        return m
    if repeated(names):
        raise UserError(f"{CLASSES_FILE}: two classes of '{m.name}' are called {repeated(names)}.")
    return replace(m, class_names=tuple(names))


def build_train_set(
    cfg: PretrainConfig, modalities: Sequence[Modality], world: World = ALONE
) -> MultiModalDataset:
    """Training set of ``--data_path`` with augmentation, checked."""
    data, size = cfg.data, cfg.model.input_size
    transform: JointTransform = TrainTransform(
        modalities, size, data.crop_scale, data.crop_ratio, data.hflip
    )
    if data.device_crops:
        from utils.data.device_crops import DeviceCrops

        transform = DeviceCrops(transform)
    folder = open_train_folder(cfg, lambda root: _folder(cfg, root, transform, world, train=True))
    return build_dataset(MultiModalDataset, cfg, folder, transform, world=world, train=True)


def describe_data(cfg: PretrainConfig, train_set: MultiModalDataset) -> Iterator[str]:
    """Yield label statistics of the checked samples, and warnings about labels and scalar maps."""
    root = train_set.folder.root
    names = read_class_names(root)
    for table in label_tables(train_set):
        yield from table.lines()
        if names and not table.class_names:
            yield (
                f"warning: labels '{table.name}': {root / CLASSES_FILE} has {len(names)} names, "
                f"num_classes is {len(table.classes)}: the names are not used. If the file "
                "describes these labels, set num_classes accordingly."
            )
    yield from range_warnings(train_set, train_set.folder.modalities, cfg.data.fields_set())


def build_eval_set(
    cfg: PretrainConfig, path: str, modalities: Sequence[Modality], world: World = ALONE
) -> MultiModalDataset:
    """Evaluation set of ``path``: at most ``--max_val_images`` samples, centre-cropped."""
    transform = EvalTransform(modalities, cfg.model.input_size)
    folder = _folder(cfg, path, transform, world, train=False)
    limit = cfg.data.max_val_images
    return build_dataset(MultiModalDataset, cfg, folder, transform, world=world, limit=limit)


def model_spec(
    cfg: PretrainConfig, inputs: Sequence[Modality], outputs: Sequence[Modality]
) -> ModelSpec:
    """Spec of the model of the options."""
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
    """Build model and losses.

    Raises:
        UserError: Invalid combination of options.
    """
    options = cfg.model
    masks = MaskOptions(
        options.num_encoded_tokens,
        options.alphas,
        options.sample_tasks_uniformly,
        cfg.runtime.seed,
    )
    try:
        spec = model_spec(cfg, inputs, outputs)
        model = MultiMAE.from_spec(spec, drop_path_rate=options.drop_path)
        h, w = as_size(options.input_size)
        layout = model.layout({m.name: (h // m.stride, w // m.stride) for m in inputs})
        masks.draw(layout, StepPosition(0, 0, 1), 1, torch.device("cpu"))
    except ValueError as err:
        raise UserError(str(err)) from err
    model.set_grad_checkpointing(enable=cfg.runtime.grad_checkpointing)
    return PretrainTask(
        model,
        inputs,
        outputs,
        options.patch_size,
        masks,
        balancer=cfg.optim.task_balancer,
        loss_on_unmasked=options.loss_on_unmasked,
        fp32_output_adapters=split_names(options.fp32_output_adapters),
        may_lack=sorted({m.data_name for m in (*inputs, *outputs)})
        if cfg.data.missing == "allow"
        else (),
    )


def pretrain_optimizer(cfg: PretrainConfig, task: PretrainTask) -> torch.optim.Optimizer:
    """Build the optimizer of model and balancer, which has a separate learning-rate scale."""
    optim = cfg.optim
    if cfg.start.train_only:
        from utils.checkpoint.start_weights import freeze_all_but

        freeze_all_but(task.model, task.outputs, split_names(cfg.start.train_only))
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


def _folder(
    cfg: PretrainConfig, path: str, transform: JointTransform, world: World, *, train: bool
) -> MultiModalFolder:
    skip, allow = train and cfg.data.skips_bad, cfg.data.missing == "allow"
    folder = MultiModalFolder(
        path,
        transform.modalities,
        skip_incomplete=skip,
        allow_missing=allow,
        find=index_finder(cfg, world),
    )
    if allow:
        from utils.data.missing import check_patterns

        check_patterns(cfg, folder)
    return folder
