"""Downloads need https and must match the hash in the file name."""

from __future__ import annotations

import io
import urllib.request
from email.message import Message
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.response import addinfourl

import pytest
import torch

from multimae import MultiMAE, cli
from multimae.specs.errors import UserError
from multimae.weights.downloads import fetch
from multimae.weights.published import PUBLISHED
from tests.project.test_security import SCRIPTS, error_of
from tests.support.image_folders import message_of

Answer = tuple[int, bytes, dict[str, str]]
"""Status, contents, headers."""
REPO = Path(__file__).parents[3]
CONTENT = b"weights"
HASH = sha256(CONTENT).hexdigest()


class Web:
    """Fake server; ``asked`` has the requested URLs."""

    def __init__(self, answers: dict[str, Answer]) -> None:
        self.answers = answers
        self.asked: list[str] = []

    def open(self, handler: object, request: urllib.request.Request) -> addinfourl:
        self.asked.append(request.full_url)
        code, body, headers = self.answers[request.full_url]
        message = Message()
        for key, value in headers.items():
            message[key] = value
        answer = addinfourl(io.BytesIO(body), message, request.full_url, code)
        answer.msg = "told"  # type: ignore[attr-defined]
        return answer


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Web:
    found = Web({})
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    for kind, method in (("HTTPSHandler", "https_open"), ("HTTPHandler", "http_open"),
                         ("FTPHandler", "ftp_open"), ("FileHandler", "file_open")):  # fmt: skip
        monkeypatch.setattr(getattr(urllib.request, kind), method, lambda h, r: found.open(h, r))
    return found


@pytest.mark.parametrize(
    "scheme", ["http", "ftp", "file", "HTTP", "data", "s3", "javascript", "git+https"]
)
def test_downloads_need_https(scheme: str, web: Web, tmp_path: Path, capsys: Any) -> None:
    url = f"{scheme}://x.org/w-{HASH[:8]}.pth"
    message = message_of(fetch, url)
    assert url in message and "only https://" in message
    for script, flag in [(s, "--finetune") for s in ("cls", "semseg", "depth", "taskonomy")] + [
        ("probe", "--weights")
    ]:
        told = error_of(lambda: SCRIPTS[script]([flag, url]), capsys)  # noqa: B023
        assert flag in told and "only https://" in told
    assert web.asked == [] and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("scheme", ["http", "ftp", "file"])
def test_redirections(scheme: str, code: int, web: Web, tmp_path: Path) -> None:
    first, good = f"https://x.org/w-{HASH[:8]}.pth", "https://y.org/w"
    web.answers = {first: (code, b"", {"Location": f"{scheme}://localhost/etc/passwd"})}
    message = message_of(fetch, first)
    assert first in message and web.asked == [first]
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]
    web.answers = {first: (code, b"", {"Location": good}), good: (200, CONTENT, {})}
    assert fetch(first).read_bytes() == CONTENT


def test_hashes(web: Web, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    right, wrong = f"https://x.org/w-{HASH[:8]}.pth", "https://x.org/w-0123abcd.pth"
    web.answers = {right: (200, CONTENT, {"Content-Length": "7"}), wrong: (200, CONTENT, {})}
    assert fetch(right).read_bytes() == CONTENT and fetch(right).is_file() and len(web.asked) == 1
    message = message_of(fetch, wrong)
    assert wrong in message and HASH in message and "0123abcd" in message
    assert [p.name for p in folder.iterdir()] == [f"w-{HASH[:8]}.pth"]
    (folder / f"w-{HASH[:8]}.pth").write_bytes(b"changed")  # later, on the disk
    assert fetch(right).read_bytes() == CONTENT and len(web.asked) == 3
    (folder / f"w-{HASH[:8]}.pth").write_bytes(b"changed")
    web.answers[right] = (200, b"changed, too", {})
    assert "changed or damaged" in message_of(fetch, right)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    "answer", [(200, CONTENT[:3], {"Content-Length": "7"}), (404, b"", {}), (500, b"no", {})]
)
def test_truncated_download_is_an_error(
    answer: tuple[int, bytes, dict[str, str]], web: Web, tmp_path: Path
) -> None:
    url = "https://x.org/model.safetensors"
    web.answers = {url: answer}
    with pytest.raises(UserError, match="cannot be downloaded.*pass its path"):
        fetch(url)
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_models_are_loaded_by_url(
    web: Web, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = REPO / "weights/multimae-tiny_rooms.safetensors"
    content = weights.read_bytes()
    url = f"https://x.org/w-{sha256(content).hexdigest()[:8]}.safetensors"
    web.answers = {url: (200, content, {})}
    here, there = (MultiMAE.from_pretrained(place) for place in (weights, url))
    assert torch.equal(there.global_tokens, here.global_tokens)
    photo = REPO / "examples/rooms/rgb/kitchen/000038.jpg"
    assert cli.main(["predict", url, str(photo), "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out/reconstruction/000038.png").is_file()
    assert cli.main(["info", url]) == 0
    assert f"{url}: pretrain_multimae_tiny" in capsys.readouterr().out
    assert web.asked == [url]


def test_published_weights_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info", "--published"]) == 0
    shown = capsys.readouterr().out
    page = (REPO / "SETUP.md").read_text(encoding="utf-8")
    for each in PUBLISHED:
        assert f"  {each.url}\n  SHA-256 {each.digest}" in shown
        assert f"| `{each.file}` |" in page and len(each.digest) == 8
    assert page.count("| `") >= len(PUBLISHED) and "CC-BY-NC 4.0" in shown
    with pytest.raises(SystemExit):
        cli.main(["info"])
    assert "--published" in capsys.readouterr().err
