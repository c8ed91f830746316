"""The views of one Taskonomy building: from folders and archives into their places."""

from __future__ import annotations

import os
import re
import shutil
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeAlias

from tools.common.atomic_files import replacing
from tools.common.jobs import INCOMPLETE, PRESENT, WRITTEN, Tally
from tools.prepare.target_folder import Link, Target
from utils.logs.errors import UserError

TaskName: TypeAlias = str
View: TypeAlias = str
"""``point_P_view_V``."""

Places: TypeAlias = dict[View, Path | tuple[Path, tarfile.TarInfo]]
"""File of each view: on disk, or an archive and its member."""

_NAME = re.compile(r"(point_\d+_view_\d+)_domain_(\w+)\.png")


@dataclass(frozen=True)
class Building:
    """A building, its split, and the folders and archives of each task."""

    name: str
    split: str
    sources: Mapping[TaskName, tuple[Path, ...]]


@dataclass(frozen=True)
class Arrange:
    """Arranges one building, after checking that its views have a file of every task."""

    target: Target
    link: Link
    skip_incomplete: bool

    def __call__(self, building: Building) -> Tally:
        """Write what is missing.

        Raises:
            UserError: Incomplete views, or a bad archive.
        """
        places = {task: _places(task, paths) for task, paths in building.sources.items()}
        views: set[View] = set().union(*places.values())
        complete = views.intersection(*places.values())
        if views - complete and not self.skip_incomplete:
            raise UserError(_describe(building, places, sorted(views - complete)))
        done = {view for view in complete if self.target.has(self._paths(building, view).values())}
        for task, by_view in places.items():
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

    def _write(self, building: Building, task: TaskName, todo: Places) -> None:
        members: dict[Path, list[tuple[tarfile.TarInfo, Path]]] = {}
        for view, place in todo.items():
            path = self._paths(building, view)[task]
            if self.target.has([path]):
                continue
            if isinstance(place, Path):
                self.target.place(path, place, self.link)
            else:
                members.setdefault(place[0], []).append((place[1], path))
        for archive, wanted in members.items():
            self._unpack(archive, wanted)

    def _unpack(self, archive: Path, wanted: list[tuple[tarfile.TarInfo, Path]]) -> None:
        """Write members in the archive's order, so that it is read once from front to back."""
        with _open(archive) as tar:
            for member, path in sorted(wanted, key=lambda pair: pair[0].offset):
                with replacing(self.target.root, path) as temp:
                    with temp.open("wb") as file, _stream(tar, member) as stream:
                        shutil.copyfileobj(stream, file)
                    if temp.stat().st_size != member.size:
                        raise UserError(f"{archive}: {member.name} is cut off. Download it again.")


def _places(task: TaskName, sources: tuple[Path, ...]) -> Places:
    """File of every view of a task."""
    found: Places = {}
    for source in sources:
        for view, place in (_in_folder if source.is_dir() else _in_archive)(task, source).items():
            found.setdefault(view, place)  # the download and what was unpacked from it
    return found


def _in_folder(task: TaskName, folder: Path) -> Places:
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries]
    return {view: folder / name for name in names if (view := _view(task, name))}


def _in_archive(task: TaskName, archive: Path) -> Places:
    """Members that are views; their folders are not used.

    Raises:
        UserError: Unreadable, or members that no honest archive of images has.
    """
    found: Places = {}
    with _open(archive) as tar:
        for member in tar:
            parts = Path(member.name).parts
            if not (member.isreg() or member.isdir()) or ".." in parts or "/" in parts:
                raise UserError(
                    f"{archive}: refused, since '{member.name}' is a link, a device or outside "
                    "the archive's folder. Download it again from its official place."
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
        raise UserError(f"{member.name} of the archive is no file.")
    return stream


@contextmanager
def _open(archive: Path) -> Iterator[tarfile.TarFile]:
    """An archive, whose errors are the user's."""
    try:
        with tarfile.open(archive) as tar:
            yield tar
    except (tarfile.TarError, EOFError, zlib.error) as err:
        raise UserError(
            f"{archive}: cannot be read as a tar archive ({err}). Download it again."
        ) from err


def _describe(building: Building, places: Mapping[TaskName, Places], views: list[View]) -> str:
    lacking = [task for task, by_view in places.items() if views[0] not in by_view]
    return (
        f"building {building.name}: {len(views)} views lack files, {views[0]} for example has no "
        f"{', no '.join(lacking)}; --skip_incomplete leaves such views out"
    )
