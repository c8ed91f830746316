"""Taskonomy: find the files of each building, check them and arrange them (Zamir et al. 2018)."""

from __future__ import annotations

import os
import re
import shutil
import tarfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeAlias, get_args

from multimae.specs.coercion import did_you_mean
from multimae.specs.errors import UserError, bullet_list
from tools.common.jobs import INCOMPLETE, PRESENT, WRITTEN, Tally, run_jobs, summary
from tools.common.staging import staged
from tools.common.target_folder import Link, Target
from utils.data.sets.taskonomy_views import SPLITS_FILE, TASKS, VALID, Subset, buildings_of

COMPONENT = "taskonomy"
"""Folder between task and building in downloads made with Omnidata's tool."""

INPUTS = ("rgb", VALID)
"""Tasks that training always reads."""


@dataclass(frozen=True)
class Taskonomy:
    """What to prepare.

    Attributes:
        source: Folder of the download.
        split_csv: Official CSV with columns id, train, val, test of 0 and 1.
        tasks: Tasks to arrange; empty: all found.
        link: How files are linked or copied; those in archives are unpacked.
        skip_incomplete: Skip views without a file of every task instead of failing.
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
        UserError: Files are missing or invalid.
        OSError: A file cannot be written.
    """
    unknown = [f"'{task}'{did_you_mean(task, TASKS)}" for task in job.tasks if task not in TASKS]
    if unknown:
        raise UserError(f"--tasks: unknown {', '.join(unknown)}. Known: {', '.join(TASKS)}.")
    splits = _read_splits(job.split_csv)
    sources = find_sources(job.source)
    split_of = {name: split for split, names in splits.items() for name in names}
    found = {name: by_task for name, by_task in sources.items() if name in split_of}
    tasks = job.tasks or tuple(t for t in TASKS if any(t in by_task for by_task in found.values()))
    missing = _find_missing(found, sorted(split_of), tasks)
    if not found or not tasks or (missing and not job.skip_incomplete):
        raise UserError(
            f"{job.source}: {len(found)} of the {len(split_of)} buildings of {job.split_csv} "
            f"exist. Expected TASK/BUILDING/, BUILDING/TASK/ or BUILDING_TASK.tar.\n"
            f"{bullet_list(missing)}\nDownload the rest, limit --tasks to what you have, or skip "
            "incomplete views with --skip_incomplete."
        )
    buildings = [
        Building(name, split_of[name], {task: tuple(found[name].get(task, ())) for task in tasks})
        for name in sorted(found)
    ]
    work = _Arrange(target, job.link, job.skip_incomplete)
    tally = run_jobs(work, buildings, workers, "building")
    target.write_json(target.root / SPLITS_FILE, splits)
    return summary("taskonomy", tally, target.root) + _remarks(sources, found, tasks)


def find_sources(source: Path) -> dict[str, dict[str, list[Path]]]:
    """Find folders and archives by building and task.

    Recognized are the folders ``TASK/BUILDING``, ``TASK/taskonomy/BUILDING``, ``BUILDING/TASK``,
    ``BUILDING_TASK`` and ``BUILDING_TASK/TASK``, and the archives ``BUILDING_TASK.tar`` there or
    one folder down.

    Raises:
        UserError: ``source`` is not a folder.
    """
    if not source.is_dir():
        raise UserError(f"{source} is not a folder: --source is the folder of the download.")
    found: dict[str, dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
    for entry in sorted(source.iterdir()):
        for name, task, path in _scan_entry(entry):
            found[name][task].append(path)
    return {name: dict(by_task) for name, by_task in found.items()}


def _scan_entry(entry: Path) -> Iterator[tuple[str, TaskName, Path]]:
    """Building, task and path of all folders and archives in an entry of the download."""
    if entry.suffix == ".tar":
        yield from _parse_name(entry)
    if not entry.is_dir():
        return
    children = sorted(entry.iterdir())
    for child in children:
        if child.suffix == ".tar":
            yield from _parse_name(child)
    folders = [child for child in children if child.is_dir()]
    if entry.name in TASKS:
        for folder in folders:
            if folder.name == COMPONENT:
                yield from ((p.name, entry.name, p) for p in sorted(folder.iterdir()) if p.is_dir())
            else:
                yield folder.name, entry.name, folder
        return
    named = next(_parse_name(entry), None)
    if named is not None:
        name, task, _ = named
        yield name, task, entry / task if (entry / task).is_dir() else entry
        return
    yield from ((entry.name, folder.name, folder) for folder in folders if folder.name in TASKS)


def _parse_name(path: Path) -> Iterator[tuple[str, TaskName, Path]]:
    """Parse a path named ``BUILDING_TASK``, with or without ``.tar``."""
    stem = path.name.removesuffix(".tar")
    for task in TASKS:
        if stem.endswith(f"_{task}"):
            yield stem.removesuffix(f"_{task}"), task, path


def _read_splits(path: Path) -> dict[str, list[str]]:
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


def _find_missing(
    found: dict[str, dict[str, list[Path]]], wanted: Sequence[str], tasks: Sequence[str]
) -> list[str]:
    lines = []
    for name in wanted:
        missing_tasks = [task for task in tasks if task not in found.get(name, {})]
        if name not in found:
            lines.append(f"{name}: nothing")
        elif missing_tasks:
            lines.append(f"{name}: no {', no '.join(missing_tasks)}")
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


TaskName: TypeAlias = str
View: TypeAlias = str
"""``point_P_view_V``."""

Sources: TypeAlias = dict[View, Path | tuple[Path, tarfile.TarInfo]]
"""File of each view: on disk, or an archive and its member."""

_NAME = re.compile(r"(point_\d+_view_\d+)_domain_(\w+)\.png")


@dataclass(frozen=True)
class Building:
    """A building, its split, and the folders and archives of each task."""

    name: str
    split: str
    sources: Mapping[TaskName, tuple[Path, ...]]


@dataclass(frozen=True)
class _Arrange:
    """Arrange one building, after checking that its views have a file of every task."""

    target: Target
    link: Link
    skip_incomplete: bool

    def __call__(self, building: Building) -> Tally:
        """Write missing files.

        Raises:
            UserError: Incomplete views, or a bad archive.
        """
        files = {task: _find_views(task, paths) for task, paths in building.sources.items()}
        views: set[View] = set().union(*files.values())
        complete = views.intersection(*files.values())
        if views - complete and not self.skip_incomplete:
            raise UserError(_describe_missing(building, files, sorted(views - complete)))
        done = {
            view for view in complete if self.target.is_done(self._paths(building, view).values())
        }
        for task, by_view in files.items():
            todo = {v: by_view[v] for v in complete - done}
            self._write(building, task, todo)
        counts = {
            WRITTEN: len(complete - done),
            PRESENT: len(done),
            INCOMPLETE: len(views - complete),
        }
        return Counter({(building.split, what): n for what, n in counts.items() if n})

    def _paths(self, building: Building, view: View) -> dict[TaskName, Path]:
        folder = self.target.root
        return {
            task: folder / task / building.name / f"{view}_domain_{task}.png"
            for task in building.sources
        }

    def _write(self, building: Building, task: TaskName, todo: Sources) -> None:
        members: dict[Path, list[tuple[tarfile.TarInfo, Path]]] = {}
        for view, source_file in todo.items():
            path = self._paths(building, view)[task]
            if self.target.is_done([path]):
                continue
            if isinstance(source_file, Path):
                self.target.add_file(path, source_file, self.link)
            else:
                members.setdefault(source_file[0], []).append((source_file[1], path))
        for archive, wanted in members.items():
            self._unpack(archive, wanted)

    def _unpack(self, archive: Path, wanted: list[tuple[tarfile.TarInfo, Path]]) -> None:
        """Write members in the archive's order: one sequential read."""
        with _open_archive(archive) as tar:
            for member, path in sorted(wanted, key=lambda pair: pair[0].offset):
                with staged(self.target.root, path) as temp:
                    with temp.open("wb") as file, _stream(tar, member) as stream:
                        shutil.copyfileobj(stream, file)
                    if temp.stat().st_size != member.size:
                        raise UserError(
                            f"{archive}: {member.name} is truncated. Download it again."
                        )


def _find_views(task: TaskName, sources: tuple[Path, ...]) -> Sources:
    """File of every view of a task."""
    found: Sources = {}
    for source in sources:
        for view, source_file in (_in_folder if source.is_dir() else _in_archive)(
            task, source
        ).items():
            found.setdefault(view, source_file)  # the archive may also be unpacked
    return found


def _in_folder(task: TaskName, folder: Path) -> Sources:
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries]
    return {view: folder / name for name in names if (view := _view(task, name))}


def _in_archive(task: TaskName, archive: Path) -> Sources:
    """Members that are views, whatever their folder.

    Raises:
        UserError: Unreadable archive, or unsafe members.
    """
    found: Sources = {}
    with _open_archive(archive) as tar:
        for member in tar:
            parts = Path(member.name).parts
            if not (member.isreg() or member.isdir()) or ".." in parts or "/" in parts:
                raise UserError(
                    f"{archive}: unsafe member '{member.name}' (link, device or outside path). "
                    "Download the archive again from its official source."
                )
            view = _view(task, parts[-1]) if member.isreg() and parts else None
            if view in found:
                raise UserError(f"{archive}: {parts[-1]} is in it twice. Download it again.")
            if view:
                found[view] = archive, member
    return found


def _view(task: TaskName, name: str) -> View | None:
    match = _NAME.fullmatch(name)
    return match[1] if match and match[2] == task else None


def _stream(tar: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    stream = tar.extractfile(member)
    if stream is None:
        raise UserError(f"{member.name} of the archive is not a file.")
    return stream


@contextmanager
def _open_archive(archive: Path) -> Iterator[tarfile.TarFile]:
    """Open an archive; convert its errors to UserError."""
    try:
        with tarfile.open(archive) as tar:
            yield tar
    except (tarfile.TarError, EOFError, zlib.error) as err:
        raise UserError(
            f"{archive}: cannot be read as a tar archive ({err}). Download it again."
        ) from err


def _describe_missing(
    building: Building, files: Mapping[TaskName, Sources], views: list[View]
) -> str:
    missing_tasks = [task for task, by_view in files.items() if views[0] not in by_view]
    return (
        f"building {building.name}: {len(views)} views lack files, e.g. {views[0]} has no "
        f"{', no '.join(missing_tasks)}; --skip_incomplete skips such views"
    )
