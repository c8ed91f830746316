"""Serve the page on the loopback interface, offline, with uploads in a temporary folder."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from multimae.specs.errors import UserError

_OFFLINE = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "GRADIO_SHARE": "False",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}


@contextmanager
def offline_environment() -> Iterator[Path]:
    """Set Gradio's offline settings and its temporary upload folder; use before importing Gradio.

    Yields:
        The folder, which is removed on exit.
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
    """Serve the page inside a ``with`` block.

    Args:
        weights: Weights with an embedded model spec.
        examples: Folder with a sub-folder per modality.
        port: Port; ``None`` picks the first free one from 7860.

    Yields:
        The URL.

    Raises:
        UserError: Gradio is missing, the port is in use, or a file is invalid.
    """
    with offline_environment():
        try:
            from tools.app.application import build, launch
        except ImportError as err:
            raise UserError(f"the demo requires Gradio: pip install 'gradio>=6' ({err})") from err
        blocks = build(weights, examples)
        try:
            yield launch(blocks, port)
        finally:
            blocks.close()
