"""Read weight files; :mod:`multimae.weights.write` writes them.

A file is either safetensors or a ``torch.save`` dict with the weights under ``"model"`` (the
published layout). Reading never executes code from the file: unpickling is restricted to tensors,
plain containers and ``argparse.Namespace``, which published checkpoints contain.
"""

from __future__ import annotations

import argparse
import os
import re
import zipfile
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from multimae.weights.write import StateDict, save_state_dict

__all__ = [
    "SUFFIXES",
    "CheckpointError",
    "StateDict",
    "extract_state_dict",
    "is_safetensors",
    "near_file",
    "read_checkpoint",
    "read_metadata",
    "save_state_dict",
]
SUFFIXES = frozenset({".safetensors", ".pth", ".pt", ".bin", ".ckpt"})
_WRAPPERS = ("module.", "_orig_mod.")


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or does not match the model."""


def near_file(path: Path) -> str:
    """``"; did you mean X?"`` if a weight file of almost this name lies there, else nothing."""
    try:
        names = [p.name for p in path.parent.iterdir() if p.suffix in SUFFIXES]
    except OSError:
        return ""
    found = get_close_matches(path.name, names, n=1, cutoff=0.8)
    return f"; did you mean {path.with_name(found[0])}?" if found else ""


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a safetensors file or a ``torch.save`` dict on the CPU, without executing its code.

    Raises:
        CheckpointError: Not a file, not a checkpoint, or it contains other Python objects.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path} is not a file: check the path{near_file(path)}")
    try:
        checkpoint = load_file(path) if is_safetensors(path) else _unpickle(path)
    except Exception as err:  # torch.load raises many types, depending on the first bad byte
        raise CheckpointError(_unreadable(path, err)) from err
    if not isinstance(checkpoint, Mapping):
        raise CheckpointError(
            f"checkpoint {path} holds a {type(checkpoint).__name__}, not a dict of weights: "
            "save it as torch.save({'model': model.state_dict()}, path)"
        )
    return dict(checkpoint)


def is_safetensors(path: str | os.PathLike[str]) -> bool:
    """Whether a file starts like safetensors: 8 bytes of length, then JSON."""
    with open(path, "rb") as file:
        return file.read(9)[8:] == b"{"


def extract_state_dict(
    checkpoint: Mapping[str, Any], keys: Sequence[str] = ("model", "module")
) -> StateDict:
    """Find the weights of a checkpoint under the first of ``keys``, or in the dict itself.

    Removes the prefixes of DDP and ``torch.compile`` (``module.``, ``_orig_mod.``).

    Raises:
        CheckpointError: No weights found.
    """
    found = next(
        (checkpoint[k] for k in keys if isinstance(checkpoint.get(k), Mapping)), checkpoint
    )
    state = {str(k): v for k, v in found.items() if isinstance(v, Tensor)}
    if not state or (found is checkpoint and len(state) < len(found)):
        first = ", ".join(map(str, list(checkpoint)[:4]))
        raise CheckpointError(
            f"no weights in the checkpoint (its keys: {first or 'none'}): expected them under "
            f"{' or '.join(keys)}, or a plain state dict"
        )
    while any(all(key.startswith(prefix) for key in state) for prefix in _WRAPPERS):
        state = {key.partition(".")[2]: value for key, value in state.items()}
    return {key.replace("._orig_mod.", "."): value for key, value in state.items()}


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """Read the metadata in the header of a safetensors file.

    Raises:
        CheckpointError: Not a readable safetensors file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (OSError, SafetensorError) as err:
        raise CheckpointError(f"{path} is not a readable safetensors file ({err})") from err


def _unpickle(path: Path) -> Any:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
        if any(r.compress_type != zipfile.ZIP_STORED for r in records):
            raise ValueError("compressed records, which torch.save never writes")
        size = sum(r.file_size for r in records)
        if size > path.stat().st_size:
            raise ValueError(f"records of {size} bytes in {path.stat().st_size}")
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, map_location="cpu", weights_only=True)


def _unreadable(path: Path, err: Exception) -> str:
    refused = re.search(r"GLOBAL (\S+)", str(err))
    if refused:
        return (
            f"checkpoint {path} holds Python objects that could run code ({refused[1]}), so it was "
            "not loaded. If you trust its author, re-save the weights alone: "
            "torch.save({'model': state_dict}, path) or safetensors"
        )
    reason = (str(err).splitlines() or [""])[0][:100]
    return (
        f"{path} is not a readable checkpoint ({type(err).__name__}: {reason}): expected "
        "safetensors or a torch.save file; it may be truncated, download or copy it again"
    )
