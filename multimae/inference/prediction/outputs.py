"""Files of predictions: label maps with a palette, values in their unit, tables of classes.

Every file is written atomically: one that exists is complete. Pixels outside the part of the image
that the model sees (``crop`` keeps the centre) are void in label maps, and without value in others.
"""

from __future__ import annotations

import csv
import io
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, TiffImagePlugin

from multimae.images.folders import CLASSES_FILE
from multimae.images.tiff import GDAL_NODATA
from multimae.images.views import View
from multimae.inference.label_files import SEPARATOR
from multimae.inference.predict import (
    ClassPrediction,
    LabelPrediction,
    NumberPrediction,
    Prediction,
    ValuePrediction,
)
from multimae.inference.tiling.rasters import Georeference, TiffRows
from multimae.inference.tiling.row_files import NpyRows, PngRows, RowFile
from multimae.nn.tokens import Size
from multimae.plotting.colours import VOID_GREY, Picture, label_palette
from multimae.plotting.overlays import class_overlay, label_overlay, value_overlay
from multimae.specs.errors import UserError
from multimae.specs.heads import HeadSpec
from multimae.specs.modalities import VOID, Modality
from multimae.weights.atomic import atomic_file

Outcome = Prediction | Image.Image
"""What a head writes for a sample: a prediction, or a finished picture."""
Format = Literal["png", "tiff", "npy"]
Array = npt.NDArray[Any]
RECORD_FILE = "predict.json"
"""Model and options of the outputs in its folder."""
_WIDE_VOID = 65535
_ASCII = 2
_MM = {"mm": 1.0, "m": 1000.0}
"""Millimetres, the values of 16-bit depth files, per unit."""


class HeadOutput(ABC):
    """The files of one head.

    Attributes:
        name: Of the head; its files lie in ``out/name``.
        georeference: Where a sample lies, if GeoTIFF files are to keep it.
    """

    def __init__(self, out: Path, name: str, *, overlay: bool = False) -> None:
        """``overlay``: also draw predictions over photos."""
        self.out, self.name, self.overlay = out, name, overlay
        self.georeference: Callable[[str], Georeference | None] = lambda sample: None

    @abstractmethod
    def is_complete(self, sample: str) -> bool:
        """Whether all files of a sample exist."""

    @abstractmethod
    def write(self, sample: str, prediction: Outcome, photo: Picture | None) -> None:
        """Write the files of a sample; ``photo`` is needed for overlays."""

    def count_clipped(self, prediction: Outcome) -> int:
        """Number of values that the file of a prediction cannot hold."""
        return 0

    def finish(self, samples: Sequence[str]) -> None:
        """Write what concerns all samples, in their order."""
        return

    def path(self, sample: str, suffix: str, kind: str = "") -> Path:
        """File of a sample; ``kind``: ``overlay`` or ``confidence``."""
        folder = f"{self.name}_{kind}" if kind else self.name
        return self.out / folder / f"{sample}{suffix}"

    def _write_overlay(self, sample: str, picture: Image.Image) -> None:
        write_bytes(self.path(sample, ".jpg", "overlay"), encode_picture(picture, "JPEG"))


class LabelOutput(HeadOutput):
    """Label maps: as in training, so that they can be used as truth again."""

    def __init__(
        self,
        out: Path,
        name: str,
        target: Modality,
        *,
        zero_is_void: bool,
        first_colour: int = 1,
        overlay: bool = False,
        confidence: bool = False,
        tiff: bool = False,
    ) -> None:
        """Choose how ids are stored.

        Args:
            out: Folder of all outputs.
            name: Of the head.
            target: Labels of the model.
            zero_is_void: Id 0 is void and classes count from 1; else void is 255 (in files of
                16 bits 65535).
            first_colour: Number of the colour of class 0; colour 0 is that of void.
            overlay: Also draw predictions over photos.
            confidence: Also write confidence.
            tiff: Write GeoTIFF files for samples that are GeoTIFF files.
        """
        super().__init__(out, name, overlay=overlay)
        self.target, self.confidence, self.tiff = target, confidence, tiff
        self.first = int(zero_is_void)
        self.is_wide = target.num_classes + self.first > VOID
        self.void = 0 if zero_is_void else _WIDE_VOID if self.is_wide else VOID
        palette = np.zeros((256, 3), np.uint8)
        colours = label_palette(target.num_classes + first_colour)[first_colour:]
        palette[self.first : self.first + len(colours)] = colours[: 256 - self.first]
        palette[self.void % 256] = VOID_GREY
        self._palette, self._first_colour = palette, first_colour

    def is_complete(self, sample: str) -> bool:
        """See the base class."""
        suffixes = (".png", ".tiff")[: 1 + self.tiff]
        kinds = ["", *["confidence"] * self.confidence]
        drawn = not self.overlay or self.path(sample, ".jpg", "overlay").exists()
        return drawn and all(
            any(self.path(sample, suffix, kind).exists() for suffix in suffixes) for kind in kinds
        )

    def write(self, sample: str, prediction: Outcome, photo: Picture | None) -> None:
        """See the base class."""
        assert isinstance(prediction, LabelPrediction)
        where = self.georeference(sample)
        if where is not None:
            rows = self.rows(prediction)
            _write_rows(self.open_rows(sample, prediction.view.image_size, where), rows)
        else:
            write_bytes(self.path(sample, ".png"), encode_picture(self.image(prediction), "PNG"))
            if prediction.confidence is not None:
                grey = Image.fromarray(self.rows(prediction)["confidence"])
                write_bytes(self.path(sample, ".png", "confidence"), encode_picture(grey, "PNG"))
        if photo is not None:
            self.draw(sample, photo, on_canvas(prediction.ids, prediction.view, -1))

    def draw(self, sample: str, photo: Picture, ids: Array) -> None:
        """Write the overlay of ids (h, w); -1 has no class."""
        self._write_overlay(sample, label_overlay(photo, ids, self.target, self._first_colour))

    def open_rows(self, sample: str, size: Size, where: Georeference | None) -> dict[str, RowFile]:
        """Open the files of a sample of ``size`` (H, W) to write them row by row."""
        dtype = np.uint16 if self.is_wide else np.uint8
        palette = None if self.is_wide else self._palette
        files: dict[str, RowFile] = {}
        if self.tiff and where is not None:
            files[""] = TiffRows(
                self.path(sample, ".tiff"), size, dtype, no_data=self.void, palette=palette,
                georeference=where,
            )  # fmt: skip
            if self.confidence:
                path = self.path(sample, ".tiff", "confidence")
                files["confidence"] = TiffRows(path, size, np.uint8, georeference=where)
            return files
        files[""] = PngRows(self.path(sample, ".png"), size, dtype, palette=palette)
        if self.confidence:
            files["confidence"] = PngRows(self.path(sample, ".png", "confidence"), size, np.uint8)
        return files

    def rows(self, band: LabelPrediction) -> dict[str, Array]:
        """Rows for the files of :meth:`open_rows`."""
        rows = {"": self.stored(band)}
        if band.confidence is not None:
            levels = np.rint(255 * band.confidence).astype(np.uint8)
            rows["confidence"] = on_canvas(levels, band.view, 0)
        return rows

    def finish(self, samples: Sequence[str]) -> None:
        """Write ``classes.json``, which names the classes of label maps beside it."""
        names = self.target.class_names
        if names:
            names = ("void", *names) if self.first else names
            write_json(self.out / CLASSES_FILE, {"classes": list(names)})

    def stored(self, prediction: LabelPrediction) -> Array:
        """Ids as files hold them, (H, W) of the original image, uint8 or uint16."""
        dtype = np.uint16 if self.is_wide else np.uint8
        return on_canvas((prediction.ids + self.first).astype(dtype), prediction.view, self.void)

    def image(self, prediction: LabelPrediction) -> Image.Image:
        """Picture of the ids: mode P in the colours of all pictures, or 16 bits."""
        image = Image.fromarray(self.stored(prediction))
        if not self.is_wide:
            image.putpalette(self._palette.tobytes())
        return image


@dataclass(frozen=True)
class Levels:
    """How PNG files hold values.

    Attributes:
        scale: Levels per unit of the values.
        top: Highest level.
        lowest: Lowest level of a pixel with a value; 0 has none if it is 1.
    """

    scale: float
    top: float
    lowest: int = 0

    @classmethod
    def of_head(cls, head: HeadSpec) -> Levels:
        """Depth in mm, 16 bits; others on the scale of the training files."""
        if head.unit in _MM:
            return cls(_MM[head.unit], 65535.0, 1)
        return cls(head.target.max_value, head.target.max_value)


class ValueOutput(HeadOutput):
    """Values in their unit: 16-bit PNG, float TIFF (one page per channel) or npy."""

    def __init__(
        self,
        out: Path,
        name: str,
        kind: Format,
        levels: Levels,
        channels: int,
        *,
        unit: str = "",
        overlay: bool = False,
    ) -> None:
        """Choose the format.

        Args:
            out: Folder of all outputs.
            name: Of the head.
            kind: Format.
            levels: Levels of PNG files.
            channels: Channels of the values.
            unit: Unit of the values, for overlays.
            overlay: Also draw values beside photos.

        Raises:
            UserError: PNG cannot hold the values.
        """
        super().__init__(out, name, overlay=overlay)
        self.kind, self.levels, self.channels, self.unit = kind, levels, channels, unit
        wide = levels.top > 255
        if kind == "png" and (channels > 3 or (wide and channels > 1)):
            raise UserError(
                f"--format png: '{name}' has {channels} channels of {16 if wide else 8} bits, "
                "which PNG cannot hold: use --format tiff or npy."
            )

    def is_complete(self, sample: str) -> bool:
        """See the base class."""
        paths = [self.path(sample, f".{self.kind}")]
        paths += [self.path(sample, ".jpg", "overlay")] * self.overlay
        return all(path.exists() for path in paths)

    def write(self, sample: str, prediction: Outcome, photo: Picture | None) -> None:
        """See the base class."""
        assert isinstance(prediction, ValuePrediction)
        values = on_canvas(prediction.values, prediction.view, np.nan)
        where = self.georeference(sample)
        if where is not None:
            size = prediction.view.image_size
            _write_rows(self.open_rows(sample, size, where), {"": values})
        else:
            write_bytes(self.path(sample, f".{self.kind}"), self.encode(values))
        if photo is not None:
            self.draw(sample, photo, values)

    def draw(self, sample: str, photo: Picture, values: Array) -> None:
        """Write the overlay of values (h, w) or (h, w, C); NaN has no value."""
        self._write_overlay(sample, value_overlay(photo, values, self.name, self.unit))

    def open_rows(self, sample: str, size: Size, where: Georeference | None) -> dict[str, RowFile]:
        """Open the file of a sample of ``size`` (H, W) to write it row by row."""
        path = self.path(sample, f".{self.kind}")
        channels = self.channels
        if self.kind == "tiff":
            options: dict[str, Any] = {"channels": channels, "georeference": where}
            return {"": TiffRows(path, size, np.float32, no_data=np.nan, **options)}
        if self.kind == "npy":
            shape = (*size, channels) if channels > 1 else size
            return {"": NpyRows(path, shape, np.float32)}
        dtype = np.uint8 if self.levels.top <= 255 else np.uint16
        return {"": PngRows(path, size, dtype, channels=3 if channels > 1 else 1)}

    def rows(self, band: ValuePrediction) -> dict[str, Array]:
        """Rows for the file of :meth:`open_rows`."""
        return {"": self._stored(band.values) if self.kind == "png" else band.values}

    def encode(self, values: Array) -> bytes:
        """Bytes of a file of values (H, W) or (H, W, C); NaN has no value."""
        if self.kind == "png":
            return encode_picture(Image.fromarray(self._stored(values)), "PNG")
        if self.kind == "tiff":
            return _tiff(values)
        stream = io.BytesIO()
        np.save(stream, values)
        return stream.getvalue()

    def count_clipped(self, prediction: Outcome) -> int:
        """See the base class."""
        assert isinstance(prediction, ValuePrediction)
        if self.kind != "png":
            return 0
        return int((self._levels(prediction.values) > self.levels.top).sum())

    def _levels(self, values: Array) -> Array:
        """Levels before clipping; 0 without a value."""
        known = np.where(np.isfinite(values), values, 0).astype(np.float64)
        return np.rint(known * self.levels.scale)

    def _stored(self, values: Array) -> Array:
        """Levels of a PNG."""
        top = self.levels.top
        levels = np.clip(self._levels(values), self.levels.lowest, top)
        known = np.isfinite(values)
        levels = np.where(known, levels, 0).astype(np.uint8 if top <= 255 else np.uint16)
        if levels.ndim == 3 and levels.shape[2] == 2:
            levels = np.concatenate([levels, np.zeros_like(levels[..., :1])], axis=2)
        return levels


class PictureOutput(HeadOutput):
    """Finished pictures."""

    def is_complete(self, sample: str) -> bool:
        """See the base class."""
        return self.path(sample, ".png").exists()

    def write(self, sample: str, prediction: Outcome, photo: Picture | None) -> None:
        """See the base class."""
        assert isinstance(prediction, Image.Image)
        write_bytes(self.path(sample, ".png"), encode_picture(prediction, "PNG"))


def _write_rows(files: Mapping[str, RowFile], rows: Mapping[str, Array]) -> None:
    """Write all rows of a sample."""
    keep = False
    try:
        for kind, file in files.items():
            file.write(rows[kind])
        keep = True
    finally:
        for file in files.values():
            file.close(keep=keep)


def _tiff(values: Array) -> bytes:
    pages = [values] if values.ndim == 2 else list(np.moveaxis(values, 2, 0))
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags.tagtype[GDAL_NODATA] = _ASCII
    tags[GDAL_NODATA] = "nan"
    first, *rest = [Image.fromarray(np.ascontiguousarray(page, np.float32)) for page in pages]
    stream = io.BytesIO()
    first.save(
        stream, "TIFF", save_all=True, append_images=rest, compression="tiff_adobe_deflate",
        tiffinfo=tags,
    )  # fmt: skip
    return stream.getvalue()


class ClassOutput(HeadOutput):
    """Tables of classes, ``{head}.csv`` and ``{head}.jsonl``; a run appends to the latter."""

    def __init__(self, out: Path, name: str, topk: int, *, overlay: bool = False) -> None:
        """Read the rows of an earlier run; ``topk``: classes per sample."""
        super().__init__(out, name, overlay=overlay)
        self.lines, self.csv, self.topk = out / f"{name}.jsonl", out / f"{name}.csv", topk
        self.rows: dict[str, dict[str, Any]] = {}
        self._lock = Lock()  # files are written by several threads
        lines = self.lines.read_bytes().splitlines(keepends=True) if self.lines.is_file() else []
        if lines and not lines[-1].endswith(b"\n"):  # the run was killed while it wrote
            lines.pop()
            write_bytes(self.lines, b"".join(lines))
        for row in map(json.loads, lines):
            self.rows[row["name"]] = row

    def is_complete(self, sample: str) -> bool:
        """See the base class."""
        drawn = not self.overlay or self.path(sample, ".jpg", "overlay").exists()
        return drawn and sample in self.rows

    def write(self, sample: str, prediction: Outcome, photo: Picture | None) -> None:
        """See the base class."""
        assert isinstance(prediction, ClassPrediction)
        count = min(self.topk, len(prediction.names))
        classes = [
            {"class": prediction.names[i], "id": int(prediction.ids[i]),
             "probability": round(float(prediction.probabilities[i]), 6)}
            for i in range(count)
        ]  # fmt: skip
        if photo is not None:
            shares = prediction.probabilities[:count].tolist()
            self._write_overlay(sample, class_overlay(photo, prediction.names[:count], shares))
        labels = {"labels": list(prediction.labels)} if prediction.multi else {}
        self._append(sample, {"name": sample, **labels, "classes": classes})

    def _append(self, sample: str, row: dict[str, Any]) -> None:
        with self._lock:
            self.rows[sample] = row
            with self.lines.open("ab") as file:
                file.write(_json(row))

    def finish(self, samples: Sequence[str]) -> None:
        """Write both tables in the order of ``samples``; rows of others follow."""
        order = {name: i for i, name in enumerate(samples)}
        rows = sorted(self.rows.values(), key=lambda row: order.get(row["name"], len(order)))
        write_bytes(self.lines, b"".join(map(_json, rows)))
        text = io.StringIO()
        writer = csv.writer(text)
        writer.writerows(self._table(rows))
        write_bytes(self.csv, text.getvalue().encode("utf-8", "surrogateescape"))

    def _table(self, rows: Sequence[Mapping[str, Any]]) -> Iterator[list[Any]]:
        count = max((len(row["classes"]) for row in rows), default=0)
        heads = [f"{key}_{i + 1}" for i in range(count) for key in ("class", "probability")]
        multi = ["labels"] if any("labels" in row for row in rows) else []
        yield ["name", *multi, *heads]
        for row in rows:
            cells = [c[key] for c in row["classes"] for key in ("class", "probability")]
            yield [row["name"], *(SEPARATOR.join(row[key]) for key in multi), *cells]


class NumberOutput(ClassOutput):
    """Tables of numbers, a column each; without overlays."""

    def write(self, sample: str, prediction: Outcome, photo: Picture | None) -> None:
        """See the base class."""
        assert isinstance(prediction, NumberPrediction)
        values = dict(zip(prediction.names, prediction.values.tolist(), strict=True))
        self._append(sample, {"name": sample, "values": values})

    def _table(self, rows: Sequence[Mapping[str, Any]]) -> Iterator[list[Any]]:
        yield ["name", *(rows[0]["values"] if rows else ())]
        for row in rows:
            yield [row["name"], *row["values"].values()]


def _json(content: Mapping[str, Any], indent: int | None = None) -> bytes:
    try:
        return (json.dumps(content, indent=indent, ensure_ascii=False) + "\n").encode()
    except UnicodeEncodeError:  # a file name that is not UTF-8
        return (json.dumps(content, indent=indent) + "\n").encode()


def on_canvas(values: Array, view: View, empty: float) -> Array:
    """Values of a view (h, w) or (h, w, C) in an array of the original image's size.

    Args:
        values: Of the pixels of ``view``.
        view: Box that the model sees.
        empty: Value of all other pixels.
    """
    height, width = view.image_size
    if values.shape[:2] == (height, width):
        return values
    canvas = np.full((height, width, *values.shape[2:]), empty, values.dtype)
    rows, columns = (
        slice(view.top, view.top + view.height),
        slice(view.left, view.left + view.width),
    )
    canvas[rows, columns] = values
    return canvas


def encode_picture(image: Image.Image, kind: Literal["PNG", "JPEG"]) -> bytes:
    """Bytes of a picture file."""
    stream = io.BytesIO()
    options: dict[str, Any] = {"quality": 92} if kind == "JPEG" else {"compress_level": 4}
    image.save(stream, kind, **options)
    return stream.getvalue()


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically, with the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as stream:
        stream.write(data)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file atomically."""
    write_bytes(path, _json(content, indent=2))
