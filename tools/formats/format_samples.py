"""A small file of every format and layout, with the values that were written."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image

from multimae.images.pixels import Array

HEIGHT, WIDTH = 24, 40
Write = Callable[[Path], object]


@dataclass(frozen=True)
class Sample:
    """One row of the table.

    Attributes:
        name: Its label.
        suffix: Extension of the file.
        write: Writes the file.
        values: Stored values ``(H, W)`` or ``(H, W, C)``, upright; ``None``: no image.
        bits: Of a value, if fewer than 8.
        rgb: Colours ``(H, W, 3)`` that the file shows, if they are not ``values``.
        tolerance: Largest deviation of a decoded value; 0 for lossless files.
        alone: Whether it has a data root of its own, as it ends the reading or packing of a folder.
    """

    name: str
    suffix: str
    write: Write
    values: Array | None = None
    bits: int = 8
    rgb: Array | None = None
    tolerance: int = 0
    alone: bool = False


def _ramp(channels: int = 1) -> Array:
    """Smooth 8-bit values without symmetry, which lossy formats change little."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    bands = [20 + (c + 1) * y + (1 + (c * 2) % 3) * x for c in range(channels)]
    return np.stack(bands, -1).astype(np.uint8) if channels > 1 else bands[0].astype(np.uint8)


_RNG = np.random.default_rng(0)
IDS = _RNG.integers(0, 100, (HEIGHT, WIDTH), np.uint8)
GREY, COLOURS = _ramp(), _ramp(3)
WIDE = _RNG.integers(300, 65536, (HEIGHT, WIDTH), np.uint16)
WIDE_COLOURS = _RNG.integers(300, 65536, (HEIGHT, WIDTH, 3), np.uint16)
FLOATS = _RNG.uniform(-5, 300, (HEIGHT, WIDTH))
_PALETTE = _RNG.integers(0, 256, (256, 3), np.uint8)


def samples() -> Iterator[Sample]:
    """Every row, in the order of the table."""
    yield from _jpegs()
    yield from _pngs()
    yield from _other_pictures()
    yield from _jpeg_2000()
    yield from _tiffs()
    yield from _tiff_layouts()
    yield from _tiff_pages()
    yield from _arrays()
    yield from _odd_files()


def _save(image: Array | Image.Image, kind: str, **how: Any) -> Write:
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    return lambda path: picture.save(path, kind, **how)


def _bytes(data: bytes) -> Write:
    return lambda path: path.write_bytes(data)


def _encoded(image: Array, kind: str, **how: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, kind, **how)
    return stream.getvalue()


def _jpegs() -> Iterator[Sample]:
    how: dict[str, Any] = {"quality": 95, "subsampling": 0}
    cmyk = np.concatenate([COLOURS, GREY[..., None] // 4], -1)
    inks = (255 - cmyk.astype(float)) / 255
    shown = np.rint(inks[..., :3] * inks[..., 3:] * 255).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise
    turned = np.ascontiguousarray(np.rot90(COLOURS))
    ink_image = Image.frombytes("CMYK", (WIDTH, HEIGHT), cmyk.tobytes())
    yield Sample("JPEG grey", "jpg", _save(GREY, "JPEG", **how), GREY, tolerance=4)
    yield Sample("JPEG RGB", "jpg", _save(COLOURS, "JPEG", **how), COLOURS, tolerance=4)
    progressive = _save(COLOURS, "JPEG", progressive=True, **how)
    yield Sample("JPEG progressive", "jpeg", progressive, COLOURS, tolerance=4)
    yield Sample("JPEG CMYK", "jpg", _save(ink_image, "JPEG", **how), cmyk, 8, shown, 6)
    rotated = _save(turned, "JPEG", exif=exif, **how)
    yield Sample("JPEG rotated by EXIF", "jpg", rotated, COLOURS, tolerance=4)
    yield Sample("JFIF", "jfif", _save(COLOURS, "JPEG", **how), COLOURS, tolerance=4)
    yield Sample("JPEG named .png", "png", _save(COLOURS, "JPEG", **how), COLOURS, tolerance=4)
    yield Sample("JPEG grey named .png", "png", _save(GREY, "JPEG", **how), GREY, tolerance=4)


def _pngs() -> Iterator[Sample]:
    for bits in (1, 2, 4):
        few = IDS % 2**bits
        yield Sample(f"PNG grey {bits} bit", "png", _bytes(png(few, bits)), few, bits)
    yield Sample("PNG grey 8 bit", "png", _save(IDS, "PNG"), IDS)
    yield Sample("PNG grey 16 bit", "png", _save(WIDE, "PNG"), WIDE)
    small = IDS.astype(np.uint16)
    yield Sample("PNG grey 16 bit, values of 8", "png", _save(small, "PNG"), small, 16)
    for bits, count in ((8, 100), (4, 16), (1, 2)):
        ids = IDS % count
        indexed = Image.fromarray(ids)
        indexed.putpalette(_PALETTE[:count].tobytes())
        write = _save(indexed, "PNG", bits=bits)
        yield Sample(f"PNG palette {bits} bit", "png", write, ids, 8, _PALETTE[ids])
    keyed = Image.fromarray(IDS)
    keyed.putpalette(_PALETTE.tobytes())
    write = _save(keyed, "PNG", transparency=int(IDS[0, 0]))
    yield Sample("PNG palette, tRNS", "png", write, IDS, 8, np.full_like(COLOURS, 0))
    yield Sample("PNG RGB", "png", _save(COLOURS, "PNG"), COLOURS)
    key = tuple(int(v) for v in COLOURS[3, 4])
    yield Sample("PNG RGB, tRNS", "png", _save(COLOURS, "PNG", transparency=key))
    yield Sample(
        "PNG RGB, tRNS unused", "png", _save(COLOURS, "PNG", transparency=(0, 0, 0)), COLOURS
    )
    opaque = np.dstack([COLOURS, np.full_like(GREY, 255)])
    yield Sample("PNG RGBA, opaque", "png", _save(opaque, "PNG"), opaque, 8, COLOURS)
    clear = np.dstack([COLOURS, GREY])
    yield Sample("PNG RGBA, transparent", "png", _save(clear, "PNG"), clear, 8, clear)
    grey_alpha = np.dstack([IDS, np.full_like(IDS, 255)])
    yield Sample("PNG grey and alpha", "png", _bytes(png(grey_alpha, 8)), grey_alpha, 8, _grey(IDS))
    wide = _bytes(png(WIDE_COLOURS, 16))
    yield Sample("PNG RGB 16 bit", "png", wide, WIDE_COLOURS)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = np.ascontiguousarray(np.rot90(IDS))
    yield Sample("PNG rotated by EXIF", "png", _save(turned, "PNG", exif=exif), IDS)
    frames = [Image.fromarray(COLOURS), Image.fromarray(COLOURS[::-1])]
    animated = _save(frames[0], "PNG", save_all=True, append_images=frames[1:])
    yield Sample("PNG animated", "png", animated)


def _other_pictures() -> Iterator[Sample]:
    yield Sample("WebP lossy", "webp", _save(COLOURS, "WEBP", quality=95), COLOURS, tolerance=8)
    yield Sample("WebP lossless", "webp", _save(COLOURS, "WEBP", lossless=True), COLOURS)
    how = {"quality": 95, "subsampling": "4:4:4"}
    yield Sample("AVIF", "avif", _save(COLOURS, "AVIF", **how), COLOURS, tolerance=8)
    size = b"%d %d\n" % (WIDTH, HEIGHT)
    yield Sample("PPM", "ppm", _bytes(b"P6 " + size + b"255\n" + COLOURS.tobytes()), COLOURS)
    wide = WIDE_COLOURS.astype(">u2").tobytes()
    yield Sample("PPM 16 bit", "ppm", _bytes(b"P6 " + size + b"65535\n" + wide), WIDE_COLOURS)
    yield Sample("PGM", "pgm", _bytes(b"P5 " + size + b"255\n" + IDS.tobytes()), IDS)
    deep = WIDE.astype(">u2").tobytes()
    yield Sample("PGM 16 bit", "pgm", _bytes(b"P5 " + size + b"65535\n" + deep), WIDE)
    text = b" ".join(b"%d" % v for v in IDS.reshape(-1))
    yield Sample("PGM text", "pgm", _bytes(b"P2 # ids\n" + size + b"255\n" + text), IDS)
    yield Sample("BMP", "bmp", _save(COLOURS, "BMP"), COLOURS)
    yield Sample("BMP grey", "bmp", _save(IDS, "BMP"), IDS)
    indexed = Image.fromarray(IDS)
    indexed.putpalette(_PALETTE.tobytes())
    yield Sample("BMP palette", "bmp", _save(indexed, "BMP"), IDS, 8, _PALETTE[IDS])
    yield Sample("GIF", "gif", _save(IDS, "GIF"), IDS, alone=True)
    yield Sample("GIF named .png", "png", _save(IDS, "GIF"), IDS)


def _jpeg_2000() -> Iterator[Sample]:
    def jp2(values: Array, **how: Any) -> Write:
        return _save(values, "JPEG2000", **how)

    for suffix in ("jp2", "jpx"):
        yield Sample(f"JPEG 2000 .{suffix}", suffix, jp2(COLOURS), COLOURS)
        yield Sample(f"JPEG 2000 .{suffix} grey", suffix, jp2(IDS), IDS)
        yield Sample(f"JPEG 2000 .{suffix} 16 bit", suffix, jp2(WIDE), WIDE)
    raw = jp2(IDS, no_jp2=True)
    yield Sample("JPEG 2000 codestream", "j2k", raw, IDS)
    lossy: dict[str, Any] = {"irreversible": True, "quality_mode": "dB", "quality_layers": [50]}
    cut: dict[str, Any] = {"irreversible": False, "quality_layers": [4]}  # lacks coding passes
    fine: dict[str, Any] = {"irreversible": True}
    smooth = _ramp(4)[..., 0].astype(np.uint16) * 200
    for name, how in (("9/7", lossy), ("5/3 truncated", cut)):
        yield Sample(f"JPEG 2000 lossy {name}", "jp2", jp2(COLOURS, **how), COLOURS, tolerance=16)
        yield Sample(f"JPEG 2000 lossy {name}, grey", "jp2", jp2(GREY, **how), GREY, tolerance=16)
    yield Sample("JPEG 2000 lossy 9/7, 16 bit", "jpx", jp2(smooth, **fine), smooth, tolerance=64)


def _tiff(values: Array, **how: Any) -> Write:
    how.setdefault("photometric", "rgb" if values.ndim == 3 else "minisblack")
    return lambda path: tifffile.imwrite(path, values, **how)


def _tiffs() -> Iterator[Sample]:
    for dtype in ("uint8", "uint16", "int16", "uint32", "float16", "float32", "float64"):
        values = IDS.astype(dtype)
        if dtype == "uint16":
            values = WIDE
        elif dtype == "int16":
            values = (WIDE >> 4).astype(np.int16)
        elif values.dtype.kind == "f":
            values = FLOATS.astype(dtype)
        yield Sample(f"TIFF {dtype}", "tif", _tiff(values), values)
    negative = FLOATS.astype(np.int16)
    yield Sample("TIFF int16, negative", "tif", _tiff(negative), negative)
    for bits in (1, 4):
        few = IDS % 2**bits
        write = _tiff(few, bitspersample=bits) if bits > 1 else _tiff(few.astype(bool))
        yield Sample(f"TIFF {bits} bit", "tif", write, few, bits)
    white = _tiff(IDS, photometric="miniswhite")
    yield Sample("TIFF white is 0", "tif", white, IDS, 8, _grey(255 - IDS))
    colours = np.repeat(np.arange(256, dtype=np.uint16)[None] * 257, 3, 0)
    palette = _tiff(IDS, photometric="palette", colormap=colours)
    yield Sample("TIFF palette", "tif", palette, IDS)


def _tiff_layouts() -> Iterator[Sample]:
    yield Sample("TIFF RGB", "tiff", _tiff(COLOURS), COLOURS)
    yield Sample("TIFF tiles", "tif", _tiff(COLOURS, tile=(16, 16)), COLOURS)
    yield Sample("TIFF strips", "tif", _tiff(WIDE, rowsperstrip=5), WIDE)
    for name in ("deflate", "lzw", "zstd", "packbits", "lzma", "lerc"):
        yield Sample(f"TIFF {name}", "tif", _tiff(WIDE, compression=name), WIDE)
    predicted = _tiff(WIDE, compression="deflate", predictor=True)
    yield Sample("TIFF deflate, predictor", "tif", predicted, WIDE)
    deep = FLOATS.astype(np.float32)
    predicted = _tiff(deep, compression="deflate", predictor=True)
    yield Sample("TIFF float32, predictor", "tif", predicted, deep)
    how: dict[str, Any] = {"compression": "jpeg", "compressionargs": {"level": 95}}
    yield Sample("TIFF JPEG", "tif", _tiff(COLOURS, **how), COLOURS, tolerance=12)
    yield Sample(
        "TIFF JPEG grey",
        "tif",
        _save(GREY, "TIFF", compression="jpeg", quality=95),
        GREY,
        tolerance=4,
    )
    loss = _tiff(IDS, compression="lerc", compressionargs={"level": 4})
    yield Sample("TIFF LERC, lossy", "tif", loss, IDS, tolerance=4)
    how = {"compression": "webp", "compressionargs": {"level": 90, "lossless": False}}
    yield Sample("TIFF WebP, lossy", "tif", _tiff(COLOURS, **how), COLOURS, tolerance=12)
    planar = _tiff(np.moveaxis(COLOURS, -1, 0), planarconfig="separate", photometric="rgb")
    yield Sample("TIFF planar bands", "tif", planar, COLOURS)
    bands = _RNG.uniform(0, 1, (HEIGHT, WIDTH, 6)).astype(np.float32)
    how = {"photometric": "minisblack", "planarconfig": "contig"}
    yield Sample("TIFF 6 bands float32", "tif", _tiff(bands, **how), bands)
    opaque = np.dstack([COLOURS, np.full_like(GREY, 255)])
    alpha = _tiff(opaque, extrasamples=["unassalpha"])
    yield Sample("TIFF RGBA, opaque", "tif", alpha, opaque, 8, COLOURS)
    fourth = _tiff(np.dstack([COLOURS, GREY]), extrasamples=["unspecified"])
    yield Sample("TIFF RGB and infrared", "tif", fourth, np.dstack([COLOURS, GREY]))
    yield Sample("TIFF big-endian", "tif", _tiff(WIDE, byteorder=">"), WIDE)
    yield Sample("BigTIFF", "tif", _tiff(WIDE, bigtiff=True), WIDE)
    turned = np.ascontiguousarray(np.rot90(WIDE))
    rotated = _tiff(turned, extratags=[(274, "H", 1, 6, True)])
    yield Sample("TIFF rotated by its tag", "tif", rotated, WIDE)
    yield Sample("TIFF named .png", "png", _tiff(WIDE), WIDE)


def _tiff_pages() -> Iterator[Sample]:
    pages = _tiff(np.moveaxis(COLOURS, -1, 0), photometric="minisblack")
    yield Sample("TIFF page per channel", "tif", pages, COLOURS)
    other = _tiff(np.stack([IDS, IDS[::-1]]), photometric="minisblack")
    yield Sample("TIFF 2 pages", "tif", other, np.dstack([IDS, IDS[::-1]]))
    yield Sample("TIFF overviews and masks (COG)", "tif", _cog, COLOURS)
    empty = FLOATS.astype(np.float32)
    empty[0] = -9999
    no_data = [(42113, "s", 0, "-9999", True)]
    yield Sample("TIFF no-data tag", "tif", _tiff(empty, extratags=no_data))
    full = FLOATS.astype(np.float32)
    yield Sample("TIFF no-data tag, no such pixel", "tif", _tiff(full, extratags=no_data), full)
    geo = [
        (33550, "d", 3, (10.0, 10.0, 0.0), True),
        (33922, "d", 6, (0.0, 0.0, 0.0, 5e5, 4e6, 0.0), True),
        (34735, "H", 8, (1, 1, 0, 1, 3072, 0, 1, 32633), True),
    ]
    yield Sample("GeoTIFF", "tif", _tiff(WIDE, extratags=geo), WIDE)


def _cog(path: Path) -> None:
    with tifffile.TiffWriter(path) as file:
        file.write(COLOURS, photometric="rgb", subifds=1)
        file.write(COLOURS[::2, ::2], photometric="rgb", subfiletype=1)
        file.write(COLOURS[::4, ::4], photometric="rgb", subfiletype=1)
        file.write(GREY > 40, photometric="mask", subfiletype=4)
        file.write(GREY[::2, ::2] > 40, photometric="mask", subfiletype=5)


def _npy(values: Array) -> Write:
    return lambda path: np.save(path, values, allow_pickle=values.dtype == object)


def _arrays() -> Iterator[Sample]:
    for dtype in ("uint8", "uint16", "int16", "int64", "float16", "float32", "float64"):
        values = FLOATS if dtype[0] == "f" else WIDE >> 8 if dtype == "uint8" else WIDE >> 1
        stored = values.astype(dtype)
        yield Sample(f".npy {dtype}", "npy", _npy(stored), stored)
    yield Sample(".npy ids", "npy", _npy(IDS), IDS)
    yield Sample(".npy bool", "npy", _npy(IDS > 50))
    yield Sample(".npy (H, W, 1)", "npy", _npy(IDS[..., None]), IDS)
    yield Sample(".npy (H, W, 3) uint8", "npy", _npy(COLOURS), COLOURS)
    yield Sample(".npy (3, H, W) uint8", "npy", _npy(np.moveaxis(COLOURS, -1, 0).copy()))
    yield Sample(".npy (H, W, 3) uint16", "npy", _npy(WIDE_COLOURS), WIDE_COLOURS)
    yield Sample(".npy Fortran order", "npy", _npy(np.asfortranarray(WIDE)), WIDE)
    yield Sample(".npy big-endian", "npy", _npy(WIDE.astype(">u2")), WIDE)
    yield Sample(".npy big-endian float", "npy", _npy(FLOATS.astype(">f4")), FLOATS.astype("f4"))
    holes = FLOATS.copy()
    holes[2, 3] = np.nan
    yield Sample(".npy NaN", "npy", _npy(holes))
    yield Sample(".npy complex", "npy", _npy(FLOATS + 1j))
    yield Sample(".npy objects", "npy", _npy(IDS.astype(object)))
    yield Sample(".npz", "npz", lambda path: np.savez(path, IDS), IDS, alone=True)


def _odd_files() -> Iterator[Sample]:
    def link(path: Path) -> None:
        target = path.with_name(f".{path.name}")
        target.write_bytes(_encoded(IDS, "PNG"))
        path.symlink_to(target.name)

    noise = _RNG.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    stream = io.BytesIO()
    np.save(stream, WIDE)
    tiff = io.BytesIO()
    tifffile.imwrite(tiff, WIDE)
    yield Sample("empty file", "png", _bytes(b""))
    for suffix, data in (
        ("png", _encoded(WIDE, "PNG")),
        ("jpg", _encoded(noise, "JPEG")),
        ("webp", _encoded(noise, "WEBP")),
        ("jp2", _encoded(noise[..., 0], "JPEG2000")),
        ("tif", tiff.getvalue()),
        ("npy", stream.getvalue()),
    ):
        yield Sample(f"truncated .{suffix}", suffix, _bytes(data[: len(data) * 3 // 5]))
    yield Sample("text named .png", "png", _bytes(b"no image"))
    yield Sample("link to a file", "png", link, IDS)
    yield Sample("link to nothing", "png", lambda path: path.symlink_to("nowhere"), alone=True)
    yield Sample("folder named .png", "png", Path.mkdir, alone=True)
    yield Sample("FIFO named .png", "png", os.mkfifo, alone=True)
    yield Sample("/dev/zero", "png", lambda path: path.symlink_to("/dev/zero"), alone=True)


def _grey(values: Array) -> Array:
    return np.repeat(values[..., None], 3, -1)


def png(values: Array, bits: int) -> bytes:
    """Encode ``(H, W)`` or ``(H, W, C)`` as PNG with 1 to 16 bits per value."""
    channels = 1 if values.ndim == 2 else values.shape[2]
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, kind, 0, 0, 0)
    rows = values.reshape(len(values), -1)
    if bits == 16:
        lines = [row.astype(">u2").tobytes() for row in rows]
    else:
        planes = rows[..., None] >> np.arange(bits)[::-1] & 1
        lines = [np.packbits(row.reshape(-1).astype(np.uint8)).tobytes() for row in planes]
    body = zlib.compress(b"".join(b"\0" + line for line in lines))
    data = b"\x89PNG\r\n\x1a\n"
    for name, content in ((b"IHDR", header), (b"IDAT", body), (b"IEND", b"")):
        check = struct.pack(">I", zlib.crc32(name + content))
        data += struct.pack(">I", len(content)) + name + content + check
    return data
