"""Taskonomy: where the files of each building are, and their split (Zamir et al. 2018)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from multimae.specs.coercion import did_you_mean
from tools.common.jobs import run_jobs, summary
from tools.prepare.target_folder import Link, Target
from tools.prepare.views import Arrange, Building, TaskName
from utils.data.sets.taskonomy_views import SPLITS_FILE, TASKS, VALID, Subset, buildings_of
from utils.logs.errors import UserError, bullet_list

COMPONENT = "taskonomy"
"""Folder between task and building in what Omnidata's downloader writes."""

INPUTS = ("rgb", VALID)
"""Tasks that every training reads."""


@dataclass(frozen=True)
class Taskonomy:
    """What to prepare.

    Attributes:
        source: Folder of the download.
        split_csv: Official CSV with columns id, train, val, test of 0 and 1.
        tasks: Tasks to arrange; empty takes all that are found.
        link: How files are taken over; those in archives are unpacked.
        skip_incomplete: Leave out views without a file of every task; else they are an error.
    """

    source: Path
    split_csv: Path
    tasks: tuple[str, ...] = ()
    link: Link = "hard"
    skip_incomplete: bool = False


def prepare_taskonomy(job: Taskonomy, target: Target, workers: int = 1) -> str:
    """Write ``{task}/{building}/point_P_view_V_domain_{task}.png`` and ``splits.json``.

    Returns:
        The summary.

    Raises:
        UserError: Files that are missing or not what they should be.
        OSError: A file cannot be written.
    """
    unknown = [f"'{task}'{did_you_mean(task, TASKS)}" for task in job.tasks if task not in TASKS]
    if unknown:
        raise UserError(f"--tasks: unknown {', '.join(unknown)}. Known: {', '.join(TASKS)}.")
    splits = _splits(job.split_csv)
    sources = find_sources(job.source)
    split_of = {name: split for split, names in splits.items() for name in names}
    found = {name: by_task for name, by_task in sources.items() if name in split_of}
    tasks = job.tasks or tuple(t for t in TASKS if any(t in by_task for by_task in found.values()))
    absent = _absent(found, sorted(split_of), tasks)
    if not found or not tasks or (absent and not job.skip_incomplete):
        raise UserError(
            f"{job.source}: {len(found)} of the {len(split_of)} buildings of {job.split_csv} are "
            f"there. Expected TASK/BUILDING/, BUILDING/TASK/ or BUILDING_TASK.tar.\n"
            f"{bullet_list(absent)}\nDownload the rest, name what you have by --tasks, or leave "
            "incomplete views out with --skip_incomplete."
        )
    buildings = [
        Building(name, split_of[name], {task: tuple(found[name].get(task, ())) for task in tasks})
        for name in sorted(found)
    ]
    work = Arrange(target, job.link, job.skip_incomplete)
    tally = run_jobs(work, buildings, workers, "building")
    target.write_json(target.root / SPLITS_FILE, splits)
    return summary("taskonomy", tally, target.root) + _remarks(sources, found, tasks)


def find_sources(source: Path) -> dict[str, dict[str, list[Path]]]:
    """Folders and archives by building and task.

    Found are the folders ``TASK/BUILDING``, ``TASK/taskonomy/BUILDING``, ``BUILDING/TASK``,
    ``BUILDING_TASK`` and ``BUILDING_TASK/TASK``, and the archives ``BUILDING_TASK.tar`` there or
    one folder down.

    Raises:
        UserError: ``source`` is not a folder.
    """
    if not source.is_dir():
        raise UserError(f"{source} is not a folder: --source is the folder of the download.")
    found: dict[str, dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
    for entry in sorted(source.iterdir()):
        for name, task, path in _inside(entry):
            found[name][task].append(path)
    return {name: dict(by_task) for name, by_task in found.items()}


def _inside(entry: Path) -> Iterator[tuple[str, TaskName, Path]]:
    """Building, task and place of what an entry of the download holds."""
    if entry.suffix == ".tar":
        yield from _by_name(entry)
    if not entry.is_dir():
        return
    children = sorted(entry.iterdir())
    for child in children:
        if child.suffix == ".tar":
            yield from _by_name(child)
    folders = [child for child in children if child.is_dir()]
    if entry.name in TASKS:
        for folder in folders:
            if folder.name == COMPONENT:
                yield from ((p.name, entry.name, p) for p in sorted(folder.iterdir()) if p.is_dir())
            else:
                yield folder.name, entry.name, folder
        return
    named = next(_by_name(entry), None)
    if named is not None:
        name, task, _ = named
        yield name, task, entry / task if (entry / task).is_dir() else entry
        return
    yield from ((entry.name, folder.name, folder) for folder in folders if folder.name in TASKS)


def _by_name(path: Path) -> Iterator[tuple[str, TaskName, Path]]:
    """A path named ``BUILDING_TASK``, with or without ``.tar``."""
    stem = path.name.removesuffix(".tar")
    for task in TASKS:
        if stem.endswith(f"_{task}"):
            yield stem.removesuffix(f"_{task}"), task, path


def _splits(path: Path) -> dict[str, list[str]]:
    splits = {s: sorted(buildings_of("", s, str(path))) for s in get_args(Subset)}
    names = [name for group in splits.values() for name in group]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or not names:
        raise UserError(
            f"split file {path}: "
            + (f"{twice[0]} is in two splits." if twice else "no building is in any split.")
            + " Is it the right file?"
        )
    return splits


def _absent(
    found: dict[str, dict[str, list[Path]]], wanted: Sequence[str], tasks: Sequence[str]
) -> list[str]:
    lines = []
    for name in wanted:
        lacking = [task for task in tasks if task not in found.get(name, {})]
        if name not in found:
            lines.append(f"{name}: nothing")
        elif lacking:
            lines.append(f"{name}: no {', no '.join(lacking)}")
    return lines


def _remarks(
    sources: dict[str, dict[str, list[Path]]],
    found: dict[str, dict[str, list[Path]]],
    tasks: Sequence[str],
) -> str:
    text = f"; {len(found)} buildings, {len(tasks)} tasks"
    others = len(sources) - len(found)
    if others:
        text += f"; {others} buildings are in no split"
    needed = [task for task in INPUTS if task not in tasks]
    return text + (f"; training also needs {', '.join(needed)}" if needed else "")
