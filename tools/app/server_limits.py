"""Requests that the server of the page refuses: foreign origins, large bodies, too many uploads."""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

MAX_BODY_BYTES = 4_000_000
"""Of a request that uploads nothing."""
MAX_UPLOAD_BYTES = 50_000_000
"""Of one request with uploads."""
MAX_STORED_BYTES, MAX_STORED_FILES = 500_000_000, 2000
"""Of all uploads that are still stored."""

Message = MutableMapping[str, Any]


class _TooLargeError(Exception):
    """The body exceeds its limit."""


class RequestLimits:
    """ASGI middleware in front of every route.

    A page of another origin may neither call the server nor read from it, whatever name it reached
    it by (DNS rebinding: the host is checked before).
    """

    def __init__(self, app: Any, uploads: Path | None = None) -> None:
        """Wrap an application; ``uploads`` is the folder of stored uploads."""
        self.app, self.uploads = app, uploads

    async def __call__(self, scope: Message, receive: Any, send: Any) -> None:
        """Forward a call that is within the limits."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        if _is_foreign(headers):
            await _refuse(scope, send, 403, "requests of other origins are refused")
            return
        uploads = scope["path"].rstrip("/").endswith("/upload")
        limit = MAX_UPLOAD_BYTES if uploads else MAX_BODY_BYTES
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length[:20]) > limit:
            await _refuse(scope, send, 413, f"more than {limit} bytes")
            return
        if uploads and self._is_full(limit):
            await _refuse(scope, send, 429, "too many uploads: they are removed after 10 minutes")
            return
        started = False

        async def sent(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, _bounded(receive, limit), sent)
        except _TooLargeError:
            if not started:
                await _refuse(scope, send, 413, f"more than {limit} bytes")

    def _is_full(self, more: int) -> bool:
        """Whether the stored uploads and ``more`` bytes exceed the limits."""
        if self.uploads is None:
            return False
        size = count = 0
        for folder, _, names in os.walk(self.uploads):
            count += len(names)
            for name in names:
                try:
                    size += os.stat(os.path.join(folder, name)).st_size
                except OSError:  # removed since
                    continue
        return count >= MAX_STORED_FILES or size + more > MAX_STORED_BYTES


def _is_foreign(headers: dict[bytes, bytes]) -> bool:
    """Whether a browser sent the request for a page of another origin.

    Following a link is allowed; a request of no browser has none of these headers.
    """
    origin, host = headers.get(b"origin"), headers.get(b"host", b"")
    if origin is not None and origin.lower() != b"http://" + host.lower():
        return True
    crossing = headers.get(b"sec-fetch-site") in (b"cross-site", b"same-site")
    return crossing and headers.get(b"sec-fetch-mode") != b"navigate"


def _bounded(receive: Any, limit: int) -> Any:
    """``receive`` that raises beyond ``limit`` bytes of body."""
    total = 0

    async def counted() -> Message:
        nonlocal total
        message: Message = await receive()
        if message["type"] == "http.request":
            total += len(message.get("body", b""))
            if total > limit:
                raise _TooLargeError
        return message

    return counted


async def _refuse(scope: Message, send: Any, status: int, text: str) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": text})
        return
    headers = [(b"content-type", b"text/plain"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})
