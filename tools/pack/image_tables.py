"""Images in Parquet files and in data sets that Hugging Face's ``save_to_disk`` wrote."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from multimae.images.readers import SUFFIXES
from multimae.specs.errors import UserError
from tools.pack.members import Inventory, Spool, class_folders, folder_name, version_of

_BATCH = 64  # rows in memory
_MAGIC = {
    b"\x89PNG": ".png",
    b"\xff\xd8\xff": ".jpg",
    b"II*\0": ".tif",
    b"MM\0*": ".tif",
    b"BM": ".bmp",
    b"\x93NUMPY": ".npy",
}


def table_files(path: Path) -> list[Path]:
    """Parquet or Arrow files of a path, in order.

    Raises:
        UserError: The path is neither such a file nor a folder with some.
    """
    if path.is_file():
        if path.suffix not in (".parquet", ".arrow"):
            raise UserError(
                f"{path}: not a tar, zip, Parquet or Arrow file, nor a folder with some. A folder "
                "of images is packed with --data_path."
            )
        return [path]
    if (path / "dataset_dict.json").exists():
        splits = sorted(p.name for p in path.iterdir() if p.is_dir())
        raise UserError(f"{path} has the splits {', '.join(splits)}: name one, {path / splits[0]}")
    state = path / "state.json"
    if state.exists():
        try:
            listed = json.loads(state.read_text(encoding="utf-8"))["_data_files"]
            return [path / Path(file["filename"]).name for file in listed]
        except (ValueError, LookupError, TypeError) as err:
            raise UserError(f"{state}: not the state of a data set ({err}).") from err
    found = sorted(path.rglob("*.parquet"))
    if not found:
        raise UserError(f"{path}: no Parquet files, and no state.json of save_to_disk.")
    return found


def add_table(
    inventory: Inventory,
    path: Path,
    columns: Mapping[str, str],
    class_column: str | None,
    name_column: str | None,
    spool: Spool,
) -> None:
    """Copy the images of a table to the spool, and add them.

    Args:
        inventory: Receives the files.
        path: Parquet or Arrow file.
        columns: Modality folder -> column of images: bytes, or a struct with ``bytes``.
        class_column: Column of class ids or names.
        name_column: Column of names; without it samples are named by file and row.
        spool: Receives the bytes.

    Raises:
        UserError: Columns are missing or hold something else.
    """
    wanted = [*columns.values(), *(c for c in (class_column, name_column) if c)]
    version, row = version_of(path), 0
    schema, batches = _open(path, wanted)
    folders = _class_names(schema, class_column)
    for batch in batches:
        for values in batch.to_pylist():
            key = f"{path.stem}-{row:08d}"
            if name_column:
                key = str(values[name_column]).removeprefix("/")
            if class_column:
                inventory.label(key, _class_of(values[class_column], folders, f"{path}: row {row}"))
            for folder, column in columns.items():
                where = f"{path}: row {row}, column {column}"
                data, name = _image(values[column], where)
                if data is not None:
                    entry = spool.write(data, where, f"{version} {row} {column}")
                    inventory.add(folder, key, _suffix(data, name, where), entry)
            row += 1
    spool.stream.flush()


def _open(path: Path, wanted: list[str]) -> tuple[Any, Iterator[Any]]:
    """Schema of a file, and record batches with the wanted columns."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as err:
        raise UserError(f"{path}: needs pyarrow: pip install 'multimae[import]'") from err
    try:
        if path.suffix == ".parquet":
            file = pq.ParquetFile(path)
            _check_columns(path, file.schema_arrow, wanted)
            return file.schema_arrow, _translated(path, file.iter_batches(_BATCH, columns=wanted))
        source = pa.memory_map(str(path))
        try:
            reader = pa.ipc.open_stream(source)
        except pa.ArrowInvalid:
            opened = pa.ipc.open_file(source)
            reader = (opened.get_batch(i) for i in range(opened.num_record_batches))
            _check_columns(path, opened.schema, wanted)
            return opened.schema, _sliced(path, reader, wanted)
        _check_columns(path, reader.schema, wanted)
        return reader.schema, _sliced(path, reader, wanted)
    except pa.ArrowException as err:
        raise UserError(f"{path}: cannot be read ({err}). Copy it again.") from err


def _sliced(path: Path, batches: Iterator[Any], wanted: list[str]) -> Iterator[Any]:
    for batch in _translated(path, batches):
        for start in range(0, batch.num_rows, _BATCH):
            yield batch.slice(start, _BATCH).select(wanted)


def _translated(path: Path, batches: Iterator[Any]) -> Iterator[Any]:
    """The batches; errors of pyarrow become a UserError."""
    import pyarrow as pa

    try:
        yield from batches
    except (pa.ArrowException, OSError) as err:
        raise UserError(f"{path}: cannot be read ({err}). Copy it again.") from err


def _check_columns(path: Path, schema: Any, wanted: list[str]) -> None:
    missing = [name for name in wanted if name not in schema.names]
    if missing:
        present = ", ".join(f"{field.name} ({field.type})" for field in schema)
        raise UserError(f"{path}: no column {', '.join(missing)}. There are {present}.")


def _class_names(schema: Any, column: str | None) -> list[str] | None:
    """Folders of the class ids, where Hugging Face's metadata has their names."""
    about = (schema.metadata or {}).get(b"huggingface")
    if column is None or about is None:
        return None
    try:
        names = json.loads(about)["info"]["features"][column].get("names")
    except (ValueError, LookupError, TypeError, AttributeError):
        return None
    return class_folders(names) if names else None


def _class_of(value: object, folders: list[str] | None, where: str) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        if folders is None:
            return f"{value:05d}"
        if value < len(folders):
            return folders[value]
    elif isinstance(value, str):
        return folder_name(value)
    raise UserError(f"{where}: {value!r} is not a class. Check --class_column.")


def _image(value: object, where: str) -> tuple[bytes | None, str]:
    """Bytes of an image and its file name; ``None`` if it is missing."""
    name = ""
    if isinstance(value, dict):
        name = str(value.get("path") or "")
        if value.get("bytes") is None and name:
            raise UserError(
                f"{where}: has the path {name} instead of bytes. Save the data set with its images "
                "embedded (push_to_hub and save_to_disk do)."
            )
        value = value.get("bytes")
    if value is not None and not isinstance(value, bytes):
        raise UserError(f"{where}: holds {type(value).__name__}, not an image.")
    return value, name


def _suffix(data: bytes, name: str, where: str) -> str:
    """Extension by content, else by the name."""
    for magic, suffix in _MAGIC.items():
        if data.startswith(magic):
            return suffix
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return ".webp"
    suffix = Path(name).suffix.lower()
    if suffix in SUFFIXES:
        return suffix
    raise UserError(f"{where}: not an image of a known format.")
