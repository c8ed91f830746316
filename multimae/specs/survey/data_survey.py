"""Layout of a data folder: splits, modality or class folders, and which files form a sample."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Literal

from multimae.images.folders import MultiModalFolder, read_class_names, sub_folders
from multimae.images.index.listing import list_folder
from multimae.images.pack import is_packed
from multimae.images.readers import SUFFIXES
from multimae.specs.errors import UserError
from multimae.specs.modalities import Modality
from multimae.specs.survey.guess_modality import KNOWN_FOLDERS, Guess, guess_modality
from multimae.specs.survey.stored_files import SAMPLES, StoredFiles, inspect_files

Layout = Literal["modalities", "classes", "images"]
HERE = "."
"""``folder`` of the modality whose images lie in the data root itself."""
_TRAIN, _TEST = ("train", "training"), ("test", "testing")
_VAL = ("val", "validation", "valid", "eval", "dev")
_SEPARATORS = re.compile(r"[_.\-]")
_COMPARED = 4  # folders whose names are compared
_MORE_LABELS = 8  # times as many label maps are read, as rare classes are in few of them
_ORDER = ("photo", "depth_map", "label_map")


@dataclass
class DataSurvey:
    """What a data folder holds.

    Attributes:
        root: Data root of the training set.
        layout: Folders of modalities, folders of classes, or images without folders.
        val: Data root of the evaluation set.
        test: Data root of the test set.
        guesses: The modalities, inputs first.
        samples: Samples with a file of any modality.
        complete: Samples with a file of every modality.
        classes: Names of the class folders.
        notes: What a user has to decide or correct.
    """

    root: Path
    layout: Layout
    val: Path | None = None
    test: Path | None = None
    guesses: list[Guess] = field(default_factory=list)
    samples: int = 0
    complete: int = 0
    classes: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def of_role(self, role: str) -> list[Guess]:
        """Modalities of a role."""
        return [guess for guess in self.guesses if guess.role == role]


def survey_data(path: str | Path, samples: int = SAMPLES) -> DataSurvey:
    """Look at a data folder.

    Args:
        path: Data root, or a folder with the sub-folders ``train`` and ``val``.
        samples: Files of every modality that are read.

    Raises:
        UserError: No images, or no sample with a file of every modality.
    """
    root = Path(path)
    if not root.is_dir():
        raise UserError(f"{root} is not a folder. Give a data root, or the folder above train/.")
    names = {p.name.lower(): p for p in root.iterdir() if p.is_dir()}
    train, val, test = (
        next((names[word] for word in words if word in names), None)
        for words in (_TRAIN, _VAL, _TEST)
    )
    if train is None:
        survey = DataSurvey(root, _layout(root))
    else:
        survey = DataSurvey(train, _layout(train), val, test)
    _add_modalities(survey, samples)
    _check_splits(survey)
    return survey


def _layout(root: Path) -> Layout:
    folders = _image_folders(root)
    if is_packed(root) or (not folders and any(_is_image(p) for p in root.iterdir())):
        return "images"
    if not folders:
        raise UserError(
            f"{root} holds no images: expected a folder per modality with files of equal names, a "
            f"folder per class, or images. Extensions: {', '.join(sorted(SUFFIXES))}."
        )
    if any(name.lower() in KNOWN_FOLDERS for name in folders):
        return "modalities"
    if len(folders) == 1:
        return "modalities"
    compared = [_names_of(root / name) for name in folders[:_COMPARED]]
    shared = set.intersection(*({name for name, _ in files} for files in compared))
    kinds = {frozenset(suffix for _, suffix in files) for files in compared}
    return "modalities" if shared and len(kinds) > 1 else "classes"


def _image_folders(root: Path) -> list[str]:
    """Names of the sub-folders that hold images or a pack."""
    folders = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    return [p.name for p in folders if is_packed(p) or any(_is_image(f) for f in _walk(p))]


def _walk(folder: Path) -> Iterator[Path]:
    for path, _, files in os.walk(folder):
        yield from (Path(path, name) for name in files)


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def _names_of(folder: Path) -> set[tuple[str, str]]:
    """Names and extensions of the images of a folder."""
    if is_packed(folder):
        from multimae.images.pack.reading import PackedFolder

        files = [os.fsdecode(name) for name in PackedFolder(folder).names]
    else:
        files = [os.fsdecode(name) for name in list_folder(folder, folder.name).files()]
    return {(str(PurePath(name).with_suffix("")), PurePath(name).suffix.lower()) for name in files}


def _add_modalities(survey: DataSurvey, samples: int) -> None:
    folders = _image_folders(survey.root) if survey.layout == "modalities" else [HERE]
    suffixes = find_suffixes({name: _stems(survey.root / name) for name in folders})
    facts = [_inspect(survey.root, name, suffixes.get(name, ""), samples) for name in folders]
    class_names = read_class_names(survey.root) or ()
    for files in sorted(facts, key=_order):
        if files.sizes:
            taken = [g.name for g in survey.guesses]
            survey.guesses.append(guess_modality(files, taken, class_names))
        else:
            survey.notes.append(f"{files.folder}: not used. {files.problems[0]}")
    if not survey.guesses:
        raise UserError("no image could be read:\n" + "\n".join(survey.notes))
    for guess in survey.guesses:
        survey.notes += [*guess.notes, *_irregular(guess)]
    _count_samples(survey)
    image = next((g for g in survey.guesses if g.role == "image"), None)
    if image is not None:
        survey.classes = sub_folders(survey.root / image.files.folder)
        split_names = {*_TRAIN, *_VAL, *_TEST}
        if survey.classes and {name.lower() for name in survey.classes} <= split_names:
            survey.notes.append(
                f"{survey.root / image.files.folder}: its folders {', '.join(survey.classes)} look "
                "like splits, and all are trained on. The layout is SPLIT/MODALITY/NAME."
            )


def _order(files: StoredFiles) -> tuple[int, str]:
    return _rank(files.folder)


def _rank(folder: str) -> tuple[int, str]:
    content = KNOWN_FOLDERS.get(folder.lower(), "")
    return (_ORDER.index(content) if content in _ORDER else len(_ORDER)), folder


def _stems(folder: Path) -> list[str]:
    """Names of the images of a folder without extension."""
    return sorted(name for name, _ in _names_of(folder))


def find_suffixes(names: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Endings of the names that folders have to lose to match, such as ``_leftImg8bit``.

    Args:
        names: By folder, ``sub-folder/name`` of its files.

    Returns:
        By folder; those without an ending are left out.
    """
    folders = sorted(names, key=_rank)
    if len(folders) < 2 or set.intersection(*(set(each) for each in names.values())):
        return {}
    first = folders[0]
    best: dict[str, str] = {}
    for ending in _common_endings(names[first]):
        keys = {name.removesuffix(ending) for name in names[first]}
        found = {first: ending} if ending else {}
        for folder in folders[1:]:
            counts = Counter(
                name[i:] for name in names[folder] for i in _boundaries(name) if name[:i] in keys
            )
            if not counts:
                break
            found[folder] = max(counts, key=lambda end: ("label" in end.lower(), counts[end]))
        else:
            best = {folder: end for folder, end in found.items() if end}
            break
    return best


def _common_endings(names: Sequence[str]) -> list[str]:
    """No ending, and all that the names share from a separator on, shortest first."""
    shared = os.path.commonprefix([name[::-1] for name in names])[::-1]
    return ["", *(shared[m.start() :] for m in reversed(list(_SEPARATORS.finditer(shared))))]


def _boundaries(name: str) -> Iterator[int]:
    """Positions at which an ending may begin."""
    yield from (m.start() for m in _SEPARATORS.finditer(name))
    yield len(name)


def _inspect(root: Path, name: str, suffix: str, samples: int) -> StoredFiles:
    if KNOWN_FOLDERS.get(name.lower()) == "label_map":
        samples *= _MORE_LABELS
    modality = Modality("image", folder=name, suffix=suffix)
    facts = inspect_files(MultiModalFolder(root, [modality]), samples)
    facts.packed = is_packed(root / name)
    return facts


def _irregular(guess: Guess) -> Iterator[str]:
    """Files that the guessed modality does not read."""
    files = guess.files
    where = files.folder
    if files.problems:
        yield (
            f"{where}: {len(files.problems)} of {len(files.sizes) + len(files.problems)} files "
            f"cannot be read: {files.problems[0]}"
        )
    if len(files.forms) > 1 and guess.content != "photo":
        forms = ", ".join(f"{n} of {c} x {t}" for (c, t), n in files.forms.most_common(4))
        yield f"{where}: files differ in channels and type: {forms}"
    if files.bad and not files.nan_only:
        yield f"{where}: infinite values; store them as NaN"
    if len(files.tags) > 1:
        yield f"{where}: files declare different no-data values: {sorted(files.tags)}"


def _count_samples(survey: DataSurvey) -> None:
    modalities = [
        Modality(g.name, folder=g.files.folder, suffix=g.files.suffix) for g in survey.guesses
    ]
    folder = MultiModalFolder(survey.root, modalities, allow_missing=True)
    survey.samples = len(folder)
    if all(len(names) == len(modalities) for names in folder.patterns()):
        survey.complete = len(folder)
    else:
        survey.complete = sum(all(folder.has(i, m) for m in modalities) for i in range(len(folder)))
    if not survey.complete:
        examples = "\n".join(f"  {line}" for line in _examples(survey, modalities))
        raise UserError(
            f"{survey.root}: no name occurs in all {len(modalities)} folders:\n{examples}\nA "
            "sample is the files of one name, up to the extension: rename them."
        )


def _examples(survey: DataSurvey, modalities: Sequence[Modality]) -> Iterator[str]:
    for m in modalities:
        folder = MultiModalFolder(survey.root, [m])
        yield f"{folder.path(0, m)} (of {len(folder)})"


def _check_splits(survey: DataSurvey) -> None:
    """Drop an evaluation or test set that lacks a modality."""
    folders = [g.files.folder for g in survey.guesses]
    for split in ("val", "test"):
        root = getattr(survey, split)
        missing = [name for name in folders if root and not (root / name).is_dir()]
        if missing:
            survey.notes.append(f"{root} lacks {', '.join(missing)} and is not used")
            setattr(survey, split, None)
