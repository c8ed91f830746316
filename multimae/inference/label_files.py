"""Labels in a CSV file: a class, several classes or numbers per image."""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from pathlib import Path, PurePath
from typing import NamedTuple

import torch
from torch import Tensor

from multimae.images.folders import MultiModalFolder
from multimae.images.preprocess import upload
from multimae.images.readers import SUFFIXES
from multimae.specs.coercion import did_you_mean, repeated
from multimae.specs.errors import UserError, bullet_list
from multimae.specs.heads import LabelKind

SEPARATOR = ";"
_YES_NO = {"0": 0.0, "1": 1.0, "": math.nan}


class LabelFile(NamedTuple):
    """Labels by sample name.

    Attributes:
        path: The file.
        kind: What an image has.
        names: Classes by id, or titles of the columns of numbers.
        rows: Row of a sample, by ``sub-folder/name``.
        values: (N,) class ids, or (N, K) of 0 and 1, or of numbers; NaN: unknown.
    """

    path: Path
    kind: LabelKind
    names: tuple[str, ...]
    rows: dict[str, int]
    values: Tensor

    def targets(self, samples: Sequence[str], device: torch.device | None = None) -> Tensor:
        """Labels ``(B,)`` or ``(B, K)`` of samples."""
        return upload(self.values[[self.rows[name] for name in samples]], device)

    def check(self, folder: MultiModalFolder) -> None:
        """Raise a UserError if an image has no row."""
        names = own_names(folder)
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            raise UserError(
                f"{self.path}: {folder.root} have {len(twice)} images of the same name, which a "
                f"row cannot tell apart:\n{bullet_list(twice)}\nRename them, or train on one "
                "folder."
            )
        missing = [name for name in names if name not in self.rows]
        if missing:
            raise UserError(
                f"{self.path}: {len(missing)} of {len(folder)} images of {folder.root} have no "
                f"row:\n{bullet_list(missing)}\nThe first column holds SUB-FOLDER/NAME, with or "
                f"without extension, such as {next(iter(self.rows), '(no row)')}."
            )

    def statistics(self, folder: MultiModalFolder) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of the numbers of a folder's images.

        Raises:
            UserError: A column has no or always the same number.
        """
        values = self.targets(own_names(folder)).double()
        means, deviations = [], []
        for title, column in zip(self.names, values.unbind(dim=1), strict=True):
            known = column[column.isfinite()]
            if not len(known) or known.std(correction=0) == 0:
                raise UserError(
                    f"{self.path}: column '{title}' has {'the same' if len(known) else 'no'} value "
                    f"for all images of {folder.root}. Remove the column."
                )
            means.append(float(known.mean()))
            deviations.append(float(known.std(correction=0)))
        return tuple(means), tuple(deviations)

    def digest(self, folder: MultiModalFolder) -> Tensor:
        """Checksum (2,) of the labels of a folder's images."""
        values = self.targets(own_names(folder))
        data = "\0".join(self.names).encode() + values.numpy().tobytes()
        found = blake2b(data, digest_size=16).digest()
        halves = (found[:8], found[8:])
        return torch.tensor([int.from_bytes(h, "little", signed=True) for h in halves])


def own_names(folder: MultiModalFolder) -> list[str]:
    """``sub-folder/name`` of all samples in their data roots."""
    return [part.name(i) for part in folder.parts for i in range(len(part))]


def read_label_file(
    path: str | Path, kind: LabelKind, names: Sequence[str] | None = None
) -> LabelFile:
    """Read a CSV file whose first line names the columns, the first of which holds sample names.

    Args:
        path: ``name,label`` for ``class``; ``name,labels`` with labels separated by ``;``, or a
            column of 0 and 1 per class, for ``multi``; a column per number for ``number``.
        kind: What an image has.
        names: Classes or columns of the training set; default: those of the file.

    Raises:
        UserError: Unreadable file, or wrong rows: all of them, with their lines.
    """
    path = Path(path)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = [(number, row) for number, row in enumerate(csv.reader(file), 1) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as err:
        raise UserError(f"label_file: {path} cannot be read ({err}).") from err
    if len(lines) < 2 or len(lines[0][1]) < 2 or (kind == "class" and len(lines[0][1]) > 2):
        columns = {"class": "name,label", "multi": "name,labels", "number": "name,value"}[kind]
        raise UserError(
            f"label_file: {path} needs a first line that names the columns, such as `{columns}`, "
            "and a row per image, separated by commas."
        )
    titles = tuple(title.strip() for title in lines[0][1][1:])
    problems: list[str] = []
    rows: dict[str, int] = {}
    cells: list[list[str]] = []
    for number, row in lines[1:]:
        name = _sample_name(row[0])
        if len(row) != len(titles) + 1:
            problems.append(f"line {number}: {len(row)} columns, not {len(titles) + 1}")
        elif name in rows:
            problems.append(f"line {number}: '{name}' is named twice")
        else:
            rows[name] = len(cells)
            cells.append([cell.strip() for cell in row[1:]])
    lists = kind == "class" or (kind == "multi" and len(titles) == 1)
    labels = [_labels(row[0], kind) for row in cells] if lists else []
    found = tuple(sorted({label for each in labels for label in each})) if lists else titles
    names = tuple(names or found)
    if lists:
        values = _encoded(labels, names, kind, problems)
    else:
        if repeated(titles):
            problems.append(f"two columns are called {repeated(titles)}")
        elif set(titles) != set(names):
            problems.append(f"columns {', '.join(titles)}, not {', '.join(names)}")
        values = _numbers(cells, list(rows), titles, names, kind, problems)
    if problems:
        raise UserError(f"label_file: {path}:\n{bullet_list(problems)}\nCorrect these lines.")
    return LabelFile(path, kind, names, rows, values)


def _sample_name(cell: str) -> str:
    name = cell.strip().removeprefix("./")
    suffix = PurePath(name).suffix
    return name.removesuffix(suffix) if suffix.lower() in SUFFIXES else name


def _labels(cell: str, kind: LabelKind) -> list[str]:
    if kind == "class":
        return [cell]
    return [label.strip() for label in cell.split(SEPARATOR) if label.strip()]


def _encoded(
    labels: Sequence[Sequence[str]], names: Sequence[str], kind: LabelKind, problems: list[str]
) -> Tensor:
    ids = {name: i for i, name in enumerate(names)}
    unknown = sorted({label for each in labels for label in each} - set(ids))
    problems += [f"unknown class '{label}'{did_you_mean(label, names)}" for label in unknown]
    if unknown:
        return torch.zeros(0)
    if kind == "class":
        return torch.tensor([ids[label] for (label,) in labels])
    values = torch.zeros(len(labels), len(names))
    for row, each in zip(values, labels, strict=True):
        row[[ids[label] for label in each]] = 1.0
    return values


def _numbers(
    cells: Sequence[Sequence[str]],
    samples: Sequence[str],
    titles: Sequence[str],
    names: Sequence[str],
    kind: LabelKind,
    problems: list[str],
) -> Tensor:
    values = []
    for sample, row in zip(samples, cells, strict=True):
        numbers = [_number(cell, kind) for cell in row]
        wrong = [cell for cell, number in zip(row, numbers, strict=True) if number is None]
        if wrong:
            kinds = "0, 1 or empty" if kind == "multi" else "a finite number or empty"
            problems.append(f"'{sample}': '{wrong[0]}' is not {kinds}")
        values.append([math.nan if number is None else number for number in numbers])
    table = torch.tensor(values, dtype=torch.float32)
    return table if problems else table[:, _order(titles, names)]


def _order(titles: Sequence[str], names: Iterable[str]) -> list[int]:
    return [titles.index(name) for name in names]


def _number(cell: str, kind: LabelKind) -> float | None:
    """Value of a cell, NaN if it is empty, ``None`` if it is wrong."""
    if kind == "multi":
        return _YES_NO.get(cell)
    try:
        value = float(cell) if cell else math.nan
    except ValueError:
        return None
    return value if math.isfinite(value) or not cell else None
