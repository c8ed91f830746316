"""Serving the page: on loopback, offline, and without a trace on disk."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from utils.errors import UserError

HOST = "127.0.0.1"
# The browser may load and call nothing but this server; gr.HTML compiles templates: 'unsafe-eval'.
POLICY = "; ".join(
    [
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "connect-src 'self' data: blob:",
        "worker-src 'self' blob:",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    ]
)
_HEADERS = [
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
]
_OFFLINE = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "GRADIO_SHARE": "False",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}


class Headers:
    """ASGI middleware that adds the security headers to every response."""

    def __init__(self, app: Any) -> None:
        """Wrap an application."""
        self.app = app

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        """Pass everything on; extend the start of a response."""

        async def extended(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *_HEADERS]
            await send(message)

        await self.app(scope, receive, extended)


@contextmanager
def quiet_surroundings() -> Iterator[Path]:
    """Offline settings and a temporary folder for uploads, before Gradio is imported.

    Yields:
        The folder; it is removed in the end.
    """
    with tempfile.TemporaryDirectory(prefix="multimae-app-") as folder:
        changed = {**_OFFLINE, "GRADIO_TEMP_DIR": folder, "MPLCONFIGDIR": folder}
        saved = {name: os.environ.get(name) for name in changed}
        os.environ.update(changed)
        try:
            yield Path(folder)
        finally:
            for name, value in saved.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value


@contextmanager
def serve(weights: Path, examples: Path, port: int | None = None) -> Iterator[str]:
    """Serve the page until the block ends.

    Args:
        weights: A weight file that describes its model.
        examples: Folder with a sub-folder per modality.
        port: Port on loopback; the first free one from 7860 on if ``None``.

    Yields:
        The address.

    Raises:
        UserError: Gradio is missing, the port is taken, or a file cannot be used.
    """
    with quiet_surroundings():
        try:
            from utils.app.application import build, launch
        except ImportError as err:
            raise UserError(f"the page needs Gradio: pip install 'gradio>=6' ({err})") from err
        blocks = build(weights, examples)
        try:
            yield launch(blocks, port)
        finally:
            blocks.close()
