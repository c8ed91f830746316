"""Pictures as text that a page can hold: nothing is written to disk."""

from __future__ import annotations

import base64
import io

from PIL import Image

from multimae.plotting.colours import Picture


def encode(picture: Picture) -> str:
    """A picture as a PNG in a data URI."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", compress_level=3)
    return data_uri(buffer.getvalue())


def data_uri(png: bytes) -> str:
    """A PNG as text."""
    return "data:image/png;base64," + base64.b64encode(png).decode()
