"""The Gradio application and its server settings."""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from multimae.specs.errors import UserError
from tools.app.components import static
from tools.app.engine import Engine
from tools.app.events import Events
from tools.app.page_layout import TITLE, build_layout
from tools.app.scenes import examples as read_examples
from tools.app.server_limits import RequestLimits
from tools.app.session import Session
from tools.app.uploads import MAX_BYTES

HOST = "127.0.0.1"
_UPLOAD_LIFETIME_S, _CLEANUP_INTERVAL_S = 600, 60
_MAX_QUEUE = 256
_CONCURRENCY = 2
_SYSTEM = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "sans-serif")
_MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "monospace")


def build(weights: Path, examples: Path) -> gr.Blocks:
    """Build the page of a model.

    Raises:
        UserError: The weights or the examples are invalid.
    """
    engine = Engine(weights)
    scenes = read_examples(examples, engine.spec)
    blocks: gr.Blocks
    with gr.Blocks(
        title=TITLE,
        analytics_enabled=False,
        fill_width=True,
        delete_cache=(_CLEANUP_INTERVAL_S, _UPLOAD_LIFETIME_S),
    ) as blocks:
        parts = build_layout(engine, scenes)
        Events(parts, Session(engine), scenes).bind(blocks)
    blocks.queue(default_concurrency_limit=_CONCURRENCY, max_size=_MAX_QUEUE)
    return blocks


def launch(blocks: gr.Blocks, port: int | None) -> str:
    """Serve on the loopback interface in a background thread.

    Returns:
        The URL.

    Raises:
        UserError: The port is in use.
    """
    middleware = [
        Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"]),
        Middleware(SecurityHeaders),
        Middleware(RequestLimits, uploads=Path(os.environ["GRADIO_TEMP_DIR"])),
    ]
    theme = gr.themes.Base(
        primary_hue="indigo", neutral_hue="slate", radius_size="md", font=_SYSTEM, font_mono=_MONO
    )
    try:
        _, address, _ = blocks.launch(
            server_name=HOST,
            server_port=port,
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            enable_monitoring=False,
            run_history=False,
            footer_links=[],
            max_file_size=MAX_BYTES,
            app_kwargs={"middleware": middleware},
            theme=theme,
            css=static("page.css"),
        )
    except OSError as err:
        raise UserError(f"port {port} is not available, choose another --port: {err}") from err
    return str(address)


# Restrict the browser to this server. gr.HTML compiles templates, hence 'unsafe-eval'.
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


class SecurityHeaders:
    """ASGI middleware that adds the security headers to every response."""

    def __init__(self, app: Any) -> None:
        """Wrap an application."""
        self.app = app

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        """Forward the call, adding headers to the response start."""

        async def extended(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *_HEADERS]
            await send(message)

        await self.app(scope, receive, extended)
