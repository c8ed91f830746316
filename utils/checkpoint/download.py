"""Downloads over https, complete and with the right hash or not at all."""

from __future__ import annotations

from hashlib import sha256
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.request import HTTPRedirectHandler, Request, build_opener

from tqdm import tqdm

from multimae.weights.atomic import atomic_file

_CHUNK = 2**20
_TIMEOUT_S = 60.0
"""Seconds without an answer."""


class DownloadError(OSError):
    """A file could not be had, or is another than its name says."""


class _HttpsOnly(HTTPRedirectHandler):
    """Follows no redirection to where the connection is not encrypted, or to local files."""

    def redirect_request(self, req: Request, fp: Any, code: int, *rest: Any) -> Request | None:
        target = rest[-1]
        if not target.startswith("https://"):
            raise DownloadError(f"redirected to {target}, and only https:// URLs are loaded")
        return super().redirect_request(req, fp, code, *rest)


def download(url: str, path: Path, digest: str = "") -> None:
    """Download a file.

    Args:
        url: ``https://...``
        path: Where to; its folder must be there.
        digest: What its SHA-256 begins with, in hexadecimal.

    Raises:
        DownloadError: Not an https URL, no or half an answer, or another hash; nothing is left.
        OSError: It cannot be written.
    """
    if not url.startswith("https://"):
        raise DownloadError("only https:// URLs are loaded")
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


def has_digest(path: Path, digest: str) -> bool:
    """Whether the SHA-256 of a file begins with ``digest``."""
    hashed = sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            hashed.update(chunk)
    return hashed.hexdigest().startswith(digest)
