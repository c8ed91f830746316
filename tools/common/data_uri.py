"""Images as data URIs for HTML pages."""

from __future__ import annotations

import base64
import io

from PIL import Image

from multimae.plotting.colours import Picture


def encode(picture: Picture) -> str:
    """Encode an image as a PNG data URI."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", compress_level=3)
    return data_uri(buffer.getvalue())


def data_uri(png: bytes) -> str:
    """Wrap PNG bytes in a data URI."""
    return "data:image/png;base64," + base64.b64encode(png).decode()
