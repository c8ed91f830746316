"""The Gradio application, and starting it."""

from __future__ import annotations

from pathlib import Path

import gradio as gr
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from tools.app.model.demo_model import Engine
from tools.app.model.scene import examples as read_examples
from tools.app.model.session import Session
from tools.app.model.uploads import MAX_BYTES
from tools.app.page.components import static
from tools.app.page.events import Events
from tools.app.page.layout_page import TITLE, lay_out
from tools.app.server.headers import Headers
from utils.logs.errors import UserError

HOST = "127.0.0.1"
# Uploads are deleted after this many seconds, looked for this often.
_LIFETIME, _INTERVAL = 600, 60
_QUEUE = 256
_PARALLEL = 2
_SYSTEM = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "sans-serif")
_MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "monospace")


def build(weights: Path, examples: Path) -> gr.Blocks:
    """The page of a model.

    Raises:
        UserError: The weights or the examples cannot be used.
    """
    engine = Engine(weights)
    scenes = read_examples(examples, engine.spec)
    blocks: gr.Blocks
    with gr.Blocks(
        title=TITLE,
        analytics_enabled=False,
        fill_width=True,
        delete_cache=(_INTERVAL, _LIFETIME),
    ) as blocks:
        parts = lay_out(engine, scenes)
        Events(parts, Session(engine), scenes).bind(blocks)
    blocks.queue(default_concurrency_limit=_PARALLEL, max_size=_QUEUE)
    return blocks


def launch(blocks: gr.Blocks, port: int | None) -> str:
    """Serve on loopback in the background.

    Returns:
        The address.

    Raises:
        UserError: The port is taken.
    """
    middleware = [
        Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"]),
        Middleware(Headers),
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
        raise UserError(f"port {port} cannot be used: choose another --port ({err})") from err
    return str(address)
