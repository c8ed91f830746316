"""What is wrong with the files of modality folders, for users."""

from __future__ import annotations

import os
import unicodedata
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np
import numpy.typing as npt

from multimae.images.index.listing import LAYOUT, Listing, Names
from multimae.images.pack import AnyPath
from multimae.images.readers import SUFFIXES
from multimae.specs.coercion import did_you_mean
from multimae.specs.errors import UserError, bullet_list
from multimae.specs.modalities import Modality


def refuse_folders(root: Path, modalities: Sequence[Modality]) -> NoReturn:
    """Raise a UserError with all modality folders that are missing."""
    if not root.exists():
        raise UserError(
            f"data path {root} does not exist: set --data_path. It must hold {LAYOUT}. "
            "`multimae init FOLDER` writes a config for your data."
        )
    if not root.is_dir():
        raise UserError(f"data path {root} is not a folder. It must hold {LAYOUT}.")
    present = sorted(p.name for p in root.iterdir() if p.is_dir())
    if not present and any(m.data_folder != "." for m in modalities):
        raise UserError(f"data path {root} has no folders in it. It must hold {LAYOUT}.")
    problems = []
    for m in modalities:
        if m.data_folder not in (*present, "."):
            near = did_you_mean(m.data_folder, present)
            problems.append(f"modality '{m.name}': no folder {root / m.data_folder}{near}")
    raise UserError(
        f"modality folders are missing:\n{bullet_list(problems)}\n"
        f"Folders in {root}: {', '.join(present)}. Create the missing ones, set `folder:` of "
        "the modality in the config, or drop the modality from the in/out domains."
    )


def refuse_listing(listing: Listing, folder: AnyPath, modality: str) -> NoReturn:
    """Raise a UserError: no images, or the same name twice."""
    if listing.clashes:
        pairs = []
        for name, extension in listing.clashes:
            key = os.fsdecode(name)
            first = listing.extensions[listing.kinds[bisect_left(listing.names, name)]]
            pairs.append(f"{folder / key}: {first} and {os.fsdecode(extension)}")
        raise UserError(
            f"modality '{modality}': the same name with two extensions is ambiguous:\n"
            f"{bullet_list(sorted(pairs))}\nKeep one file of each."
        )
    raise UserError(
        f"modality '{modality}': no images in {folder} or its sub-folders"
        f"{without_reader(folder, listing.ignored)}.\nThe layout is {LAYOUT} with "
        f"sub-folders of any depth; extensions: {', '.join(sorted(SUFFIXES))}."
    )


def without_reader(folder: AnyPath, ignored: Counter[str]) -> str:
    """Part of a message: files of a folder that have no reader, by reason, and an example."""
    example = next(folder.rglob("[!.]*.*"), None) if isinstance(folder, Path) else None
    if example is None or not ignored:
        return f"; {example} is a folder" if example else ""
    counts = ", ".join(f"{count} '{suffix}'" for suffix, count in ignored.most_common(3))
    return (
        f"; there is no reader for its files: {counts}, such as {example}. Convert them (.npy "
        "holds any array)"
    )


def refuse_look_alikes(names: Names, partial: npt.NDArray[np.bool_]) -> None:
    """Raise a UserError if names differ only in the Unicode form of letters.

    Args:
        names: Of all modalities.
        partial: (N,) which of them some modality lacks.
    """
    forms: dict[str, list[str]] = {}
    for first, stop in names.blocks():
        starts = names.starts[first:stop].astype(np.int64)
        text = names.text[starts[0] : int(names.starts[stop])]
        other = np.logical_or.reduceat(text > 127, starts - starts[0])
        for i in (first + np.flatnonzero(partial[first:stop] & other)).tolist():
            key = os.fsdecode(names[i])
            forms.setdefault(unicodedata.normalize("NFC", key), []).append(key)
    pairs = [" and ".join(map(ascii, sorted(keys))) for keys in forms.values() if len(keys) > 1]
    if pairs:
        raise UserError(
            "names that look alike differ in their Unicode form (NFC, NFD), so that their files "
            f"do not form samples:\n{bullet_list(sorted(pairs))}\nRename them to one form, for "
            "example with `convmv -r -f utf8 -t utf8 --nfc`."
        )


def refuse_incomplete(
    folders: Mapping[str, AnyPath],
    names: Names,
    present: npt.NDArray[np.bool_],
    selected: npt.NDArray[np.bool_],
) -> None:
    """Raise a UserError with the names that each modality lacks.

    Args:
        folders: Folder of every modality.
        names: Of all modalities.
        present: (modalities, N).
        selected: (N,) names that form the set.
    """
    problems, total = [], int(selected.sum())
    for (name, folder), has in zip(folders.items(), present, strict=True):
        missing = np.flatnonzero(selected & ~has)
        if len(missing):
            few = [os.fsdecode(names[i]) for i in missing[:3].tolist()]
            examples = ", ".join(few) + (", ..." if len(missing) > 3 else "")
            problems.append(f"'{name}' ({folder}): {len(missing)} of {total} missing: {examples}")
    common = int((selected & present.all(axis=0)).sum())
    raise UserError(
        "file names do not match between the modalities:\n"
        f"{bullet_list(problems)}\n{common} names are complete. Each sample needs a file of the "
        "same sub-folder and name in every modality folder (extensions may differ): add the "
        "missing files, or remove those names from the other folders."
    )
