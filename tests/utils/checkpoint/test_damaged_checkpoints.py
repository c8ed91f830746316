"""A damaged checkpoint is detected, and the previous one is loaded."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from multimae.specs.errors import UserError
from run_pretraining_multimae import main
from tests.support.scenes import tiny_run, write_scenes
from tools.torture.fingerprint import fingerprint
from utils.checkpoint.find import latest_checkpoint

PLACES = 64


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("train"), 4)


@pytest.fixture(scope="module")
def finished(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with two checkpoints."""
    folder = tmp_path_factory.mktemp("run")
    main(tiny_run(scenes, folder, "--save_ckpt_freq", "1"))
    return folder


def falls_back(folder: Path) -> bool:
    said: list[str] = []
    taken = latest_checkpoint(folder, said.append)
    newest, older = (folder / f"checkpoints/checkpoint-{n}.pth" for n in (2, 1))
    return taken == older and len(said) == 1 and str(newest) in said[0] and "damaged" in said[0]


@pytest.mark.parametrize("kind", ["truncated", "bit flipped"])
def test_64_damages_of_the_newest_checkpoint(finished: Path, tmp_path: Path, kind: str) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    newest = run / "checkpoints/checkpoint-2.pth"
    whole = newest.read_bytes()
    assert latest_checkpoint(run) == newest
    rng = random.Random(kind)
    step = len(whole) // PLACES
    places = [0, len(whole) - 1, *(i * step + rng.randrange(step) for i in range(1, PLACES - 1))]
    fell_back = []
    for place in places:
        damaged = bytearray(whole[:place] if kind == "truncated" else whole)
        if kind == "bit flipped":
            damaged[place] ^= 1 << rng.randrange(8)
        newest.write_bytes(damaged)
        fell_back.append(falls_back(run))
    assert fell_back.count(True) == PLACES
    newest.write_bytes(whole)
    assert latest_checkpoint(run) == newest


def test_run_resumes_from_the_previous_checkpoint_with_a_warning(
    scenes: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    newest = run / "checkpoints/checkpoint-2.pth"
    newest.write_bytes(newest.read_bytes()[:-1])
    main(tiny_run(scenes, run, "--save_ckpt_freq", "1"))
    said = capsys.readouterr().out
    assert f"{newest} is damaged (its checksum differs): falling back" in said
    assert f"resumed from {run / 'checkpoints/checkpoint-1.pth'} after epoch 1" in said
    assert {**fingerprint(run), "samples": ""} == {**fingerprint(finished), "samples": ""}


@pytest.mark.parametrize("record", [None, b"", b"{", b'[{"file": 3}]'])
def test_without_records_files_are_tried(
    finished: Path, tmp_path: Path, record: bytes | None
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    for path in (run / "checkpoints").glob("*.json"):
        path.unlink()
        if record is not None:
            path.write_bytes(record)
    newest = run / "checkpoints/checkpoint-2.pth"
    assert latest_checkpoint(run) == newest
    newest.write_bytes(newest.read_bytes()[:-100])
    assert latest_checkpoint(run) == run / "checkpoints/checkpoint-1.pth"


def test_no_valid_checkpoint_is_an_error(scenes: Path, finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    for path in (run / "checkpoints").glob("*.pth"):
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="no checkpoint in "):
        main(tiny_run(scenes, run))


def test_explicit_damaged_checkpoint_is_an_error(
    scenes: Path, finished: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    newest = run / "checkpoints/checkpoint-2.pth"
    damaged = bytearray(newest.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    newest.write_bytes(damaged)
    with pytest.raises(UserError, match="is damaged"):
        main(tiny_run(scenes, tmp_path / "other", "--resume", str(newest)))
