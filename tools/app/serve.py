"""Serving the page: on loopback, offline, and without a trace on disk."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from utils.logs.errors import UserError

_OFFLINE = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "GRADIO_SHARE": "False",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}


@contextmanager
def offline_environment() -> Iterator[Path]:
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
    with offline_environment():
        try:
            from tools.app.application import build, launch
        except ImportError as err:
            raise UserError(f"the page needs Gradio: pip install 'gradio>=6' ({err})") from err
        blocks = build(weights, examples)
        try:
            yield launch(blocks, port)
        finally:
            blocks.close()
