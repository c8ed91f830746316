"""Models as ``torch.export`` programs and ONNX files, for any batch and image size.

    export_onnx(MultiMAE.from_pretrained(path), "encoder.onnx", inputs=["rgb"])

Three functions of a model can be exported:

* ``encoder``: images -> ``tokens`` (b, N+g, d), global tokens last; with ``pool`` ``features``.
* ``predict``: images -> ``predicted_HEAD``: (b, K) or (b, C, H, W), logits or normalised values.
* ``reconstruct``: images and ``ids_keep`` (b, n), the positions of the visible patches in the
  sequence (modality after modality, row by row) -> ``predicted_OUTPUT`` (b, C, H/s, W/s).

Images are in model space, as ``model.spec`` says: (b, C, H, W), normalised by ``mean`` and ``std``
(after dividing by ``max_value``) or, for ``normalization: robust``, standardised per sample; labels
are int64 ids (b, H, W). What is predicted is in model space, too:
:mod:`multimae.images.preprocess` goes
from stored values to model space and back. All inputs that were exported must be given. Batch,
height, width and the number of visible patches are free; sizes are multiples of the patch.

The metadata of an ONNX file has the description, ``ModelSpec.to_json()``, under ``multimae``, and
under ``multimae_export`` what it computes and what heights and widths must be multiples of.

Shapes: b batch, n visible patches, N tokens of all inputs, g global tokens, d encoder width.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch.export import ExportedProgram

from multimae.inference.encode import Pool
from multimae.inference.programs import VISIBLE, Plan, What, make_plan
from multimae.multimae import MultiMAE
from multimae.weights.atomic import atomic_file
from multimae.weights.pretrained import KEY

ABOUT_KEY = "multimae_export"
_OPSET = 18
_MAX_BYTES = 2**31 - 2**20  # of a protobuf file, less room for the graph


def export_program(
    model: MultiMAE,
    what: What | None = None,
    *,
    inputs: Sequence[str] | None = None,
    pool: Pool | None = None,
) -> ExportedProgram:
    """A program that takes any batch and size.

    Call ``program.module()({"rgb": images, ...})``, for ``reconstruct`` with ``ids_keep`` as second
    argument; it returns a dict.

    Args:
        model: In evaluation mode.
        what: See this module; by default ``predict`` if there are heads, else ``encoder``.
        inputs: Modalities that will be given, by default all.
        pool: Of ``encoder``: return ``mean``, ``global`` or ``mean_global`` instead of all tokens.

    Raises:
        ValueError: A model in training mode, unknown inputs, or one that cannot do ``what``.
    """
    return _export(make_plan(model, what, inputs, pool))


def export_onnx(
    model: MultiMAE,
    path: str | os.PathLike[str],
    what: What | None = None,
    *,
    inputs: Sequence[str] | None = None,
    pool: Pool | None = None,
    opset: int = _OPSET,
) -> None:
    """Write an ONNX file that takes any batch and size; see :func:`export_program`.

    Args:
        model: In evaluation mode, with a description.
        path: The file; it is replaced only when the new one is complete.
        what: What it computes.
        inputs: Modalities that will be given, by default all.
        pool: Of ``encoder``: what to return instead of all tokens.
        opset: Version of the operators.

    Raises:
        ModuleNotFoundError: onnx or onnxscript are not installed.
        ValueError: As :func:`export_program`; a model without a description, or beyond 2 GB.
        OSError: The folder does not exist or is not writable.
    """
    require("onnx", "onnxscript")
    plan = make_plan(model, what, inputs, pool)
    description = model.spec.to_json()
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    if size > _MAX_BYTES:
        raise ValueError(f"{size / 1e9:.1f} GB of weights: an ONNX file holds 2 GB at most")
    program = torch.onnx.export(
        _export(plan),
        input_names=plan.input_names,
        output_names=plan.output_names,
        opset_version=opset,
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    program.model.metadata_props.update({KEY: description, ABOUT_KEY: json.dumps(_about(plan))})
    file = program.model_proto
    _name_sizes(file.graph)
    with atomic_file(path) as stream:
        stream.write(file.SerializeToString())


def onnx_differences(
    model: MultiMAE,
    path: str | os.PathLike[str],
    cases: Sequence[tuple[int, int, int]] = ((1, 3, 3), (3, 5, 2)),
) -> dict[str, dict[str, float]]:
    """Run a file with onnxruntime, and the model, on random inputs.

    Args:
        model: The model.
        path: Written by :func:`export_onnx` from it.
        cases: (batch, rows, columns), the size in multiples of what the file says.

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
    plan = make_plan(model, about["what"], about["inputs"], about["pool"])
    found = {}
    for seed, (batch, rows, columns) in enumerate(cases):
        images, *visible = plan.example(batch, rows, columns, seed)
        with torch.no_grad():
            expected = plan.module(images, *visible)
        given = images | dict(zip([VISIBLE], visible, strict=False))
        feed = {name: value.cpu().numpy() for name, value in given.items()}
        actual = session.run(list(expected), feed)
        found[f"{batch} x {rows * plan.unit[0]} x {columns * plan.unit[1]}"] = {
            name: (torch.from_numpy(a) - expected[name].cpu()).abs().max().item()
            for name, a in zip(expected, actual, strict=True)
        }
    return found


def _export(plan: Plan) -> ExportedProgram:
    example = plan.example(2, 3, 4, seed=1)  # all unlike, so that none is taken for another
    with torch.no_grad():
        return torch.export.export(
            plan.module, example, dynamic_shapes=plan.dynamic_shapes(), strict=False
        )


def _name_sizes(graph: Any) -> None:
    """Call free sizes ``batch``, ``16*rows``, ``16*columns`` and ``visible``, not ``s15`` ..."""
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


def _about(plan: Plan) -> dict[str, Any]:
    return {
        "what": plan.what,
        "inputs": plan.inputs,
        "pool": plan.pool,
        "height_multiple": plan.unit[0],
        "width_multiple": plan.unit[1],
    }


def require(*packages: str) -> None:
    """Look for optional packages.

    Raises:
        ModuleNotFoundError: Some are not installed; the message says how to get them.
    """
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(
            f"{', '.join(missing)} cannot be imported: pip install 'multimae[export]'"
        )
