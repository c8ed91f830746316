"""The page's server: HTTP on the loopback interface, without requests to other hosts."""

from __future__ import annotations

import gzip
import hashlib
import json
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from multimae.specs.errors import UserError
from tools.app.api import Api
from tools.app.uploads import MAX_BYTES

HOST = "127.0.0.1"
FIRST_PORT, LAST_PORT = 7860, 7959
MAX_BODY_BYTES = 1_000_000
"""Of a request that uploads nothing."""
MAX_UPLOAD_BYTES = MAX_BYTES + 1
"""One byte over the limit of a file, whose message names it; longer bodies are not read."""
MAX_REQUESTS = 64
"""Answered at a time."""
_TIMEOUT_S = 30
_MIN_GZIP_BYTES = 500
_MAX_NAME = 60  # characters, of at most 4 bytes
_STATIC = Path(__file__).with_name("static")
_TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data: blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


@contextmanager
def serve(api: Api, port: int | None = None) -> Iterator[str]:
    """Serve the page in background threads inside a ``with`` block.

    Args:
        api: Models and images.
        port: Port; ``None``: the first free one from 7860.

    Yields:
        The URL.

    Raises:
        UserError: The port is in use.
    """
    with tempfile.TemporaryDirectory(prefix="multimae-app-", ignore_cleanup_errors=True) as folder:
        server = _listen(api, Path(folder), port)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1})
        thread.start()
        try:
            yield f"http://{HOST}:{server.server_port}"
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


class Server(ThreadingHTTPServer):
    """A server with the page's files and its :class:`Api`."""

    daemon_threads = True
    block_on_close = False  # a browser keeps its connections open
    request_queue_size = 128

    def __init__(self, port: int, api: Api, uploads: Path) -> None:
        """Listen on ``port``; ``uploads`` is a folder for files while they are read."""
        self.api, self.uploads = api, uploads
        self.slots = threading.BoundedSemaphore(MAX_REQUESTS)
        super().__init__((HOST, port), Handler)

    @cached_property
    def files(self) -> dict[str, tuple[str, bytes]]:
        """Type and content by path: the page, its style and its scripts."""
        files = {}
        page = (_STATIC / "page.html").read_text(encoding="utf-8")
        for path in sorted(_STATIC.iterdir()):
            if path.suffix in _TYPES:
                content = path.read_bytes()
                version = hashlib.sha256(content).hexdigest()[:8]
                files[f"/{path.name}"] = _TYPES[path.suffix], content
                page = page.replace(f'"/{path.name}"', f'"/{path.name}?v={version}"')
        config = json.dumps(self.api.config()).replace("<", "\\u003c")
        files["/"] = "text/html; charset=utf-8", page.replace("{config}", config).encode()
        return files

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Report errors other than a connection that the browser closed."""
        if not isinstance(sys.exc_info()[1], OSError):
            traceback.print_exc()


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: Server
    protocol_version = "HTTP/1.1"
    timeout = _TIMEOUT_S
    wbufsize = 2**16  # head and body in one packet
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        """Send the page, one of its files, or the thumbnail of an example."""
        if not self._is_allowed():
            return
        path = urlsplit(self.path).path
        if path in self.server.files:
            kind, content = self.server.files[path]
            self._send(200, kind, content, keep=bool(urlsplit(self.path).query) and path != "/")
        elif path.startswith("/example/") and path[9:].isdecimal():
            self._answer(lambda: ("image/webp", self.server.api.thumbnail(int(path[9:]))))
        else:
            self._refuse(404, "there is no such page")

    def do_POST(self) -> None:
        """Run an action of the page, or read an upload."""
        if not self._is_allowed():
            return
        path, _, query = self.path.partition("?")
        action = path.removeprefix("/api/")
        length = self.headers.get("content-length", "")
        limit = MAX_UPLOAD_BYTES if action == "upload" else MAX_BODY_BYTES
        if "transfer-encoding" in self.headers or not length.isdecimal():
            self._refuse(411, "the length of the body is missing")
        elif int(length[:20]) > limit:
            self._refuse(413, f"more than {limit} bytes")
        elif not self.server.slots.acquire(blocking=False):
            self._refuse(503, "too many requests at a time")
        else:
            try:
                content = self.rfile.read(int(length))
                self._answer(lambda: self._act(action, parse_qs(query), content))
            finally:
                self.server.slots.release()

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""

    def version_string(self) -> str:
        """Name of the server."""
        return "MultiMAE"

    def _act(
        self, action: str, query: Mapping[str, list[str]], content: bytes
    ) -> tuple[str, bytes]:
        """Type and content of the answer."""
        api = self.server.api
        if action == "upload":
            values = {key: found[0] for key, found in query.items()}
            return _json(self._upload(content, **{k: values.get(k, "") for k in _UPLOAD_KEYS}))
        try:
            body = json.loads(content)
        except (ValueError, RecursionError) as err:
            raise UserError("The request is not JSON.") from err
        if not isinstance(body, dict):
            raise UserError("The request is not a JSON object.")
        if action == "png":
            return "image/png", api.png(body)
        if action not in api.actions:
            raise UserError(f"There is no action “{action[:40]}”.")
        return _json(api.actions[action](body))

    def _upload(self, content: bytes, modality: str, name: str, onto: str) -> dict[str, Any]:
        """Read a file from a folder that exists meanwhile."""
        with tempfile.TemporaryDirectory(dir=self.server.uploads) as folder:
            path = Path(folder) / safe_name(name)
            path.write_bytes(content)
            return self.server.api.upload(path, modality, onto)

    def _answer(self, act: Any) -> None:
        """Send the result of a call; user errors as a message, others as one, too."""
        status = 200
        try:
            kind, content = act()
        except UserError as err:
            status, (kind, content) = 422, _json({"error": str(err)})
        except Exception:
            traceback.print_exc()
            status = 500
            kind, content = _json({"error": "The server failed: its terminal says why."})
        self._send(status, kind, content)

    def _is_allowed(self) -> bool:
        """Refuse other hosts (DNS rebinding) and requests that other origins send."""
        headers = {name.lower(): value for name, value in self.headers.items()}
        problem = refusal(headers)
        if problem:
            self._refuse(*problem)
        return problem is None

    def _refuse(self, status: int, why: str) -> None:
        """Answer without reading the body, and close the connection."""
        self.close_connection = True
        self._send(status, *_json({"error": f"Refused: {why}."}))

    def _send(self, status: int, kind: str, content: bytes, *, keep: bool = False) -> None:
        """Send a response, compressed where that pays; ``keep``: the browser may keep it."""
        packed = "gzip" in self.headers.get("accept-encoding", "") and not kind.startswith("image/")
        if packed and len(content) >= _MIN_GZIP_BYTES:
            content = gzip.compress(content, 6)
        else:
            packed = False
        self.send_response(status)
        headers = {
            **_HEADERS,
            "Content-Type": kind,
            "Content-Length": str(len(content)),
            "Cache-Control": "max-age=31536000, immutable" if keep else "no-store",
            **({"Content-Encoding": "gzip"} if packed else {}),
            **({"Connection": "close"} if self.close_connection else {}),
        }
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)


_UPLOAD_KEYS = ("modality", "name", "onto")


def safe_name(name: str) -> str:
    """Name of a file for a name that a browser sent."""
    last = name.replace("\\", "/").rpartition("/")[2]
    short = "".join(c for c in last if c.isprintable())[-_MAX_NAME:]
    return short if short.strip(". ") else "upload"


def refusal(headers: Mapping[str, str]) -> tuple[int, str] | None:
    """Status and reason for which a request is refused; ``None``: it is not.

    A page of another origin may neither call the server nor read from it, whatever name it reached
    it by. Following a link is allowed; a request of no browser has none of these headers.
    """
    host, origin = headers.get("host", ""), headers.get("origin")
    if host.rpartition(":")[0] not in (HOST, "localhost"):
        return 400, "unknown host"
    if origin is not None and origin.lower() != f"http://{host.lower()}":
        return 403, "requests of other origins"
    crossing = headers.get("sec-fetch-site") in ("cross-site", "same-site")
    if crossing and headers.get("sec-fetch-mode") != "navigate":
        return 403, "requests of other origins"
    return None


def _json(content: Mapping[str, Any]) -> tuple[str, bytes]:
    return "application/json", json.dumps(content, separators=(",", ":")).encode()


def _listen(api: Api, uploads: Path, port: int | None) -> Server:
    ports = range(FIRST_PORT, LAST_PORT + 1) if port is None else (port,)
    problem: Exception | None = None
    for number in ports:
        try:
            return Server(number, api, uploads)
        except (OSError, OverflowError) as err:
            problem = err
    named = f"port {port} is" if port is not None else f"ports {FIRST_PORT} to {LAST_PORT} are"
    raise UserError(f"{named} not available, choose another --port: {problem}") from problem
