"""Images to predict: files, globs, folders, data roots with modality folders, packs.

A sample's name is its path below the folder, glob or data root it was found in, without the
extension. Outputs are named after it.
"""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

from multimae.images.folders import MultiModalFolder, open_pack
from multimae.images.no_data_tags import TIFF_SUFFIXES
from multimae.images.pack import AnyPath, is_packed, to_path
from multimae.images.pixels import ImageError, Pixels
from multimae.images.readers import SUFFIXES, read
from multimae.inference.tiling.rasters import Georeference, georeference_of
from multimae.specs.coercion import did_you_mean
from multimae.specs.errors import UserError, bullet_list
from multimae.specs.modalities import Modality, default_table
from multimae.specs.spec import ModelSpec

_MASK_VALID, _ZBUFFER = "mask_valid", "depth_zbuffer"


class DomainFolder(MultiModalFolder):
    """A data root whose file names end in ``_domain_{folder}``, as Taskonomy's do."""

    def suffix(self, modality: Modality) -> str:
        """``_domain_{folder}``; valid pixels are named after the z-buffer."""
        folder = modality.data_folder
        return f"_domain_{_ZBUFFER if folder == _MASK_VALID else folder}"


def open_folder(
    root: AnyPath, modalities: Sequence[Modality], *, skip_incomplete: bool = False
) -> MultiModalFolder:
    """Index a data root; names may end in ``_domain_{folder}``.

    Raises:
        UserError: Missing folders, ambiguous names, or no sample.
    """
    folder = modalities[0].data_folder
    first = _first_name(root / folder)
    kind = DomainFolder if first.endswith(f"_domain_{folder}") else MultiModalFolder
    return kind(root, modalities, skip_incomplete=skip_incomplete)


def _first_name(folder: AnyPath) -> str:
    """Name, without extension, of some image of a modality folder; empty if it has none."""
    if is_packed(folder):
        return os.path.splitext(os.fsdecode(open_pack(folder, check_first=1).names[0]))[0]
    for _, _, files in os.walk(folder) if isinstance(folder, Path) else ():
        for name in files:
            stem, suffix = os.path.splitext(name)
            if suffix.lower() in SUFFIXES:
                return stem
    return ""


class FileList:
    """Files of one modality."""

    def __init__(self, files: Sequence[tuple[str, Path]], modality: Modality) -> None:
        """``files``: name and path of each."""
        self.files, self.modality = files, modality

    def __len__(self) -> int:
        """Number of files."""
        return len(self.files)

    def name(self, index: int) -> str:
        """Name of a file."""
        return self.files[index][0]

    def path(self, index: int, modality: Modality) -> Path:
        """A file."""
        return self.files[index][1]

    def read(self, index: int, modality: Modality) -> Pixels:
        """Pixels of a file."""
        return read(self.files[index][1], modality)


Source = MultiModalFolder | FileList


class Samples:
    """Samples of all inputs, in order.

    Attributes:
        modalities: Modalities of every sample.
        names: Of the samples, each once.
        bad: Samples that lack a file: name and problem.
        notes: Lines for the user: ignored files, selected modalities.
        roots: Folders that the samples come from.
    """

    def __init__(
        self, inputs: Sequence[str], spec: ModelSpec, names: Sequence[str] = (), only: str = ""
    ) -> None:
        """Find the samples; no image is read.

        Args:
            inputs: Files, globs, folders, data roots or packs.
            spec: Spec of the model.
            names: Inputs of the model to use; all that a data root has if empty.
            only: Glob that the names of samples must match; all if empty.

        Raises:
            UserError: Nothing found, unknown modalities, inputs of different modalities, or two
                samples of one name.
        """
        self._spec, self._chosen = spec, _chosen(names, spec)
        self.bad: list[tuple[str, str]] = []
        self.notes: list[str] = []
        self.roots: list[AnyPath] = []
        self._sources: list[Source] = []
        self._rows: list[Sequence[Modality]] = []
        given: dict[tuple[str, ...], str] = {}
        files: dict[Path, list[tuple[str, Path]]] = {}
        for text in inputs:
            path = to_path(text)
            if not isinstance(path, Path) or path.is_dir():
                self._add_folder(path)
                given.setdefault(_names(self._rows[-1]), text)
            else:
                root, found = _match(text)
                files.setdefault(root, []).extend(found)
        for root, found in files.items():
            self._refuse_other(root)
            row = self._single("a file")
            self._add(FileList(found, row), [row], root)
            given.setdefault((row.name,), str(found[0][1]))
        if len(given) > 1:
            lines = [f"{text}: {'-'.join(names)}" for names, text in given.items()]
            raise UserError(
                f"the inputs hold different modalities:\n{bullet_list(lines)}\nSelect those that "
                "all have with --inputs, or predict them one after the other."
            )
        (found_names,) = given
        self.modalities = tuple(m for m in spec.inputs if m.name in found_names)
        pairs = [
            (s, i)
            for s, source in enumerate(self._sources)
            for i in range(len(source))
            if not only or fnmatchcase(source.name(i), only)
        ]
        if not pairs:
            raise UserError(f"--only {only}: no name of {len(self._sources)} inputs matches it.")
        self._where = pairs
        self._index: dict[str, int] | None = None
        self.names = [self._sources[s].name(i) for s, i in pairs]
        _refuse_equal_names(self.names)

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.names)

    def read(self, index: int) -> dict[str, Pixels]:
        """Pixels of a sample by modality.

        Raises:
            ImageError: A file is bad.
        """
        source, i = self._where[index]
        return {m.name: self._sources[source].read(i, m) for m in self._rows[source]}

    def images(self, index: int) -> dict[str, Path | Pixels]:
        """Files of a sample by modality; pixels of those in packs or behind URLs.

        Raises:
            ImageError: One of these is bad.
        """
        source, i = self._where[index]
        found, images = self._sources[source], dict[str, Path | Pixels]()
        for m in self._rows[source]:
            path = found.path(i, m)
            if isinstance(path, Path) and path.is_file():
                images[m.name] = path
            else:
                images[m.name] = found.read(i, m)
        return images

    def georeference(self, name: str) -> Georeference | None:
        """Where a sample lies, if one of its files is a GeoTIFF.

        Raises:
            UserError: rasterio is missing.
        """
        if self._index is None:
            self._index = {n: i for i, n in enumerate(self.names)}
        source, i = self._where[self._index[name]]
        paths = [self._sources[source].path(i, m) for m in self._rows[source]]
        files = [p for p in paths if isinstance(p, Path) and p.suffix.lower() in TIFF_SUFFIXES]
        found = []
        for path in filter(Path.is_file, files):
            with suppress(ImageError):  # GDAL cannot read it; the reader of images says what it is
                found.append(georeference_of(path))
        return max(filter(None, found), key=lambda where: where.size, default=None)

    def prefetch(self, indices: Sequence[int]) -> None:
        """Fetch the records of samples in packs behind URLs, many at a time."""
        by_source: dict[int, list[int]] = {}
        for source, i in (self._where[index] for index in indices):
            by_source.setdefault(source, []).append(i)
        for number, found in by_source.items():
            source_ = self._sources[number]
            if isinstance(source_, MultiModalFolder):
                source_.prefetch(found)

    def folder_of(self, index: int) -> tuple[MultiModalFolder, int] | None:
        """Data root of a sample and its index there; ``None`` for single files."""
        source, i = self._where[index]
        found = self._sources[source]
        return (found, i) if isinstance(found, MultiModalFolder) else None

    def _add(self, source: Source, rows: Sequence[Modality], root: AnyPath) -> None:
        self._sources.append(source)
        self._rows.append(rows)
        self.roots.append(root.resolve() if isinstance(root, Path) else root)

    def _add_folder(self, path: AnyPath) -> None:
        """Add a data root, or a folder of one modality."""
        path = path.resolve() if isinstance(path, Path) else path
        rows = [m for m in self._spec.inputs if (path / m.data_folder).is_dir()]
        if is_packed(path) or not rows:
            named = [m for m in self._spec.inputs if m.data_folder == path.name]
            self._refuse_other(path)
            row = self._single("a folder of images") if self._chosen or not named else named[0]
            rows, root = [replace(row, folder=path.name, suffix="")], path.parent
        else:
            rows, root = self._chosen or rows, path
        folder = open_folder(root, rows, skip_incomplete=True)
        self.bad += [(str(file), problem) for file, problem in folder.incomplete]
        self.notes += folder.ignored_lines()
        self._add(folder, rows, path)

    def _refuse_other(self, folder: AnyPath) -> None:
        """Raise a UserError if a folder is called like a modality that the model does not read."""
        read = {m.data_folder for m in self._spec.inputs}
        heads = (head.target for head in self._spec.heads)
        others = (*default_table().values(), *self._spec.outputs, *heads)
        if not self._chosen and folder.name in {m.data_folder for m in others} - read:
            raise UserError(
                f"{folder} seems to hold '{folder.name}', which the model does not read: its "
                f"inputs are {', '.join(m.name for m in self._spec.inputs)}. To read these files "
                "as one of them, name it with --inputs."
            )

    def _single(self, what: str) -> Modality:
        """The one modality that files or a plain folder feed."""
        if len(self._chosen) > 1:
            raise UserError(
                f"--inputs {'-'.join(_names(self._chosen))}: {what} holds one modality. Give the "
                "data root, the folder that holds one folder per modality."
            )
        images = [m for m in self._spec.inputs if not m.is_labels]
        return (self._chosen or images or list(self._spec.inputs))[0]


def _chosen(names: Sequence[str], spec: ModelSpec) -> list[Modality]:
    known = {m.name: m for m in spec.inputs}
    for name in names:
        if name not in known:
            raise UserError(
                f"--inputs: the model has no input '{name}'{did_you_mean(name, known)} It has "
                f"{', '.join(known)}."
            )
    return [m for m in spec.inputs if m.name in names]


def _names(rows: Sequence[Modality]) -> tuple[str, ...]:
    return tuple(m.name for m in rows)


def _match(text: str) -> tuple[Path, list[tuple[str, Path]]]:
    """Files of a path or glob that is no folder: the folder above, and their names and paths."""
    path = Path(text)
    if path.is_file():
        _, suffix = os.path.splitext(path.name)
        if suffix.lower() not in SUFFIXES:
            raise UserError(
                f"{path}: no reader for '{suffix}' files. Readable: {', '.join(sorted(SUFFIXES))}."
            )
        return path.parent, [(os.path.splitext(path.name)[0], path)]
    if not glob.has_magic(text):
        kind = "is not a regular file" if path.exists() else "does not exist"
        raise UserError(f"input {path} {kind}: check the path.")
    parts = path.parts
    fixed = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    root = Path(*parts[:fixed])
    ignored: Counter[str] = Counter()
    found = []
    for match in map(Path, sorted(glob.glob(text, recursive=True))):
        stem, suffix = os.path.splitext(match.relative_to(root))
        if match.is_file() and suffix.lower() in SUFFIXES:
            found.append((stem, match))
        elif match.is_file():
            ignored[suffix] += 1
    if not found:
        others = f"; other files: {dict(ignored)}" if ignored else ""
        raise UserError(f"input {text}: no image matches{others}.")
    return root, found


def _refuse_equal_names(names: Sequence[str]) -> None:
    """Raise a UserError if two samples would write the same outputs."""
    counts = Counter(names)
    if len(counts) < len(names):
        twice = [f"{name} ({n} times)" for name, n in counts.items() if n > 1]
        raise UserError(
            "several inputs would write the same output, as their paths below INPUT differ only "
            f"in the extension or not at all:\n{bullet_list(twice)}\nGive the folder above them "
            "all, or predict them into different folders."
        )
