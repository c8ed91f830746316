"""Decompression bombs, expensive inputs and foreign origins are rejected."""

from __future__ import annotations

import io
import socket
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import yaml

from multimae.images.pixels import ImageError
from multimae.images.readers import read
from multimae.specs.modalities import make_table
from multimae.weights.files import CheckpointError, read_checkpoint
from tools.app import server
from tools.app.server import MAX_BODY_BYTES, MAX_UPLOAD_BYTES, refusal, safe_name, serve
from utils.config.parse import load_yaml

BANDS = make_table({"bands": {"kind": "image", "num_channels": 6, "normalization": "computed"}})[
    "bands"
]


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


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, None),
        ({"origin": "http://127.0.0.1:7860"}, None),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "http://127.0.0.1:8000"}, 403),
        ({"origin": "null"}, 403),
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}, 403),
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}, None),
        ({"host": "evil.example:7860"}, 400),
        ({"host": "127.0.0.1.evil.example"}, 400),
    ],
)
def test_foreign_origins_are_refused(headers: dict[str, str], expected: int | None) -> None:
    found = refusal({"host": "127.0.0.1:7860", **headers})
    assert (found and found[0]) == expected


class Echo:
    """Answers with the body it was asked with."""

    actions: ClassVar = {"echo": lambda body: body}

    def config(self) -> dict[str, str]:
        return {"title": "</script>"}


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    api: Any = Echo()
    with serve(api, 0) as address:
        yield int(address.rpartition(":")[2])


def send(port: int, head: str, body: bytes = b"") -> bytes:
    """The answer to a request."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(f"{head}\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode() + body)
        return connection.recv(2**16)


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (f"POST /api/echo HTTP/1.1\r\nContent-Length: {MAX_BODY_BYTES + 1}", 413),
        (f"POST /api/upload?name=a.png HTTP/1.1\r\nContent-Length: {MAX_UPLOAD_BYTES + 1}", 413),
        (f"POST /api/echo HTTP/1.1\r\nContent-Length: {'9' * 400}", 413),
        ("POST /api/echo HTTP/1.1\r\nContent-Length: -1", 411),
        ("POST /api/echo HTTP/1.1", 411),
        ("POST /api/echo HTTP/1.1\r\nTransfer-Encoding: chunked", 411),
        ("GET /../demo_app.py HTTP/1.1", 404),
        ("GET /example/1e9 HTTP/1.1", 404),
        ("PUT / HTTP/1.1", 501),
        ("GET / HTTP/1.1\r\nOrigin: http://evil.example", 403),
        ("POST /api/echo HTTP/1.1\r\nContent-Length: 2\r\nSec-Fetch-Site: cross-site", 403),
    ],
)
def test_bodies_are_bounded_and_paths_are_known(port: int, head: str, status: int) -> None:
    assert send(port, head).startswith(f"HTTP/1.1 {status} ".encode())


@pytest.mark.parametrize("body", [b"{", b"[1]", b"[" * 100_000, b"\xff"])
def test_malformed_json_gets_a_message(port: int, body: bytes) -> None:
    answer = send(port, f"POST /api/echo HTTP/1.1\r\nContent-Length: {len(body)}", body)
    assert answer.startswith(b"HTTP/1.1 422 ") and b"JSON" in answer


def test_the_page_runs_no_other_script(port: int) -> None:
    answer = send(port, "GET / HTTP/1.1\r\nConnection: close").decode()
    assert "default-src 'none'" in answer and "script-src 'self';" in answer
    assert '{"title": "\\u003c/script>"}' in answer


def test_requests_at_a_time_are_bounded(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    started, go_on = threading.Event(), threading.Event()

    def wait(body: dict[str, Any]) -> dict[str, Any]:
        started.set()
        assert go_on.wait(10)
        return body

    monkeypatch.setattr(server, "MAX_REQUESTS", 1)
    monkeypatch.setitem(Echo.actions, "wait", wait)
    api: Any = Echo()
    with serve(api, 0) as address:
        own = int(address.rpartition(":")[2])
        ask = "POST /api/wait HTTP/1.1\r\nContent-Length: 2"
        first = threading.Thread(target=send, args=(own, ask, b"{}"))
        first.start()
        assert started.wait(10)
        assert send(own, ask, b"{}").startswith(b"HTTP/1.1 503 ")
        go_on.set()
        first.join()
        assert send(own, ask, b"{}").startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    ("sent", "stored"),
    [
        ("a.png", "a.png"),
        ("../../etc/passwd", "passwd"),
        ("C:\\photos\\a.png", "a.png"),
        ("..", "upload"),
        ("", "upload"),
        ("a\0\nb.png", "ab.png"),
        ("é" * 300 + ".png", "é" * 56 + ".png"),
    ],
)
def test_names_of_uploads_stay_in_their_folder(sent: str, stored: str) -> None:
    assert safe_name(sent) == stored
