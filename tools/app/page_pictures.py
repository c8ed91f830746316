"""Pictures, scales and legends as the page receives them."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image

from multimae.images.preprocess import to_model_input
from multimae.plotting.colours import Picture, label_palette, scalar_colours
from multimae.plotting.pictures import to_picture
from multimae.specs.modalities import Modality
from tools.app.strokes import Array

MAX_LEGEND = 16
_QUALITY = 82
RAMP = [
    "#{:02x}{:02x}{:02x}".format(*colour)
    for colour in scalar_colours(np.linspace(0.0, 1.0, 9)[None], 0.0, 1.0)[0].tolist()
]
"""Colours of scalar maps, from low to high."""


@dataclass
class Sender:
    """Encodes pictures; those that the browser has are sent by name only.

    Attributes:
        have: Names of the pictures that the browser has.
    """

    have: Collection[str] = field(default_factory=frozenset)

    def __call__(self, picture: Picture, *, exact: bool = False) -> dict[str, str]:
        """A picture as ``{"id", "data"}``; ``exact``: without loss, for labels."""
        kind = b"exact" if exact else b"lossy"
        digest = hashlib.sha256(kind + repr(picture.shape).encode() + picture.tobytes())
        name = digest.hexdigest()[:16]
        if name in self.have:
            return {"id": name}
        return {"id": name, "data": data_uri(webp(picture, exact=exact))}


def webp(picture: Picture, *, exact: bool = False) -> bytes:
    """Encode a picture as WebP."""
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "WEBP", quality=_QUALITY, lossless=exact, method=4)
    return stream.getvalue()


def data_uri(content: bytes) -> str:
    """Wrap WebP bytes in a data URI."""
    return "data:image/webp;base64," + base64.b64encode(content).decode()


def picture_of_stored(pixels: Array, m: Modality) -> Picture:
    """Render stored values, ``(h, w)`` or ``(h, w, C)``."""
    if not m.is_labels:
        pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    x = to_model_input(torch.from_numpy(np.ascontiguousarray(pixels))[None], m)[0]
    return to_picture(x, m, x)


def class_name(m: Modality, index: int) -> str:
    """Name of a class, or its id if it has none."""
    return m.class_names[index] if index < len(m.class_names) else str(index)


def hex_colours(count: int) -> list[str]:
    """Colours of class ids ``0..count-1``, as ``#rrggbb``."""
    return ["#{:02x}{:02x}{:02x}".format(*colour) for colour in label_palette(count).tolist()]


def chips(named: Iterable[tuple[str, str]]) -> list[dict[str, str]]:
    """A legend of names and colours, cut at :data:`MAX_LEGEND`."""
    listed = [{"name": name, "colour": colour} for name, colour in named]
    rest = len(listed) - MAX_LEGEND
    more = [{"name": f"and {rest} more", "colour": ""}] if rest > 0 else []
    return listed[:MAX_LEGEND] + more


def scale(title: str, low: str, high: str) -> dict[str, Any]:
    """A bar of colours with what its ends mean."""
    return {"title": title, "low": low, "high": high}
