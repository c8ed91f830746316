"""Decompression bombs, expensive inputs and foreign origins are rejected."""

from __future__ import annotations

import asyncio
import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from multimae.images.pixels import ImageError
from multimae.images.readers import read
from multimae.specs.modalities import make_table
from multimae.weights.files import CheckpointError, read_checkpoint
from tools.app import server_limits
from tools.app.server_limits import RequestLimits
from utils.config.parse import load_yaml

BANDS = make_table({"bands": {"kind": "image", "num_channels": 6, "normalization": "computed"}})[
    "bands"
]
HOST = (b"host", b"127.0.0.1:7860")


def test_yaml_aliases_may_not_multiply() -> None:
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    with pytest.raises(yaml.YAMLError, match="100000 values"):
        load_yaml("\n".join(lines))
    assert load_yaml("a: &a [1, 2]\nb: *a") == {"a": [1, 2], "b": [1, 2]}


@pytest.mark.parametrize("shape", [(2**40, 2**20), (1,) * 2000, (-1, 4), (3, 4, 5, 6)], ids=len)
def test_npy_headers_are_bounded(shape: tuple[int, ...], tmp_path: Path) -> None:
    stream = io.BytesIO()
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, header)
    path = tmp_path / "0.npy"
    path.write_bytes(stream.getvalue() + bytes(100))
    with pytest.raises(ImageError, match="cannot be read"):
        read(path, BANDS)


def test_compressed_checkpoints_are_refused(tmp_path: Path) -> None:
    plain, bomb = tmp_path / "plain.pth", tmp_path / "bomb.pth"
    torch.save({"model": {"a": torch.zeros(2**18)}}, plain)
    with (
        zipfile.ZipFile(plain) as source,
        zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as out,
    ):
        for record in source.infolist():
            out.writestr(record.filename, source.read(record))
    assert read_checkpoint(plain)["model"]["a"].shape == (2**18,)
    with pytest.raises(CheckpointError, match="compressed"):
        read_checkpoint(bomb)


def status(
    headers: list[tuple[bytes, bytes]],
    path: str = "/gradio_api/queue/join",
    body: int = 10,
    uploads: Path | None = None,
) -> int:
    """Status with which a request is answered."""
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def receive() -> dict[str, Any]:
        nonlocal body
        part = min(body, 1_000_000)
        body -= part
        return {"type": "http.request", "body": bytes(part), "more_body": body > 0}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": path, "headers": [HOST, *headers]}
    asyncio.run(RequestLimits(app, uploads)(scope, receive, send))
    return int(sent[0]["status"])


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([], 200),
        ([(b"origin", b"http://127.0.0.1:7860")], 200),
        ([(b"origin", b"http://evil.example")], 403),
        ([(b"origin", b"http://127.0.0.1:8000")], 403),
        ([(b"origin", b"null")], 403),
        ([(b"sec-fetch-site", b"cross-site"), (b"sec-fetch-mode", b"no-cors")], 403),
        ([(b"sec-fetch-site", b"cross-site"), (b"sec-fetch-mode", b"navigate")], 200),
        ([(b"content-length", b"4000001")], 413),
        ([(b"content-length", b"-1")], 413),
    ],
)
def test_foreign_origins_and_large_bodies(
    headers: list[tuple[bytes, bytes]], expected: int
) -> None:
    assert status(headers) == expected


def test_a_body_without_a_length_is_bounded() -> None:
    assert status([], body=server_limits.MAX_BODY_BYTES + 1) == 413
    assert status([], "/gradio_api/upload", server_limits.MAX_BODY_BYTES + 1) == 200


def test_uploads_are_bounded_in_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_limits, "MAX_STORED_FILES", 3)
    for i in range(3):
        assert status([], "/gradio_api/upload", uploads=tmp_path) == 200
        (tmp_path / str(i)).write_bytes(b"1")
    assert status([], "/gradio_api/upload", uploads=tmp_path) == 429
    assert status([], uploads=tmp_path) == 200
    monkeypatch.setattr(server_limits, "MAX_STORED_FILES", 30)
    monkeypatch.setattr(server_limits, "MAX_STORED_BYTES", server_limits.MAX_UPLOAD_BYTES + 2)
    assert status([], "/gradio_api/upload", uploads=tmp_path) == 429
