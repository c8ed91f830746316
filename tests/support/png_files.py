"""PNG files of any bit depth, most of which Pillow cannot write."""

from __future__ import annotations

import struct
import zlib

import numpy as np

_COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}


def png_bytes(values: np.ndarray, bits: int) -> bytes:
    """Encode ``(H, W)`` or ``(H, W, C)`` with ``bits`` per sample."""
    height, width = values.shape[:2]
    channels = 1 if values.ndim == 2 else values.shape[2]
    header = struct.pack(">IIBBBBB", width, height, bits, _COLOUR_TYPES[channels], 0, 0, 0)
    rows = b"".join(b"\0" + _row(row.reshape(-1), bits) for row in values)
    chunks = (b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(name, data) for name, data in chunks)


def _row(samples: np.ndarray, bits: int) -> bytes:
    if bits >= 8:
        return samples.astype(">u2" if bits == 16 else "u1").tobytes()
    planes = samples[:, None] >> np.arange(bits)[::-1] & 1
    return np.packbits(planes.reshape(-1).astype(np.uint8)).tobytes()


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
