"""Packing: image folders -> shards and an index (see :mod:`multimae.images.pack.layout`)."""

from __future__ import annotations

import io
import json
import math
import os
import shutil
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple
from zipfile import BadZipFile

import numpy as np
from PIL import Image, ImageOps

from multimae.images.arrays import is_lossy_webp
from multimae.images.folders import JPEG_SUFFIXES
from multimae.images.pack import PACK_FILE, layout
from multimae.images.pack.layout import DTYPES, RECORD, Contents, Kind, Records, Shard
from multimae.images.pack.reading import is_plain_png, pack_planes
from multimae.images.pixels import Array
from multimae.images.readers import FORMATS, decode_fast
from multimae.specs.errors import UserError
from multimae.specs.modalities import default_table
from multimae.weights.atomic import DIGEST_BYTES, atomic_file, remove_leftovers, write_hashed
from tools.common.jobs import PRESENT, Tally, run_jobs
from tools.pack.members import Members
from tools.pack.sources import Source

PACKED, FULL_SIZE = "packed", "packed at full size (cannot be downscaled)"
_TABLE = "table.npz"


@dataclass(frozen=True)
class PackOptions:
    """How images are packed.

    Attributes:
        max_size: Longest side; larger images are downscaled. ``None``: no downscaling.
        jpeg: ``keep`` JPEG files, or store their pixels ``raw``.
        codec: Compression of pixels: ``none``, or ``zlib`` for smaller packs and slower reads.
        images_per_shard: Files in a shard.
        keep_files: Also store the original files of images stored as pixels, for unpacking.
    """

    max_size: int | None = None
    jpeg: Literal["keep", "raw"] = "keep"
    codec: Literal["none", "zlib"] = "none"
    images_per_shard: int = 1000
    keep_files: bool = True


@dataclass(frozen=True)
class _Job:
    """One shard of a modality."""

    source: Path | Members
    target: Path
    shard: int
    names: tuple[bytes, ...]
    options: PackOptions

    def fingerprint(self) -> str:
        """Hash of format and options, and of the names, sizes and times of the files."""
        hashed = blake2b(json.dumps(asdict(self.options)).encode(), digest_size=DIGEST_BYTES)
        hashed.update(str(layout.VERSION).encode())
        source = self.open_source()
        for name in self.names:
            hashed.update(name + b"\0" + source.fingerprint(name) + b"\n")
        return hashed.hexdigest()

    def open_source(self) -> Source | Members:
        """Reader of the original files."""
        return self.source if isinstance(self.source, Members) else Source(self.source)

    @property
    def table(self) -> Path:
        """Temporary file of the shard's records, until all shards are written."""
        return self.target / layout.file_name(self.shard, _TABLE)

    def path(self, part: str) -> Path:
        """Path of the shard or of its original files."""
        return self.target / layout.file_name(self.shard, part)


def write_packs(
    listing: Mapping[str, Sequence[bytes]],
    source: Path | Mapping[str, Members],
    out: Path,
    options: PackOptions,
    workers: int,
) -> Tally:
    """Pack modality folders; finished shards of an interrupted run are kept.

    Args:
        listing: Sorted ``sub-folder/name.extension`` by modality folder.
        source: Data root, or the files of every modality folder.
        out: Folder of the packs.
        options: How images are packed.
        workers: Processes.

    Returns:
        Number of images by modality folder and outcome.

    Raises:
        UserError: A file cannot be read.
        OSError: A shard cannot be written.
    """
    tally: Tally = Counter()
    todo: list[list[_Job]] = []
    step = options.images_per_shard
    for folder, names in listing.items():
        jobs = [
            _Job(_part(source, folder, chunk), out / folder, i // step, chunk, options)
            for i in range(0, len(names), step)
            for chunk in [tuple(names[i : i + step])]
        ]
        if _is_packed(jobs):
            tally[folder, PRESENT] += len(names)
            continue
        (out / folder).mkdir(parents=True, exist_ok=True)
        (out / folder / PACK_FILE).unlink(missing_ok=True)
        remove_leftovers(out / folder)
        todo.append(jobs)
    tally += run_jobs(_pack_shard, [job for jobs in todo for job in jobs], workers, "shard")
    for jobs in todo:
        _finish(jobs, [name for job in jobs for name in job.names], options)
    return tally


def _part(
    source: Path | Mapping[str, Members], folder: str, names: Sequence[bytes]
) -> Path | Members:
    return source / folder if isinstance(source, Path) else source[folder].only(names)


def copy_loose_files(source: Path, out: Path, links: bool = True) -> None:
    """Copy the files next to the modality folders: class names, splits.

    ``links``: also those that symbolic links lead to.
    """
    for path in sorted(source.iterdir()):
        if path.is_file() and not path.name.startswith(".") and (links or not path.is_symlink()):
            with path.open("rb") as stream, atomic_file(out / path.name) as copy:
                shutil.copyfileobj(stream, copy)


def _pack_shard(job: _Job) -> Tally:
    fingerprint = _fingerprint(job)
    if _is_done(job, fingerprint):
        return Counter({(job.target.name, PRESENT): len(job.names)})
    records = np.zeros(len(job.names), RECORD)
    records["shard"] = job.shard
    parts, outcomes = _write_files(job, records)
    with atomic_file(job.table) as stream:
        about = json.dumps({"fingerprint": fingerprint, "parts": [asdict(p) for p in parts]})
        np.savez(stream, records=records, about=np.frombuffer(about.encode(), np.uint8))
    return Counter({(job.target.name, what): n for what, n in outcomes.items()})


def _write_files(job: _Job, records: Records) -> tuple[list[Shard], Counter[str]]:
    """Write the files of a shard; count how their images were stored."""
    parts: list[Shard] = []
    outcomes: Counter[str] = Counter()

    def write_shard(files: BinaryIO | None) -> None:
        path = job.path(layout.SHARD)
        written = write_hashed(
            path, lambda shard: outcomes.update(_write_records(shard, job, records, files))
        )
        parts.append(Shard(path.name, *written))

    if job.options.keep_files:
        path = job.path(layout.FILES)
        parts.append(Shard(path.name, *write_hashed(path, write_shard)))
    else:
        write_shard(None)
    return parts, outcomes


def _fingerprint(job: _Job) -> str:
    try:
        return job.fingerprint()
    except OSError as err:
        raise UserError(f"{job.source}: cannot be read ({err}).") from err


def _write_records(
    shard: BinaryIO, job: _Job, records: Records, files: BinaryIO | None
) -> Counter[str]:
    """Write all records of a shard, and the original files of those stored as pixels."""
    offset = file_offset = 0
    source = job.open_source()
    outcomes: Counter[str] = Counter()
    for record, name in zip(records, job.names, strict=True):
        suffix = Path(os.fsdecode(name)).suffix.lower()
        data = source.read(name)
        small = downscale(data, suffix, job.target.name, job.options.max_size)
        outcomes[PACKED if small is not None else FULL_SIZE] += 1
        data = data if small is None else small
        values = pixels_to_store(data, suffix, job.options.jpeg == "keep")
        payload = data
        if values is not None:
            record["kind"] = kind_of(values)
            record["packed"] = job.options.codec != "none"
            record["height"], record["width"] = values.shape[:2]
            stored = np.ascontiguousarray(values, DTYPES[kind_of(values)])
            payload = pack_planes(stored) if record["packed"] else stored.tobytes()
            if files is not None:
                record["file_offset"], record["file_size"] = file_offset, len(data)
                file_offset += files.write(data)
        record["offset"], record["size"] = offset, len(payload)
        record["crc"] = layout.record_checksum(np.frombuffer(payload, np.uint8))
        record["digest"] = np.void(blake2b(data, digest_size=DIGEST_BYTES).digest())
        shard.write(payload)
        offset += len(payload)
    return outcomes


def _is_done(job: _Job, fingerprint: str) -> bool:
    table = _read_table(job)
    return (
        table is not None
        and table.fingerprint == fingerprint
        and all(_has_size(job.target, part) for part in table.parts)
    )


def _has_size(folder: Path, part: Shard) -> bool:
    path = folder / part.name
    return path.exists() and path.stat().st_size == part.size


class _Table(NamedTuple):
    """Contents of a shard's temporary table."""

    records: Records
    fingerprint: str
    parts: tuple[Shard, ...]


def _read_table(job: _Job) -> _Table | None:
    try:
        with np.load(job.table, allow_pickle=False) as table:
            about = json.loads(table["about"].tobytes())
            parts = tuple(Shard(**part) for part in about["parts"])
            return _Table(table["records"], about["fingerprint"], parts)
    except (OSError, ValueError, KeyError, TypeError, EOFError, zlib.error, BadZipFile):
        return None


def _finish(jobs: Sequence[_Job], names: list[bytes], options: PackOptions) -> None:
    """Write index, names and contents of a modality; delete the tables of its shards."""
    target = jobs[0].target
    tables = [table for job in jobs if (table := _read_table(job)) is not None]
    records = np.concatenate([table.records for table in tables])
    index = write_hashed(target / layout.INDEX_FILE, lambda s: np.save(s, records))
    listed = write_hashed(target / layout.NAMES_FILE, lambda s: np.save(s, np.array(names)))
    parts = [
        *(part for table in tables for part in table.parts),
        Shard(layout.INDEX_FILE, *index),
        Shard(layout.NAMES_FILE, *listed),
    ]
    made_of = tuple(table.fingerprint for table in tables)
    contents = Contents(asdict(options), len(records), made_of, tuple(parts))
    write_hashed(target / PACK_FILE, lambda s: s.write(contents.to_json()))
    for path in _find_stale(target, {part.name for part in parts}):
        path.unlink()


def _is_packed(jobs: Sequence[_Job]) -> bool:
    """Whether a finished pack of these files and options exists."""
    target = jobs[0].target
    try:
        contents = layout.read_contents(target)
    except UserError:
        return False
    complete = all(_has_size(target, part) for part in contents.files)
    return complete and contents.made_of == tuple(map(_fingerprint, jobs))


def _find_stale(target: Path, known: set[str]) -> list[Path]:
    """Temporary tables, and surplus shards of an earlier run."""
    endings = (f".{_TABLE}", f".{layout.SHARD}", f".{layout.FILES}")
    return [p for p in target.iterdir() if p.name.endswith(endings) and p.name not in known]


_PICTURES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})
"""Extensions of files that may be stored as pixels or downscaled; others are never changed."""
_QUALITY = 95  # of downscaled JPEGs


def pixels_to_store(data: bytes, suffix: str, keep_jpeg: bool) -> Array | None:
    """Grey or RGB pixels to store instead of the file; ``None`` to store the file."""
    is_jpeg = data.startswith(b"\xff\xd8")
    if suffix not in _PICTURES or (is_jpeg and (keep_jpeg or suffix not in JPEG_SUFFIXES)):
        return None
    values = decode_fast(data)
    if values is not None:
        return values
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if not _is_plain(image, data):
                return None
            image.load()
            return np.asarray(ImageOps.exif_transpose(image))
    except Exception:  # store the file: reading the pack reports the error
        return None


def _is_plain(image: Image.Image, data: bytes) -> bool:
    """Whether the upright pixels are all that a reader may see in a picture.

    Not so with several frames, transparency, a palette, colours of 16 bits, ids of 1 to 4 bits, or
    in lossy WebP, which some modalities refuse.
    """
    small = image.width * image.height <= (Image.MAX_IMAGE_PIXELS or math.inf)
    if not small or getattr(image, "n_frames", 1) != 1 or "transparency" in image.info:
        return False
    if image.format == "PNG":
        return is_plain_png(data)
    if image.format == "WEBP" and is_lossy_webp(data):
        return False
    return image.mode == "RGB" and image.format in ("JPEG", "WEBP", "BMP")


def kind_of(values: Array) -> Kind:
    """Record kind of an array of pixels."""
    if values.ndim == 3:
        return Kind.RGB
    return Kind.GREY16 if values.dtype == np.uint16 else Kind.GREY8


def downscale(data: bytes, suffix: str, folder: str, max_size: int | None) -> bytes | None:
    """Re-encode an image with longest side at most ``max_size``.

    Returns:
        The bytes of a file, the given ones if it is small enough or unreadable; ``None`` if it may
        be larger and cannot be downscaled with all its values.
    """
    if max_size is None:
        return data
    if suffix not in _PICTURES:
        return None
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if max(image.size) <= max_size:
                return data
            name = image.format or ""
            indices = name == "PNG" and image.mode in ("P", "1")
            if "transparency" in image.info or not (
                _is_plain(image, data) or indices or (name, image.mode) == ("JPEG", "L")
            ):
                return None
            upright = ImageOps.exif_transpose(image)
            shape = [max(1, round(side * max_size / max(upright.size))) for side in upright.size]
            smooth = _is_smooth(folder, name) and not indices
            method = Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST
            small = upright.resize((shape[0], shape[1]), method)
            file = io.BytesIO()
            small.info.pop("exif", None)
            how: dict[str, Any] = {"WEBP": {"lossless": True}}.get(name, {})
            if name == "JPEG":
                how = {"quality": _QUALITY, "subsampling": 0}
            small.save(file, name, **how)
            return file.getvalue()
    except Exception:  # reading the pack reports the error
        return data


def _is_smooth(folder: str, image_format: str) -> bool:
    """Whether the modality (or, if unknown, the format) allows interpolation."""
    for modality in default_table().values():
        if modality.data_folder == folder:
            return modality.interpolation != "nearest"
    return image_format == "JPEG"
