"""Servers on the loopback interface: HTTP with ranges and faults, and S3."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote, unquote
from urllib.request import Request, urlopen


@dataclass
class FileServer:
    """A running server.

    Attributes:
        url: Address of the served folder.
        ranges: Whether it supports ranges.
        drop_every: Close every n-th connection without an answer, or in the middle of one.
        status: Status of every answer instead of the file, if not 0.
        requests: Path and range of the requests.
    """

    root: Path
    url: str = ""
    ranges: bool = True
    drop_every: int = 0
    status: int = 0
    requests: list[tuple[str, str]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


@contextmanager
def http_server(root: Path, **options: object) -> Iterator[FileServer]:
    state = FileServer(root, **options)  # type: ignore[arg-type]

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = 2**16  # one packet for head and body: two would wait for each other

        def do_GET(self) -> None:
            with state.lock:
                state.requests.append((self.path, self.headers.get("Range", "")))
                number = len(state.requests)
            drop = state.drop_every and number % state.drop_every == 0
            path = state.root / unquote(self.path).lstrip("/")
            if drop and number % (2 * state.drop_every):
                self.close_connection = True
                return
            if path.is_dir() and not state.status:
                links = [f"{quote(p.name)}{'/' * p.is_dir()}" for p in sorted(path.iterdir())]
                page = "".join(f'<a href="{link}">{link}</a>' for link in links).encode()
                self.send_response(200)
                self.send_header("Content-Type", "text/html")
                self.send_header("Content-Length", str(len(page)))
                self.end_headers()
                self.wfile.write(page)
                return
            if state.status or not path.is_file():
                self.send_response(state.status or 404)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            asked = self.headers.get("Range") if state.ranges else None
            if asked:
                first, last = map(int, asked.removeprefix("bytes=").split("-"))
                with path.open("rb") as stream:
                    stream.seek(first)
                    data = stream.read(last + 1 - first)
                self.send_response(206)
                total = path.stat().st_size
                self.send_header("Content-Range", f"bytes {first}-{last}/{total}")
            else:
                data = path.read_bytes()
                self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2] if drop else data)
            self.close_connection = bool(drop)

        def log_message(self, *_: object) -> None:
            """Quiet."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            """Clients that were killed."""

    server = Server(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def s3_server() -> Iterator[str]:
    """Address of an empty S3 service that any credentials open."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    address = "http://{}:{}".format(*server.get_host_and_port())
    urlopen(Request(f"{address}/moto-api/reset", method="POST")).close()
    try:
        yield address
    finally:
        server.stop()
