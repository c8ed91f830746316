"""Models as ``torch.export`` programs and ONNX files, for any batch and image size.

    export_onnx(MultiMAE.from_pretrained(path), "encoder.onnx", inputs=["rgb"])

Three functions of a model can be exported:

* ``encoder``: images -> ``tokens`` (b, N+g, d), global tokens last; with ``pool`` ``features``.
* ``predict``: images -> ``predicted_HEAD``: (b, K) or (b, C, H, W), logits or normalised values.
* ``reconstruct``: images and ``ids_keep`` (b, n), the positions of the visible patches in the
  sequence (modality after modality, row by row) -> ``predicted_OUTPUT`` (b, C, H/s, W/s).

Inputs and outputs are in model space: images (b, C, H, W), normalised by ``mean`` and ``std``
(after dividing by ``max_value``) or, with ``normalization: robust``, standardised per sample;
labels int64 ids (b, H, W). :mod:`multimae.images.preprocess` converts from and to stored values.
All exported inputs are required. Batch size, height, width and number of visible patches are
dynamic; height and width must be multiples of the patch size.

The metadata of an ONNX file holds the spec (``ModelSpec.to_json()``) under ``multimae``, and
function, inputs, pooling and size multiples under ``multimae_export``.

Shapes: b batch, n visible patches, N tokens of all inputs, g global tokens, d encoder width.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from multimae.inference.encode import Encoding, Pool
from multimae.input_adapters import SemSegInputAdapter
from multimae.multimae import MultiMAE
from multimae.nn.masking import gather_tokens
from multimae.nn.network import MultiModalTransformer
from multimae.nn.tokens import Size
from multimae.output_adapters import SpatialOutputAdapter
from multimae.specs.heads import reads_all_layers
from multimae.weights.atomic import atomic_file
from multimae.weights.pretrained import KEY

What = Literal["encoder", "predict", "reconstruct"]
Images = dict[str, Tensor]
VISIBLE = "ids_keep"
_PREFIX = "predicted_"  # ONNX forbids an input and an output of the same name
ABOUT_KEY = "multimae_export"
_OPSET = 18
_MAX_BYTES = 2**31 - 2**20  # limit of a protobuf file, minus space for the graph


def export_program(
    model: MultiMAE,
    what: What | None = None,
    *,
    inputs: Sequence[str] | None = None,
    pool: Pool | None = None,
) -> ExportedProgram:
    """Export a program with dynamic batch and image size.

    Call ``program.module()({"rgb": images, ...})``, for ``reconstruct`` with ``ids_keep`` as second
    argument; it returns a dict.

    Args:
        model: Model in evaluation mode.
        what: Function to export; default: ``predict`` if the model has heads, else ``encoder``.
        inputs: Modalities to export; default: all.
        pool: For ``encoder``: return ``mean``, ``global`` or ``mean_global`` features instead of
            tokens.

    Raises:
        ValueError: The model is in training mode or cannot do ``what``, or inputs are unknown.
    """
    return _export(make_export_spec(model, what, inputs, pool))


def export_onnx(
    model: MultiMAE,
    path: str | os.PathLike[str],
    what: What | None = None,
    *,
    inputs: Sequence[str] | None = None,
    pool: Pool | None = None,
    opset: int = _OPSET,
) -> None:
    """Write an ONNX file with dynamic batch and image size; see :func:`export_program`.

    Args:
        model: Model in evaluation mode, with a spec.
        path: Output file, written atomically.
        what: Function to export; default: ``predict`` if the model has heads, else ``encoder``.
        inputs: Modalities to export; default: all.
        pool: For ``encoder``: features to return instead of tokens.
        opset: ONNX opset version.

    Raises:
        ModuleNotFoundError: onnx or onnxscript are not installed.
        ValueError: As :func:`export_program`; or the model has no spec or exceeds 2 GB.
        OSError: The folder does not exist or is not writable.
    """
    require("onnx", "onnxscript")
    export = make_export_spec(model, what, inputs, pool)
    description = model.spec.to_json()
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    if size > _MAX_BYTES:
        raise ValueError(f"{size / 1e9:.1f} GB of weights: an ONNX file holds 2 GB at most")
    program = torch.onnx.export(
        _export(export),
        input_names=export.input_names,
        output_names=export.output_names,
        opset_version=opset,
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    program.model.metadata_props.update(
        {KEY: description, ABOUT_KEY: json.dumps(_metadata(export))}
    )
    file = program.model_proto
    _name_dimensions(file.graph)
    with atomic_file(path) as stream:
        stream.write(file.SerializeToString())


def onnx_differences(
    model: MultiMAE,
    path: str | os.PathLike[str],
    cases: Sequence[tuple[int, int, int]] = ((1, 3, 3), (3, 5, 2)),
) -> dict[str, dict[str, float]]:
    """Compare an ONNX file with the model on random inputs, using onnxruntime.

    Args:
        model: The exported model.
        path: File from :func:`export_onnx`.
        cases: (batch, rows, columns); rows and columns in size multiples of the file.

    Returns:
        ``BATCH x HEIGHT x WIDTH`` -> output -> largest absolute difference.

    Raises:
        ModuleNotFoundError: onnxruntime is not installed.
    """
    require("onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
    about = json.loads(session.get_modelmeta().custom_metadata_map[ABOUT_KEY])
    export = make_export_spec(model, about["what"], about["inputs"], about["pool"])
    differences = {}
    for seed, (batch, rows, columns) in enumerate(cases):
        images, *visible = export.example(batch, rows, columns, seed)
        with torch.no_grad():
            expected = export.module(images, *visible)
        arguments = images | dict(zip([VISIBLE], visible, strict=False))
        feed = {name: value.cpu().numpy() for name, value in arguments.items()}
        actual = session.run(list(expected), feed)
        differences[f"{batch} x {rows * export.unit[0]} x {columns * export.unit[1]}"] = {
            name: (torch.from_numpy(a) - expected[name].cpu()).abs().max().item()
            for name, a in zip(expected, actual, strict=True)
        }
    return differences


def _export(export: ExportSpec) -> ExportedProgram:
    example = export.example(2, 3, 4, seed=1)  # distinct sizes: equal ones would be specialised
    with torch.no_grad():
        return torch.export.export(
            export.module, example, dynamic_shapes=export.dynamic_shapes(), strict=False
        )


def _name_dimensions(graph: Any) -> None:
    """Rename dynamic dimensions to ``batch``, ``16*rows``, ``16*columns`` and ``visible``."""
    symbol = re.compile(r"\bs\d+\b")
    shapes = {value.name: value.type.tensor_type.shape.dim for value in graph.input}
    visible = shapes.pop(VISIBLE, [])
    image = next(iter(shapes.values()))
    named = [(image[0], "batch"), (image[-2], "rows"), (image[-1], "columns")]
    named += [(dim, "visible") for dim in visible[1:]]
    names = {symbol.findall(dim.dim_param)[0]: name for dim, name in named}
    for value in (*graph.input, *graph.value_info, *graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = symbol.sub(lambda s: names.get(s[0], s[0]), dim.dim_param)


def _metadata(export: ExportSpec) -> dict[str, Any]:
    return {
        "what": export.what,
        "inputs": export.inputs,
        "pool": export.pool,
        "height_multiple": export.unit[0],
        "width_multiple": export.unit[1],
    }


def require(*packages: str) -> None:
    """Check that optional packages are installed.

    Raises:
        ModuleNotFoundError: Some are not installed; the message says how to get them.
    """
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(
            f"{', '.join(missing)} cannot be imported: pip install 'multimae[export]'"
        )


class EncoderProgram(nn.Module):
    """Images -> tokens, or pooled features."""

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


class PredictProgram(nn.Module):
    """Images -> predictions of every head."""

    def __init__(self, model: MultiModalTransformer) -> None:
        """``model``: fine-tuned model."""
        super().__init__()
        self.model = model
        self.all_layers = reads_all_layers(model)

    def forward(self, images: Images) -> dict[str, Tensor]:
        """``predicted_HEAD``: (b, K) or (b, C, H, W)."""
        outputs = self.model.apply_heads(images, self.all_layers)
        return {_PREFIX + name: output for name, output in outputs.items()}


class ReconstructProgram(nn.Module):
    """Images and visible patches -> predictions of every decoder."""

    def __init__(self, model: MultiModalTransformer) -> None:
        """``model``: pre-trained model."""
        super().__init__()
        self.model = model

    def forward(self, images: Images, ids_keep: Tensor) -> dict[str, Tensor]:
        """``ids_keep`` (b, n) -> ``predicted_OUTPUT`` (b, C, H/s, W/s)."""
        tokens, layout = self.model.embed(images)
        b, n = ids_keep.shape
        # Index of every token among the visible ones; n for masked tokens.
        indices = torch.arange(n, device=ids_keep.device).expand(b, -1)
        hidden = torch.zeros_like(tokens[:, :, 0], dtype=torch.int64) + n
        ids_restore = hidden.scatter(1, ids_keep, indices)
        encoded = self.model.encode_tokens(gather_tokens(tokens, ids_keep))
        return {
            _PREFIX + name: decoder(encoded, layout, ids_keep, ids_restore)
            for name, decoder in self.model.output_adapters.items()
        }


@dataclass(frozen=True)
class ExportSpec:
    """A module to export, and its inputs.

    Attributes:
        module: Takes a dict of images, and ``ids_keep`` for ``reconstruct``; returns a dict.
        what: Exported function.
        inputs: Modalities, in sequence order.
        pool: Pooling of ``encoder``.
        unit: Image height and width must be multiples of this, in full-resolution pixels.
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
        """Names of the program's inputs."""
        return [*self.inputs, *([VISIBLE] if self.what == "reconstruct" else [])]

    @property
    def output_names(self) -> list[str]:
        """Names of the program's outputs."""
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
        # Contiguous, or torch.export would specialise on the stride.
        return images, order[:, : total // 2 + seed].contiguous().to(token.device)

    def dynamic_shapes(self) -> tuple[Any, ...]:
        """``dynamic_shapes`` of ``torch.export.export``."""
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


def make_export_spec(
    model: MultiModalTransformer,
    what: What | None = None,
    inputs: Sequence[str] | None = None,
    pool: Pool | None = None,
) -> ExportSpec:
    """Build the module to export; see :func:`export_program` for arguments and errors."""
    if model.training:
        raise ValueError("the model is in training mode: call model.eval() first")
    heads = {name: head for name, head in model.output_adapters.items()}
    decoders = [name for name, h in heads.items() if isinstance(h, SpatialOutputAdapter)]
    what = what or ("predict" if len(decoders) < len(heads) else "encoder")
    if what not in get_args(What):
        raise ValueError(f"what must be one of {', '.join(get_args(What))}; got {what!r}")
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
        raise ValueError(f"inputs must be among {known}; got {', '.join(names) or 'none'}")
    names = tuple(name for name in model.input_adapters if name in names)
    used: list[Any] = [model.input_adapters[name] for name in names]
    used += [heads[name] for name in decoders] if what == "reconstruct" else []
    height, width = (math.lcm(*(a.stride_level * a.patch_size[i] for a in used)) for i in (0, 1))
    modules = {
        "encoder": EncoderProgram(model, pool),
        "predict": PredictProgram(model),
        "reconstruct": ReconstructProgram(model),
    }
    return ExportSpec(modules[what], what, names, pool, (height, width), model)
