"""Write weight files; :mod:`multimae.weights.files` reads them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save as serialize
from torch import Tensor

from multimae.weights.atomic import atomic_file

StateDict = dict[str, Tensor]


def save_state_dict(
    state: Mapping[str, Tensor],
    path: str | os.PathLike[str],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write weights atomically.

    Args:
        state: Weights by name. Tensors that share memory are each written in full.
        path: ``*.safetensors``; any other suffix: ``torch.save({"model": state})``.
        metadata: Metadata for the header of a safetensors file.

    Raises:
        OSError: The folder does not exist or is not writable.
    """
    path = Path(path)
    tensors = {k: v.detach().cpu().contiguous() for k, v in state.items()}
    with atomic_file(path) as stream:
        if path.suffix == ".safetensors":
            stream.write(serialize(_unshared(tensors), dict(metadata or {}) or None))
        else:
            torch.save({"model": tensors}, stream)


def _unshared(tensors: StateDict) -> StateDict:
    """Clone tensors that share memory, which safetensors rejects."""
    seen: set[int] = set()
    out = {}
    for key, value in tensors.items():
        pointer = value.untyped_storage().data_ptr()
        out[key] = value.clone() if pointer in seen else value
        seen.add(pointer)
    return out
