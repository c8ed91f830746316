"""JPEG 2000: what the header says, and whether all bits of the coefficients are in the file.

The reversible transform (5/3) alone does not make a file lossless: encoders reach a target size by
dropping the last coding passes of code-blocks. The packet headers count the passes of every
code-block (ISO/IEC 15444-1, annex B.10).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from multimae.images.pixels import Encoding

_SOC_SIZ = b"\xff\x4f\xff\x51"
_COD, _QCD, _SOT, _SOD = 0xFF52, 0xFF5C, 0xFF90, 0xFF93
_INFORMATIVE = frozenset({0xFF51, 0xFF52, 0xFF5C, 0xFF64, 0xFF55, 0xFF57, 0xFF63})
"""SIZ, COD, QCD, COM, TLM, PLM, CRG: markers that change neither order nor size of packets."""
_SOP, _EPH = b"\xff\x91", b"\xff\x92"
_MAX_BLOCKS = 1_000_000


class _UnknownLayout(ValueError):
    """A layout of packets that :func:`_is_complete` does not follow."""


def encoding_of_jpeg2000(data: bytes, exact: bool) -> tuple[Encoding, int]:
    """Read how a JPEG 2000 file stores its samples.

    Args:
        data: The file.
        exact: Whether files are lossless only if every coding pass is there.

    Returns:
        The encoding, and the bits of the values of a grey file (0: colours).

    Raises:
        ValueError: Signed samples, samples of more than 16 bits, or a damaged header.
    """
    start = data.find(_SOC_SIZ)
    try:
        (count,) = struct.unpack_from(">H", data, start + 40)
        depths = [data[start + 42 + 3 * i] for i in range(count)]
        if start < 0 or not depths:
            raise ValueError("no JPEG 2000 codestream")
        bits = max(depth & 0x7F for depth in depths) + 1
        if any(depth & 0x80 for depth in depths) or bits > 16:
            raise ValueError(f"JPEG 2000 with signed samples or {bits} bits, which are not read")
        if len(set(depths)) > 1 or bits < 8:
            raise ValueError("JPEG 2000 with channels of fewer than 8, or different bits")
        markers = _main_header(data, start)
        lossless = data[markers[_COD] + 13] == 1
        if lossless and exact:
            lossless = _is_complete(data, start, markers)
    except _UnknownLayout:
        lossless = False
    except (struct.error, IndexError, KeyError) as err:
        raise ValueError("damaged JPEG 2000 header") from err
    wide_colours = bits > 8 and count > 1
    return Encoding(16 if wide_colours else 0, lossy=not lossless), bits if count == 1 else 0


def _main_header(data: bytes, start: int) -> dict[int, int]:
    """Positions of the markers before the first tile."""
    markers, position = {}, start + 2
    while (marker := struct.unpack_from(">H", data, position)[0]) != _SOT:
        markers[marker] = position
        position += 2 + int(struct.unpack_from(">H", data, position + 2)[0])
    markers[_SOT] = position
    return markers


@dataclass(frozen=True)
class _Coding:
    """Parameters of the packets of all tiles."""

    order: int
    layers: int
    levels: int
    block: tuple[int, int]
    precincts: tuple[tuple[int, int], ...]
    bit_planes: tuple[int, ...]


def _is_complete(data: bytes, start: int, markers: dict[int, int]) -> bool:
    """Whether every code-block has all coding passes down to the last bit.

    Raises:
        _UnknownLayout: Packets are laid out in a way that is not followed.
    """
    if not _INFORMATIVE.union({_SOT}) >= markers.keys():
        raise _UnknownLayout
    coding = _coding(data, markers[_COD], markers[_QCD])
    x1, y1, x0, y0, tile_w, tile_h, tile_x, tile_y = struct.unpack_from(">8I", data, start + 8)
    (count,) = struct.unpack_from(">H", data, start + 40)
    if any(data[start + 43 + 3 * i : start + 45 + 3 * i] != b"\1\1" for i in range(count)):
        raise _UnknownLayout
    if ((x1 - x0) * (y1 - y0) >> sum(coding.block)) * count * coding.layers > _MAX_BLOCKS:
        raise _UnknownLayout
    columns = -(-(x1 - tile_x) // tile_w)
    tiles = _tile_data(data, markers[_SOT])
    if len(tiles) != columns * -(-(y1 - tile_y) // tile_h):
        return False
    for number, packets in tiles.items():
        left, top = tile_x + number % columns * tile_w, tile_y + number // columns * tile_h
        area = (max(left, x0), max(top, y0), min(left + tile_w, x1), min(top + tile_h, y1))
        components = [_resolutions(area, coding) for _ in range(count)]
        if not _tile_is_complete(packets, components, coding):
            return False
    return True


def _coding(data: bytes, cod: int, qcd: int) -> _Coding:
    style, order = data[cod + 4], data[cod + 5]
    (layers,) = struct.unpack_from(">H", data, cod + 6)
    levels, width, height, switches = data[cod + 9 : cod + 13]
    if switches & 0b101 or data[qcd + 4] & 31:  # several lengths per code-block, or quantized
        raise _UnknownLayout
    sizes = data[cod + 14 : cod + 15 + levels] if style & 1 else bytes([255]) * (levels + 1)
    guard = data[qcd + 4] >> 5
    exponents = data[qcd + 5 : qcd + 6 + 3 * levels]
    planes = tuple(guard + (value >> 3) - 1 for value in exponents)
    if len(planes) < 3 * levels + 1 or len(sizes) <= levels or not layers:
        raise _UnknownLayout
    precincts = tuple((size & 15, size >> 4) for size in sizes)
    return _Coding(order, layers, levels, (width + 2, height + 2), precincts, planes)


def _tile_data(data: bytes, position: int) -> dict[int, bytes]:
    """Packets of every tile, of all its parts."""
    tiles: dict[int, bytes] = {}
    while position + 12 <= len(data) and data[position : position + 2] == b"\xff\x90":
        number, size = struct.unpack_from(">HI", data, position + 4)
        end = position + size if size else len(data)
        body = position + 12
        while (marker := struct.unpack_from(">H", data, body)[0]) != _SOD:
            if marker not in (0xFF64, 0xFF58):  # COM, PLT
                raise _UnknownLayout
            body += 2 + struct.unpack_from(">H", data, body + 2)[0]
        tiles[number] = tiles.get(number, b"") + data[body + 2 : end]
        position = end
    return tiles


class _TagTree:
    """Tag tree of ``width`` x ``height`` leaves (annex B.10.2)."""

    def __init__(self, width: int, height: int) -> None:
        self.widths, self.values, self.known = list[int](), list[list[int]](), list[list[bool]]()
        while True:
            self.widths.append(width)
            self.values.append([0] * (width * height))
            self.known.append([False] * (width * height))
            if width * height <= 1:
                break
            width, height = (width + 1) // 2, (height + 1) // 2

    def decode(self, bits: _Bits, x: int, y: int, threshold: int) -> int:
        """Value of a leaf if it is below ``threshold``, else ``threshold``."""
        low = 0
        for level in reversed(range(len(self.widths))):
            at = (y >> level) * self.widths[level] + (x >> level)
            values, known = self.values[level], self.known[level]
            values[at] = max(values[at], low)
            while not known[at] and values[at] < threshold:
                if bits.read(1):
                    known[at] = True
                else:
                    values[at] += 1
            low = values[at]
            if not known[at]:
                return threshold
        return min(low, threshold)


class _Bits:
    """Bits of a packet header; after a byte of ones, the next has seven."""

    def __init__(self, data: bytes, position: int) -> None:
        self.data, self.position = data, position
        self._byte = self._left = 0

    def read(self, count: int) -> int:
        """Read ``count`` bits as a number."""
        value = 0
        for _ in range(count):
            if not self._left:
                self._left = 7 if self._byte == 0xFF else 8
                self._byte = self.data[self.position]
                self.position += 1
            self._left -= 1
            value = value << 1 | self._byte >> self._left & 1
        return value

    def end(self) -> int:
        """Position after the header."""
        return self.position + (self._byte == 0xFF)


@dataclass
class _Band:
    """Code-blocks of a sub-band in one precinct."""

    width: int
    height: int
    bit_planes: int
    holds_means: bool
    passes: dict[int, int] = field(default_factory=dict)
    zero_planes: dict[int, int] = field(default_factory=dict)
    length_bits: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.inclusion = _TagTree(self.width, self.height)
        self.zeros = _TagTree(self.width, self.height)

    def read_header(self, bits: _Bits, layer: int) -> int:
        """Read the part of a packet header about this band; return the bytes of its body."""
        total = 0
        for block in range(self.width * self.height):
            y, x = divmod(block, self.width)
            if block in self.passes:
                included = bits.read(1) == 1
            else:
                included = self.inclusion.decode(bits, x, y, layer + 1) <= layer
            if not included:
                continue
            if block not in self.passes:
                planes = 1
                while self.zeros.decode(bits, x, y, planes) == planes:
                    planes += 1
                self.zero_planes[block] = planes - 1
                self.length_bits[block] = 3
            passes = _read_passes(bits)
            while bits.read(1):
                self.length_bits[block] += 1
            total += bits.read(self.length_bits[block] + int(math.log2(passes)))
            self.passes[block] = self.passes.get(block, 0) + passes
        return total

    def is_complete(self) -> bool:
        """Whether no code-block lacks passes; one without any is zero, which means are not."""
        if self.holds_means and len(self.passes) < self.width * self.height:
            return False
        return all(
            passes == max(0, 3 * (self.bit_planes - self.zero_planes[block]) - 2)
            for block, passes in self.passes.items()
        )


_Precinct = list[_Band]
_Component = list[list[_Precinct]]
"""Precincts by resolution."""


def _read_passes(bits: _Bits) -> int:
    """Number of coding passes (table B.4)."""
    for width, first in ((1, 1), (1, 2), (2, 3), (5, 6)):
        value = bits.read(width)
        if value < 2**width - 1:
            return first + value
    return 37 + bits.read(7)


def _resolutions(area: tuple[int, int, int, int], coding: _Coding) -> _Component:
    """Precincts of a tile in one component (annex B.5 to B.7)."""
    component: _Component = []
    for r in range(coding.levels + 1):
        log_w, log_h = coding.precincts[r]
        down = coding.levels - r
        x0, y0, x1, y1 = (-((-edge) >> down) for edge in area)
        if x0 >= x1 or y0 >= y1:
            component.append([])
            continue
        component.append(
            [
                list(_bands(area, coding, r, column, row))
                for row in range(y0 >> log_h, -((-y1) >> log_h))
                for column in range(x0 >> log_w, -((-x1) >> log_w))
            ]
        )
    return component


def _bands(
    area: tuple[int, int, int, int], coding: _Coding, r: int, column: int, row: int
) -> Iterator[_Band]:
    """Sub-bands of resolution ``r`` in one precinct."""
    high = r > 0
    level = coding.levels - r + 1 if high else coding.levels
    log_w, log_h = (size - high for size in coding.precincts[r])
    block_w, block_h = min(coding.block[0], log_w), min(coding.block[1], log_h)
    for i, (right, low) in enumerate(((1, 0), (0, 1), (1, 1)) if high else ((0, 0),)):

        def cut(edge: int, offset: int, level: int = level) -> int:
            half = offset << (level - 1) if level else 0
            return -((half - edge) >> level)

        x0 = max(cut(area[0], right), column << log_w)
        x1 = min(cut(area[2], right), (column + 1) << log_w)
        y0 = max(cut(area[1], low), row << log_h)
        y1 = min(cut(area[3], low), (row + 1) << log_h)
        if x0 >= x1 or y0 >= y1:
            continue
        width = -((-x1) >> block_w) - (x0 >> block_w)
        height = -((-y1) >> block_h) - (y0 >> block_h)
        yield _Band(width, height, coding.bit_planes[3 * r - 2 + i if high else 0], not high)


def _packets(components: list[_Component], coding: _Coding) -> Iterator[tuple[int, _Precinct]]:
    """Layer and precinct of every packet, in the order of the file (annex B.12)."""
    resolutions = range(coding.levels + 1)
    layers = range(coding.layers)
    if coding.order == 0:  # LRCP
        order = [(n, r, c) for n in layers for r in resolutions for c in components]
    elif coding.order == 1:  # RLCP
        order = [(n, r, c) for r in resolutions for n in layers for c in components]
    elif any(len(precincts) > 1 for c in components for precincts in c):
        raise _UnknownLayout
    elif coding.order == 2:  # RPCL
        order = [(n, r, c) for r in resolutions for c in components for n in layers]
    else:  # PCRL, CPRL
        order = [(n, r, c) for c in components for r in resolutions for n in layers]
    for layer, r, component in order:
        for precinct in component[r]:
            yield layer, precinct


def _tile_is_complete(data: bytes, components: list[_Component], coding: _Coding) -> bool:
    position = 0
    try:
        for layer, precinct in _packets(components, coding):
            if data[position : position + 2] == _SOP:
                position += 6
            bits, size = _Bits(data, position), 0
            if bits.read(1):
                size = sum(band.read_header(bits, layer) for band in precinct)
            position = bits.end()
            if data[position : position + 2] == _EPH:
                position += 2
            position += size
    except IndexError:
        return False
    bands = (band for c in components for r in c for precinct in r for band in precinct)
    return position <= len(data) and all(band.is_complete() for band in bands)
