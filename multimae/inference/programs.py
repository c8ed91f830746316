"""What :mod:`multimae.inference.export` exports: plain modules, and the shapes of their inputs.

Shapes: b batch, n visible patches, N tokens of all inputs, g global tokens, d encoder width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.export import Dim

from multimae.inference.encode import Encoding, Pool
from multimae.input_adapters import SemSegInputAdapter
from multimae.nn.masking import gather_tokens
from multimae.nn.network import MultiModalTransformer
from multimae.nn.tokens import Size
from multimae.output_adapters import SpatialOutputAdapter
from multimae.specs.heads import reads_all_layers

What = Literal["encoder", "predict", "reconstruct"]
Images = dict[str, Tensor]
VISIBLE = "ids_keep"
_PREFIX = "predicted_"  # an output may be called as an input is, which ONNX does not allow


class Encoder(nn.Module):
    """Images -> tokens, or one vector per sample."""

    def __init__(self, model: MultiModalTransformer, pool: Pool | None) -> None:
        """``pool``: see :meth:`multimae.inference.encode.Encoding.pooled`; ``None``: tokens."""
        super().__init__()
        self.model = model
        self.pool = pool

    def forward(self, images: Images) -> dict[str, Tensor]:
        """``tokens`` (b, N+g, d), or ``features`` (b, d or 2d)."""
        tokens, layout = self.model.embed(images)
        encoded = self.model.encode_tokens(tokens)
        if self.pool is None:
            return {"tokens": encoded}
        return {"features": Encoding((encoded,), layout).pooled(self.pool)}


class Predictor(nn.Module):
    """Images -> what every head says."""

    def __init__(self, model: MultiModalTransformer) -> None:
        """A fine-tuned model."""
        super().__init__()
        self.model = model
        self.all_layers = reads_all_layers(model)

    def forward(self, images: Images) -> dict[str, Tensor]:
        """``predicted_HEAD``: (b, K) or (b, C, H, W)."""
        outputs = self.model.apply_heads(images, self.all_layers)
        return {_PREFIX + name: output for name, output in outputs.items()}


class Reconstructor(nn.Module):
    """Images and visible patches -> what every decoder predicts."""

    def __init__(self, model: MultiModalTransformer) -> None:
        """A pre-trained model."""
        super().__init__()
        self.model = model

    def forward(self, images: Images, ids_keep: Tensor) -> dict[str, Tensor]:
        """``ids_keep`` (b, n) -> ``predicted_OUTPUT`` (b, C, H/s, W/s)."""
        tokens, layout = self.model.embed(images)
        b, n = ids_keep.shape
        # Place of every token among the visible ones; n for those that are not.
        places = torch.arange(n, device=ids_keep.device).expand(b, -1)
        hidden = torch.zeros_like(tokens[:, :, 0], dtype=torch.int64) + n
        ids_restore = hidden.scatter(1, ids_keep, places)
        encoded = self.model.encode_tokens(gather_tokens(tokens, ids_keep))
        return {
            _PREFIX + name: decoder(encoded, layout, ids_keep, ids_restore)
            for name, decoder in self.model.output_adapters.items()
        }


@dataclass(frozen=True)
class Plan:
    """A module to export, and its inputs.

    Attributes:
        module: Takes a dict of images, and ``ids_keep`` for ``reconstruct``; returns a dict.
        what: What it does.
        inputs: Modalities, in sequence order.
        pool: Of ``encoder``.
        unit: Height and width of images are multiples of this, in full-resolution pixels.
        model: The model.
    """

    module: nn.Module
    what: What
    inputs: tuple[str, ...]
    pool: Pool | None
    unit: Size
    model: MultiModalTransformer

    @property
    def input_names(self) -> list[str]:
        """Names of all inputs."""
        return [*self.inputs, *([VISIBLE] if self.what == "reconstruct" else [])]

    @property
    def output_names(self) -> list[str]:
        """Keys of what the module returns."""
        if self.what == "encoder":
            return ["tokens" if self.pool is None else "features"]
        return [_PREFIX + name for name in self.model.output_adapters]

    def example(self, batch: int, rows: int, columns: int, seed: int = 0) -> tuple[Any, ...]:
        """Random arguments of the module; images are ``rows`` x ``columns`` units."""
        generator = torch.Generator().manual_seed(seed)
        token = self.model.global_tokens
        images, total = {}, 0
        for name in self.inputs:
            adapter: Any = self.model.input_adapters[name]
            h = rows * self.unit[0] // adapter.stride_level
            w = columns * self.unit[1] // adapter.stride_level
            if isinstance(adapter, SemSegInputAdapter):
                image = torch.randint(adapter.num_classes, (batch, h, w), generator=generator)
            else:
                shape = (batch, adapter.num_channels, h, w)
                image = torch.randn(shape, generator=generator).to(token.dtype)
            images[name] = image.to(token.device)
            total += math.prod(adapter.grid(h, w, name))
        if self.what != "reconstruct":
            return (images,)
        order = torch.rand(batch, total, generator=generator).argsort(dim=1)
        # Contiguous: else its stride would be taken for a property of the input.
        return images, order[:, : total // 2 + seed].contiguous().to(token.device)

    def dynamic_shapes(self) -> tuple[Any, ...]:
        """As ``torch.export`` wants them."""
        batch, rows, columns = (Dim(name, min=1) for name in ("batch", "rows", "columns"))
        images = {}
        for name in self.inputs:
            adapter: Any = self.model.input_adapters[name]
            first = 1 if isinstance(adapter, SemSegInputAdapter) else 2
            height, width = (unit // adapter.stride_level for unit in self.unit)
            images[name] = {0: batch, first: height * rows, first + 1: width * columns}
        if self.what != "reconstruct":
            return (images,)
        return images, {0: batch, 1: Dim("visible", min=1)}


def make_plan(
    model: MultiModalTransformer,
    what: What | None = None,
    inputs: Sequence[str] | None = None,
    pool: Pool | None = None,
) -> Plan:
    """What to export of a model; see :func:`multimae.inference.export.export_program`.

    Raises:
        ValueError: A model in training mode, unknown inputs, or one that cannot do ``what``.
    """
    if model.training:
        raise ValueError("the model is in training mode: call model.eval() first")
    heads = {name: head for name, head in model.output_adapters.items()}
    decoders = [name for name, h in heads.items() if isinstance(h, SpatialOutputAdapter)]
    what = what or ("predict" if len(decoders) < len(heads) else "encoder")
    if what not in get_args(What):
        raise ValueError(f"what is one of {', '.join(get_args(What))}; got {what!r}")
    if what == "predict" and (decoders or not heads):
        raise ValueError("this model has no heads to predict with: fine-tune it first")
    if what == "reconstruct" and len(decoders) < max(1, len(heads)):
        raise ValueError("this model has no pre-training decoders: it cannot reconstruct")
    if pool is not None and (what != "encoder" or pool not in get_args(Pool)):
        raise ValueError(f"pool is for the encoder, one of {', '.join(get_args(Pool))}")
    names = tuple(model.input_adapters) if inputs is None else tuple(inputs)
    unknown = [name for name in names if name not in model.input_adapters]
    if unknown or not names:
        known = ", ".join(model.input_adapters)
        raise ValueError(f"inputs are some of {known}; got {', '.join(names) or 'none'}")
    names = tuple(name for name in model.input_adapters if name in names)
    used: list[Any] = [model.input_adapters[name] for name in names]
    used += [heads[name] for name in decoders] if what == "reconstruct" else []
    height, width = (math.lcm(*(a.stride_level * a.patch_size[i] for a in used)) for i in (0, 1))
    modules = {
        "encoder": Encoder(model, pool),
        "predict": Predictor(model),
        "reconstruct": Reconstructor(model),
    }
    return Plan(modules[what], what, names, pool, (height, width), model)
