"""Files of models that describe themselves: finding, downloading and reading them."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from multimae.specs.spec import ModelSpec
from multimae.weights.convert import to_multimae
from multimae.weights.files import (
    SUFFIXES,
    CheckpointError,
    StateDict,
    extract_state_dict,
    is_safetensors,
    near_file,
    read_checkpoint,
    read_metadata,
)
from multimae.weights.pretrained import CONFIG, KEY, SPEC, WEIGHTS


def read_model(
    location: str | os.PathLike[str], spec: ModelSpec | None, hub: Mapping[str, Any]
) -> tuple[ModelSpec, StateDict]:
    """Spec and weights of a model; arguments and errors of ``from_pretrained``."""
    path = Path(location)
    config: Path | None = None
    if "://" in str(location):
        from multimae.weights.downloads import fetch

        path = fetch(str(location))
    elif path.is_dir():
        path, config = path / WEIGHTS, path / CONFIG
    elif not path.is_file() and (meant := near_file(path)):
        raise CheckpointError(f"{path}: no such file or folder{meant}")
    elif path.suffix not in SUFFIXES and not path.is_absolute() and not path.is_file():
        path, config = (_download(str(location), name, hub) for name in (WEIGHTS, CONFIG))
    elif not path.is_file():
        raise CheckpointError(f"{path}: no such file or folder")
    checkpoint = read_checkpoint(path)
    try:
        state = to_multimae(extract_state_dict(checkpoint)).state
    except ValueError as err:
        raise CheckpointError(f"{path}: {err}") from err
    if spec is None and config and config.is_file():
        spec = _parse(config.read_text("utf-8"), config)
    return spec or find_spec(path, checkpoint) or infer_spec(path, state, checkpoint), state


def read_spec(path: str | os.PathLike[str]) -> ModelSpec:
    """Read the spec in the header of a safetensors file.

    Raises:
        CheckpointError: Not a safetensors file, or no readable spec.
    """
    text = read_metadata(path).get(KEY)
    if text is None:
        raise CheckpointError(
            f"{path} does not say which model it belongs to: pass its spec, "
            "from_pretrained(path, spec=ModelSpec(...))"
        )
    return _parse(text, path)


def find_spec(path: Path, checkpoint: Mapping[str, Any]) -> ModelSpec | None:
    """Return the spec stored in a weight file, or ``None``.

    Args:
        path: The file, for the header of safetensors.
        checkpoint: Its contents.

    Raises:
        CheckpointError: The header or the spec cannot be read.
    """
    text = read_metadata(path).get(KEY) if is_safetensors(path) else checkpoint.get(SPEC)
    return _parse(text, path) if isinstance(text, str) else None


def infer_spec(path: Path, state: StateDict, checkpoint: Mapping[str, Any]) -> ModelSpec:
    """Infer the spec of weights from their shapes and the ``args`` of published files.

    Raises:
        CheckpointError: The model cannot be inferred.
    """
    from multimae.weights.guess import guess_spec

    try:
        args = checkpoint.get("args")
        return guess_spec(state, vars(args) if isinstance(args, argparse.Namespace) else args)
    except ValueError as err:
        raise CheckpointError(
            f"{path} does not say which model it belongs to, and its weights do not tell: {err}. "
            "Pass its spec, from_pretrained(path, spec=ModelSpec(...))"
        ) from err


def _parse(text: str, source: object) -> ModelSpec:
    try:
        return ModelSpec.from_json(text)
    except ValueError as err:
        raise CheckpointError(f"{source}: {err}") from err


def _download(repository: str, name: str, options: Mapping[str, Any]) -> Path:
    try:
        return Path(hf_hub_download(repository, name, **options))
    except (HFValidationError, LocalEntryNotFoundError, HfHubHTTPError, OSError) as err:
        reason = (str(err).splitlines() or [""])[0]
        raise CheckpointError(
            f"'{repository}' is not a file or folder, and {name} could not be downloaded from a "
            f"hub repository of that name ({type(err).__name__}: {reason})"
        ) from err
