"""Load a frozen encoder and extract pooled features.

Shapes: B batch, N tokens of all modalities, g global tokens, d encoder width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from multimae.images.folders import MultiModalFolder
from multimae.images.preprocess import prepare
from multimae.inference.neighbours import Labelled
from multimae.multimae import MultiViT
from multimae.specs.errors import UserError, bullet_list
from multimae.specs.modalities import Modality
from multimae.specs.registry import MULTIVIT
from multimae.specs.spec import ModelSpec
from multimae.weights.files import CheckpointError, StateDict
from multimae.weights.guess import find_size
from multimae.weights.load import LoadReport, describe_architecture, load_weights
from tools.probing.probe_options import (
    DEFAULT_MODEL,
    FeatureOptions,
    ProbeDataOptions,
    ProbeModelOptions,
)
from utils.checkpoint.start_weights import StartWeights
from utils.data.dataset import MultiModalDataset, build_loader, check_samples
from utils.data.samplers import EvalBatchSampler
from utils.data.sets.class_folders import ClassEvalTransform, ClassIndex, data_root
from utils.training.stepper import Precision

CHECKED_SAMPLES = 256
_INPUTS = "input_adapters."


@dataclass(frozen=True)
class Frozen:
    """A frozen encoder.

    Attributes:
        name: Registered model name.
        model: Encoder in evaluation mode, without heads and gradients.
        report: Load report of the weights; ``None`` for random weights.
    """

    name: str
    model: MultiViT
    report: LoadReport | None


def load_frozen(
    options: ProbeModelOptions, inputs: Sequence[Modality], start: StartWeights | None
) -> Frozen:
    """Build the encoder that matches the weights, and load them.

    All weights of the encoder and of the input adapters of ``inputs`` must be in the file.
    Decoders, heads and other inputs are ignored.

    Raises:
        UserError: Weights are unreadable, of unknown size, or incomplete for ``inputs``.
    """
    state: StateDict = {}
    if start is not None:
        state, _ = start.state_dict(heads=True)
        _check_inputs(state, inputs, options.weights)
    name = options.model or (DEFAULT_MODEL if options.random else _size_of(state))
    tokens = options.num_global_tokens
    if tokens is None:
        tokens = state["global_tokens"].shape[1] if state else 1
    try:
        spec = ModelSpec(
            name,
            tuple(inputs),
            patch_size=options.patch_size,
            image_size=options.input_size,
            num_global_tokens=tokens,
        )
        model = MultiViT.from_spec(spec)
        report = None
        if state:
            report = load_weights(model, state, source=options.weights)
            _check_complete(report)
    except (CheckpointError, ValueError) as err:
        raise UserError(f"--weights: {err}" if state else str(err)) from err
    model.eval().requires_grad_(False)
    return Frozen(name, model, report)


def labelled_folder(path: str, inputs: Sequence[Modality]) -> MultiModalFolder:
    """Class folders under ``path``, a data root or one of its modality folders."""
    return MultiModalFolder(data_root(path, inputs), inputs)


def feature_loader(
    folder: MultiModalFolder,
    model: ProbeModelOptions,
    data: ProbeDataOptions,
    *,
    batch_size: int,
    limit: int | None = None,
) -> DataLoader[Any]:
    """Loader of every image once, in order, resized and centre-cropped without augmentation.

    Args:
        folder: Class folders.
        model: Input size.
        data: Crop percentage and reading options.
        batch_size: Images per batch; the last batch may be smaller.
        limit: Number of images to use, spread evenly over the folder.

    Raises:
        UserError: Unreadable files among those checked.
    """
    transform = ClassEvalTransform(folder.modalities, model.input_size, data.crop_pct)
    dataset = MultiModalDataset(folder, transform, patch_size=model.patch_size, limit=limit)
    check_samples(dataset, CHECKED_SAMPLES)
    sampler = EvalBatchSampler(len(dataset), batch_size)
    return build_loader(dataset, sampler, num_workers=data.num_workers, pin_memory=data.pin_mem)


@torch.no_grad()
def extract(
    model: MultiViT,
    loader: DataLoader[Any],
    inputs: Sequence[Modality],
    classes: ClassIndex,
    options: FeatureOptions,
    precision: Precision,
    *,
    title: str = "features",
) -> Labelled:
    """Extract the features of all images, float32 on the CPU.

    Raises:
        UserError: The model has fewer layers than ``layers``, or no token for ``pool``.
    """
    depth = len(model.encoder)
    if options.layers > depth:
        raise UserError(f"--layers {options.layers}: the encoder has {depth} blocks")
    if options.pool != "mean" and not model.num_global_tokens:
        raise UserError(f"--pool {options.pool}: the weights have no global tokens; use mean")
    device = model.global_tokens.device
    x: list[Tensor] = []
    names: list[str] = []
    for batch in tqdm(loader, desc=title, unit="batch", disable=None, leave=False):
        images = prepare(batch.to(device).images, inputs)
        with precision.autocast():
            encoding = model.encode(images, layers=options.layers)
        x.append(encoding.pooled(options.pool, token_norm=options.token_norm).cpu())
        names += batch.names
    return Labelled(torch.cat(x), classes.ids(names))


def _check_inputs(state: Mapping[str, Tensor], inputs: Sequence[Modality], source: str) -> None:
    """Check that the file has an adapter for every input."""
    have = {key.split(".")[1] for key in state if key.startswith(_INPUTS)}
    missing = [m.name for m in inputs if m.name not in have]
    if missing:
        raise UserError(
            f"--in_domains: {source} has no weights for {', '.join(missing)}. "
            f"The file: {describe_architecture(state)}.\n"
            "Choose --in_domains among its inputs."
        )


def _size_of(state: Mapping[str, Tensor]) -> str:
    """Registered model that matches the width and depth of the weights."""
    width = state["global_tokens"].shape[-1] if "global_tokens" in state else None
    depth = len({key.split(".")[1] for key in state if key.startswith("encoder.")})
    size = find_size(depth, width)
    if size:
        return f"{MULTIVIT}_{size}"
    raise UserError(
        f"--weights: no registered model has this size ({describe_architecture(state)}); "
        "set --model"
    )


def _check_complete(report: LoadReport) -> None:
    """Check that all parameters were loaded."""
    problems = [f"{key}: not in the file" for key in report.new]
    problems += [f"{mismatch}: shape mismatch" for mismatch in report.mismatched]
    if problems:
        raise CheckpointError(
            f"{report.source} does not match this encoder:\n{bullet_list(problems)}\n"
            "Set --model, --patch_size, --num_global_tokens and --modalities (num_classes, "
            "num_channels, stride) to those of the weights."
        )
