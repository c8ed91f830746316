"""Data sets in other layouts: WebDataset tars, zip files, tables, and stores behind URLs.

Their files are packed with their bytes as they are, as if they lay in modality folders.
"""

from __future__ import annotations

import glob
import re
import tarfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from multimae.images.pack import to_path
from multimae.images.readers import SUFFIXES
from multimae.specs.errors import UserError
from tools.pack.members import Entry, Inventory, Members, Spool, folder_name, version_of

_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


@dataclass(frozen=True)
class ImportOptions:
    """What to import.

    Attributes:
        sources: Paths, globs with ``{a,b}`` and ``{000..127}``, or URLs.
        columns: Modality folder -> extension in a tar (alternatives by commas), column of a table,
            or folder in a zip file or store. May be empty for folders.
        class_column: Column or extension with the class of a sample.
        name_column: Column of a table with the names of the samples.
    """

    sources: tuple[str, ...]
    columns: Mapping[str, str]
    class_column: str | None = None
    name_column: str | None = None


def collect(options: ImportOptions, spool_folder: Path) -> tuple[dict[str, Members], list[str]]:
    """List the files of all sources.

    Args:
        options: What to import.
        spool_folder: Folder for the contents of sources that allow no random access.

    Returns:
        Files by modality folder, and lines about missing and ignored ones.

    Raises:
        UserError: A source cannot be read, or its files do not form a data set.
    """
    inventory = Inventory(list(options.columns))
    for number, source in enumerate(expand(options.sources)):
        path = Path(source)
        if isinstance(to_path(source), Path):
            with (spool_folder / f"{number:06d}").open("wb") as stream:
                _add_file(inventory, path, options, Spool(Path(stream.name), stream))
        else:
            _add_tree(inventory, _remote_files(source), options)
    return inventory.finish(options.class_column is not None), inventory.summary()


def expand(sources: Iterable[str]) -> list[str]:
    """Paths and URLs that globs and brace lists stand for, sorted within each source.

    Raises:
        UserError: No file matches a source.
    """
    found: list[str] = []
    for source in sources:
        for pattern in _braces(source):
            if not isinstance(to_path(pattern), Path):
                found.append(pattern)
                continue
            paths = [pattern] if Path(pattern).exists() else sorted(glob.glob(pattern))
            if not paths:
                raise UserError(f"--from {pattern}: no such file. Check the path.")
            found += paths
    return list(dict.fromkeys(found))


def _braces(text: str) -> Iterator[str]:
    """Expand the first ``{a,b}`` or ``{000..127}``, and the others in turn."""
    match = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", text)
    if match is None:
        yield text
        return
    first, last, words = match.groups()
    choices = (
        [f"{i:0{len(first)}d}" for i in range(int(first), int(last) + 1)]
        if words is None
        else words.split(",")
    )
    for choice in choices:
        yield from _braces(text[: match.start()] + choice + text[match.end() :])


def _add_file(inventory: Inventory, path: Path, options: ImportOptions, spool: Spool) -> None:
    """Add the files of a local source."""
    name = path.name.lower()
    try:
        if name.endswith((".tar", *_COMPRESSED)):
            _require_columns(path, options, "rgb=jpg depth=depth.png")
            _add_tar(inventory, path, options, spool if name.endswith(_COMPRESSED) else None)
        elif name.endswith(".zip"):
            _add_tree(inventory, _zip_files(inventory, path), options)
        else:
            from tools.pack.image_tables import add_table, table_files  # needs pyarrow

            _require_columns(path, options, "rgb=image")
            for file in table_files(path):
                add_table(inventory, file, options.columns, options.class_column,
                          options.name_column, spool)  # fmt: skip
    except (OSError, tarfile.TarError, zipfile.BadZipFile, EOFError) as err:
        raise UserError(f"{path}: cannot be read ({err}). Copy it again.") from err


def _require_columns(path: Path, options: ImportOptions, example: str) -> None:
    if not options.columns:
        raise UserError(f"{path}: name what each modality is, such as --columns {example}")


def _add_tar(inventory: Inventory, path: Path, options: ImportOptions, spool: Spool | None) -> None:
    """Add the members ``key.extension`` of a WebDataset tar; compressed ones by way of a spool."""
    folders = {
        extension.lower().lstrip("."): folder
        for folder, column in options.columns.items()
        for extension in column.split(",")
    }
    version = version_of(path)
    with tarfile.open(path) as archive:
        for member in archive:
            where = PurePosixPath(member.name)
            stem, _, extension = where.name.partition(".")
            if member.isdir() or not stem:
                continue
            key, extension = str(where.parent / stem), extension.lower()
            if not member.isfile() or member.issparse():
                raise UserError(f"{path}: {member.name} is not a regular file. Remove it.")
            content = None
            if spool is not None or extension == options.class_column:
                stream = archive.extractfile(member)
                content = stream.read() if stream else b""
            if extension == options.class_column and content is not None:
                inventory.label(key, folder_name(content.decode("utf-8", "replace")))
            elif extension not in folders:
                inventory.ignored[f"'.{extension}' files"] += 1
            else:
                if spool is not None and content is not None:
                    entry = spool.write(content, f"{path}: {member.name}", version)
                else:
                    entry = Entry("range", str(path), version, f"{path}: {member.name}",
                                  member.offset_data, member.size)  # fmt: skip
                inventory.add(folders[extension], key, where.suffix, entry)


def _zip_files(inventory: Inventory, path: Path) -> list[tuple[str, Entry]]:
    """Path in the archive of every file, and where it is."""
    version, found = version_of(path), []
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if info.is_dir():
                continue
            if info.flag_bits & 1:
                raise UserError(f"{path}: {info.filename} is encrypted. Unzip it first.")
            entry = Entry("zip", str(path), version, info.filename)
            found.append((info.filename, entry))
    return found


def _remote_files(url: str) -> list[tuple[str, Entry]]:
    """Path below a URL of every file, and where it is."""
    from multimae.images.pack.remote import list_files

    if url.lower().endswith((".tar", ".zip", ".parquet", ".arrow", *_COMPRESSED)):
        raise UserError(f"{url}: archives and tables are read from disk. Download the file first.")
    return [
        (unquote(name) if url.startswith("http") else name, Entry("url", file, version, file))
        for name, file, version in list_files(url)
    ]


def _add_tree(
    inventory: Inventory, files: Sequence[tuple[str, Entry]], options: ImportOptions
) -> None:
    """Add files by their folders: the first one is the modality, unless the columns name them."""
    if options.class_column:
        raise UserError("--class_column: files in folders have their classes as sub-folders.")
    folders = {column.strip("/"): folder for folder, column in options.columns.items()}
    if not folders:
        tops = sorted({name.partition("/")[0] for name, _ in files if "/" in name})
        if len(tops) == 1:
            raise UserError(
                f"all files are in the folder {tops[0]}: name the folder of each modality, such "
                f"as --columns rgb={tops[0]}, or rgb={tops[0]}/images."
            )
        folders = {top: top for top in tops}
    for name, entry in files:
        column = next((c for c in folders if name.startswith(f"{c}/")), None)
        path = PurePosixPath(name)
        if column is None or any(part.startswith(".") for part in path.parts):
            inventory.ignored["files outside the modality folders"] += 1
            continue
        if path.suffix.lower() not in SUFFIXES:
            inventory.ignored[f"'{path.suffix}' files"] += 1
            continue
        key = name[len(column) + 1 :].removesuffix(path.suffix)
        inventory.add(folders[column], key, path.suffix, entry)
