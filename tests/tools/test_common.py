"""Shared code of the tools: worker pools, atomic files, target folders, exit codes."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from multimae.specs.errors import RunError, UserError
from tools.common.jobs import Tally, run_jobs, summary
from tools.common.staging import clean_staging, remove_staging, staged, staged_files, write_file
from tools.common.target_folder import Target
from tools.prepare.prepare_command import finish


def count_or_refuse(job: int) -> Tally:
    if job % 10 == 3:
        raise UserError(f"job {job} is bad")
    return Counter({("train", "written"): job})


def be_killed(job: int) -> Tally:
    if multiprocessing.parent_process() is not None:
        os._exit(9)
    return Counter()


@pytest.mark.parametrize("workers", [1, 2])
def test_all_problems_are_reported_after_all_other_work(workers: int) -> None:
    good = [1, 2, 4, 5]
    assert run_jobs(count_or_refuse, good, workers, "job") == {("train", "written"): 12}
    with pytest.raises(UserError, match="2 problems(.|\n)*job 3 is bad(.|\n)*job 13 is bad"):
        run_jobs(count_or_refuse, [*good, 3, 13], workers, "job")


def test_nothing_to_do() -> None:
    assert run_jobs(count_or_refuse, [], 8, "job") == {}


def test_a_killed_worker_ends_the_run() -> None:
    with pytest.raises(RunError, match="fewer --workers"):
        run_jobs(be_killed, list(range(4)), 2, "job")


def test_the_summary_is_in_the_order_of_the_splits() -> None:
    tally = Counter({("test", "written"): 1, ("train", "written"): 20, ("train", "there"): 3})
    assert summary("set", tally, "out") == "set: train 3 there, 20 written; test 1 written -> out"


def test_exit_codes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for error, code in (
        (UserError("bad file"), 2),
        (RunError("killed"), 1),
        (OSError(28, "No space left on device"), 1),
        (KeyboardInterrupt(), 130),
    ):

        def prepare(error: BaseException = error) -> str:
            raise error

        assert finish(Target(tmp_path), prepare) == code
        assert capsys.readouterr().err
    assert finish(Target(tmp_path), lambda: "done") == 0
    assert capsys.readouterr().out == "done\n"


def test_files_are_written_atomically(tmp_path: Path) -> None:
    path = tmp_path / "rgb/all/1.png"
    write_file(tmp_path, path, b"old")
    stamp = path.stat().st_mtime_ns
    time.sleep(0.01)
    with pytest.raises(RuntimeError), staged(tmp_path, path) as temp:
        temp.write_bytes(b"ha")
        raise RuntimeError
    assert path.read_bytes() == b"old" and path.stat().st_mtime_ns == stamp
    assert staged_files(tmp_path) == []
    (tmp_path / ".tmp/left").write_bytes(b"by a killed run")
    remove_staging(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["rgb"]


def test_foreign_temporary_folders_are_kept(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "only copy").write_bytes(b"1")
    for make in (lambda p: p.symlink_to(theirs), lambda p: shutil.copytree(theirs, p)):
        root = tmp_path / str(len(list(tmp_path.iterdir())))
        root.mkdir()
        make(root / ".tmp")
        remove_staging(root)
        with pytest.raises(UserError, match=".tmp"):
            write_file(root, root / "rgb/1.png", b"new")
        assert (root / ".tmp/only copy").read_bytes() == b"1"


def test_two_threads_may_claim_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listing = Path.iterdir

    def after_the_other(folder: Path) -> Iterator[Path]:
        monkeypatch.setattr(Path, "iterdir", listing)
        with staged(tmp_path, tmp_path / "theirs") as temp:
            temp.touch()
        return listing(folder)

    monkeypatch.setattr(Path, "iterdir", after_the_other)
    write_file(tmp_path, tmp_path / "ours", b"1")
    assert (tmp_path / "ours").exists() and (tmp_path / "theirs").exists()


def test_a_name_of_255_bytes_is_written(tmp_path: Path) -> None:
    write_file(tmp_path, tmp_path / "rgb" / ("n" * 255), b"1")
    assert (tmp_path / "rgb" / ("n" * 255)).read_bytes() == b"1"


def test_partial_files_are_removed_before_and_after_also_on_an_error(tmp_path: Path) -> None:
    def leave(name: str) -> None:
        with staged(tmp_path, tmp_path / name) as temp:
            temp.touch()
            temp.with_name("partial").touch()

    leave("a")
    with pytest.raises(SystemExit), clean_staging(tmp_path):
        assert staged_files(tmp_path) == []
        leave("b")
        raise SystemExit(143)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
