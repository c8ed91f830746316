"""Weights by URL: downloaded once, with the hash in the file's name verified."""

from __future__ import annotations

import re
from hashlib import sha256
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import HTTPRedirectHandler, Request, build_opener

import torch
from tqdm import tqdm

from multimae.specs.errors import UserError
from multimae.weights.atomic import atomic_file, checksum

_HASH = re.compile(r"-([0-9a-f]{8,64})\.")
_CHUNK = 2**20
_TIMEOUT_S = 60.0


class DownloadError(OSError):
    """A download failed, or the file does not match the hash in its name."""


def fetch(location: str, flag: str = "weights") -> Path:
    """Download an https URL once, into torch.hub's folder; return local paths unchanged.

    A hash in the file name (``name-0123abcd.pth``) is verified on each call: a cached file that
    does not match is downloaded again.

    Args:
        location: URL or path.
        flag: What the user gave it as, for errors.

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
            if checksum(path, sha256()).digest.startswith(digest):
                return path
            path.unlink()
        folder.mkdir(parents=True, exist_ok=True)
        download(location, path, digest)
    except OSError as err:
        raise UserError(
            f"{flag} {location}: cannot be downloaded ({err}). Check the URL and the connection, "
            "or download the file elsewhere and pass its path."
        ) from err
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
