"""Weights to start from: ``--finetune`` and ``--init_weights``, local files or https URLs."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cached_property
from hashlib import sha256
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import HTTPRedirectHandler, Request, build_opener

import torch
from torch import nn
from tqdm import tqdm

from multimae.specs.errors import UserError
from multimae.weights.atomic import atomic_file
from multimae.weights.convert import to_multimae
from multimae.weights.files import (
    CheckpointError,
    StateDict,
    extract_state_dict,
    read_checkpoint,
)
from multimae.weights.load import LoadReport, load_weights
from utils.config.options import StartOptions

HEADS = "output_adapters."
_HASH = re.compile(r"-([0-9a-f]{8,64})\.")
_CHUNK = 2**20
_TIMEOUT_S = 60.0


class DownloadError(OSError):
    """A download failed, or the file does not match the hash in its name."""


class StartWeights:
    """A file of weights that is read once: for the spec of its inputs, then into a model."""

    def __init__(self, options: StartOptions, flag: str = "--finetune") -> None:
        """Read nothing yet.

        Args:
            options: Where the weights are.
            flag: Flag that the user set, for errors.
        """
        self.options, self.flag = options, flag

    @cached_property
    def path(self) -> Path:
        """The file, downloaded from a URL."""
        return fetch(self.options.finetune, self.flag)

    @cached_property
    def contents(self) -> dict[str, Any]:
        """What is in the file.

        Raises:
            UserError: It is missing or unreadable.
        """
        try:
            return read_checkpoint(self.path)
        except CheckpointError as err:
            raise UserError(f"{self.flag}: {err}") from err

    def state_dict(self, *, heads: bool = False) -> tuple[StateDict, tuple[str, ...]]:
        """Weights under MultiMAE's names, and the keys that were dropped.

        Weights of a ViT (MAE, timm) are converted. ``heads``: keep decoders and heads.

        Raises:
            UserError: The file is missing or unreadable.
        """
        contents, options = self.contents, self.options
        try:
            state = extract_state_dict(contents, options.model_key.split("|"))
            state, unused = to_multimae(_without_prefix(state, options.model_prefix))
        except ValueError as err:
            raise UserError(f"{self.flag}: {err}") from err
        if not heads:
            unused += tuple(k for k in state if k.startswith(HEADS))
            state = {k: v for k, v in state.items() if not k.startswith(HEADS)}
        return state, unused

    def load(self, model: nn.Module, *, heads: bool = False) -> LoadReport:
        """Load the weights into ``model`` (SPEC section 6), and free the file's contents.

        Decoders and heads of the checkpoint are ignored, unless ``heads``; keys that the model
        lacks are reported as unused.

        Raises:
            UserError: The file is missing, unreadable or fits nothing.
        """
        state, unused = self.state_dict(heads=heads)
        del self.contents
        try:
            report = load_weights(model, state, source=self.options.finetune, strict=False)
        except ValueError as err:
            raise UserError(f"{self.flag}: {err}") from err
        return replace(report, unused=(*report.unused, *unused))


def _without_prefix(state: StateDict, prefix: str) -> StateDict:
    if not prefix:
        return state
    inside = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    if not inside:
        raise CheckpointError(
            f"no key starts with --model_prefix '{prefix}'; the first is '{next(iter(state))}'"
        )
    return inside


def fetch(location: str, flag: str = "--finetune") -> Path:
    """Download an https URL once, into torch.hub's folder; return local paths unchanged.

    A hash in the file name (``name-0123abcd.pth``) is verified on each call: a cached file that
    does not match is downloaded again.

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
    # Many files are called model.safetensors: without a hash, the URL tells them apart.
    path = folder / (name if match else f"{sha256(location.encode()).hexdigest()[:8]}-{name}")
    try:
        if path.is_file():
            if _has_digest(path, digest):
                return path
            path.unlink()
        folder.mkdir(parents=True, exist_ok=True)
        download(location, path, digest)
    except OSError as err:
        raise UserError(f"{flag} {location}: cannot be downloaded ({err})") from err
    return path


class _HttpsOnly(HTTPRedirectHandler):
    """Refuses redirects to unencrypted connections and local files."""

    def redirect_request(self, req: Request, fp: Any, code: int, *rest: Any) -> Request | None:
        target = rest[-1]
        if not target.startswith("https://"):
            raise DownloadError(f"redirected to {target}, and only https:// URLs are loaded")
        return super().redirect_request(req, fp, code, *rest)


def download(url: str, path: Path, digest: str = "") -> None:
    """Download an https URL to ``path``, atomically.

    Args:
        url: Source.
        path: Target; its folder must exist.
        digest: Expected start of the SHA-256, in hexadecimal.

    Raises:
        DownloadError: An incomplete answer, or another hash; no file is left.
        OSError: The file cannot be written.
    """
    request = Request(url, headers={"User-Agent": "multimae"})
    hashed, size = sha256(), 0
    try:
        with (
            build_opener(_HttpsOnly()).open(request, timeout=_TIMEOUT_S) as answer,
            atomic_file(path) as stream,
            tqdm(desc=path.name, unit="B", unit_scale=True, unit_divisor=1024, disable=None) as bar,
        ):
            length = answer.headers.get("Content-Length")
            bar.total = int(length) if length else None
            while chunk := answer.read(_CHUNK):
                stream.write(chunk)
                hashed.update(chunk)
                size += len(chunk)
                bar.update(len(chunk))
            if length and size != int(length):
                raise DownloadError(f"the connection ended after {size} of {length} bytes")
            if not hashed.hexdigest().startswith(digest):
                raise DownloadError(
                    f"its SHA-256 is {hashed.hexdigest()} and not {digest}..., as its name says: "
                    "the file was changed or damaged"
                )
    except (HTTPException, ValueError) as err:
        raise DownloadError(f"{type(err).__name__}: {err}") from err


def _has_digest(path: Path, digest: str) -> bool:
    """Whether the SHA-256 of a file begins with ``digest``."""
    hashed = sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            hashed.update(chunk)
    return hashed.hexdigest().startswith(digest)
