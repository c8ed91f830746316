"""``--finetune``: pre-trained weights into a model that is to be fine-tuned (or probed)."""

from __future__ import annotations

import re
from hashlib import sha256
from pathlib import Path
from urllib.parse import urlparse

import torch
from torch import nn

from multimae.weights.convert import is_vit_state_dict, vit_to_multimae
from multimae.weights.load import (
    CheckpointError,
    LoadReport,
    StateDict,
    extract_state_dict,
    load_weights,
    read_checkpoint,
)
from utils.checkpoint.download import download, has_digest
from utils.config.options import StartOptions
from utils.logs.errors import UserError

HEADS = "output_adapters."
REPORT = "weights.txt"
_HASH = re.compile(r"-([0-9a-f]{8,64})\.")


def load_pretrained(
    model: nn.Module, options: StartOptions, *, heads: bool = False, flag: str = "--finetune"
) -> LoadReport:
    """Load ``--finetune`` into ``model`` (SPEC section 6).

    Weights of a ViT (MAE, timm) are converted first. Decoders and heads of the checkpoint are left
    out, unless ``heads``; what a checkpoint has and the model lacks is reported as unused.

    Raises:
        UserError: The file is missing, unreadable or fits nothing.
    """
    state, unused = read_pretrained(options, heads=heads, flag=flag)
    try:
        report = load_weights(model, state, source=options.finetune, strict=False)
    except (CheckpointError, ValueError) as err:
        raise UserError(f"{flag}: {err}") from err
    return LoadReport(
        report.source,
        report.loaded,
        report.resized,
        report.new,
        (*report.unused, *unused),
        report.mismatched,
    )


def read_pretrained(
    options: StartOptions, *, heads: bool = False, flag: str = "--finetune"
) -> tuple[StateDict, tuple[str, ...]]:
    """The weights of a checkpoint in MultiMAE's names, and the keys that were left out.

    Args:
        options: Where they are.
        heads: Keep decoders and heads.
        flag: What the user knows the location by.

    Raises:
        UserError: The file is missing or unreadable.
    """
    try:
        checkpoint = read_checkpoint(fetch(options.finetune, flag))
        state = extract_state_dict(checkpoint, options.model_key.split("|"))
        state, unused = _in_our_names(_without_prefix(state, options.model_prefix))
    except (CheckpointError, ValueError) as err:
        raise UserError(f"{flag}: {err}") from err
    if not heads:
        unused += tuple(k for k in state if k.startswith(HEADS))
        state = {k: v for k, v in state.items() if not k.startswith(HEADS)}
    return state, unused


def fetch(location: str, flag: str = "--finetune") -> Path:
    """A local path as it is; an https URL downloaded once, into torch.hub's folder.

    A file name with a hash in it (``name-0123abcd.pth``) is verified against its contents, each
    time: a file that is there with other contents is deleted and downloaded again.

    Raises:
        UserError: Another kind of URL; the download failed or has another hash.
    """
    if "://" not in location:
        return Path(location)
    if not location.startswith("https://"):
        raise UserError(f"{flag} {location}: only https:// URLs are loaded")
    name = Path(urlparse(location).path).name
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    match = _HASH.search(name)
    digest = match[1] if match else ""
    # Many a file is called model.safetensors: where no hash says which, the address does.
    path = folder / (name if match else f"{sha256(location.encode()).hexdigest()[:8]}-{name}")
    try:
        if path.is_file():
            if has_digest(path, digest):
                return path
            path.unlink()
        folder.mkdir(parents=True, exist_ok=True)
        download(location, path, digest)
    except OSError as err:
        raise UserError(f"{flag} {location}: cannot be downloaded ({err})") from err
    return path


def _without_prefix(state: StateDict, prefix: str) -> StateDict:
    if not prefix:
        return state
    inside = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    if not inside:
        raise CheckpointError(
            f"no key starts with --model_prefix '{prefix}'; the first is '{next(iter(state))}'"
        )
    return inside


def _in_our_names(state: StateDict) -> tuple[StateDict, tuple[str, ...]]:
    """The weights in MultiMAE's names, and what of a ViT has no place there."""
    if not is_vit_state_dict(state):
        return state, ()
    converted = vit_to_multimae(state)
    return dict(converted.state), converted.unused
