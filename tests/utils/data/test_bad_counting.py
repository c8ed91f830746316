"""Skipped bad samples are reported and counted once, also after resuming; too many are an error."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from multimae.specs.errors import RunError, UserError
from run_pretraining_multimae import main as pretrain
from tests.support.image_folders import write_folder
from tests.support.scenes import tiny_run, write_scenes
from utils.config.parse import parse_config
from utils.config.pretrain_options import PretrainConfig
from utils.data.batches import BadSample, BadSamples
from utils.data.dataset import MultiModalDataset
from utils.tasks import loaders

REPO = Path(__file__).parents[3]


def bad_sample(i: int) -> BadSample:
    return BadSample(f"a/{i}", f"/data/rgb/a/{i}.jpg: is empty")


def test_each_bad_sample_is_reported_and_counted_once() -> None:
    lines: list[str] = []
    names: set[str] = set()
    met = BadSamples(3, lines.append, names)
    first, second = bad_sample(0), bad_sample(1)
    assert met.add([first, second, first]) == 2 and met.add([second]) == 0 and met.add([]) == 0
    assert [line.count("is empty") for line in lines] == [1, 1]
    assert "a/0" in lines[0] and first.problem in lines[0] and second.problem in lines[1]
    again = BadSamples(3, lines.append, names)
    assert again.count == 2 and again.add([first]) == 0
    assert again.add([bad_sample(2)]) == 1 and len(lines) == 3 and names == {"a/0", "a/1", "a/2"}


@pytest.mark.parametrize("limit", [0, 1, 4])
def test_too_many(limit: int) -> None:
    names: set[str] = set()
    met = BadSamples(limit, lambda line: None, names)
    for i in range(limit + 1):
        met.check()
        met.add([bad_sample(i)])
    with pytest.raises(RunError) as caught:
        met.check()
    message = str(caught.value)
    assert f"{limit + 1} training samples" in message and f"max_bad_samples {limit}" in message
    assert f"/data/rgb/a/{limit}.jpg" in message and "--max_bad_samples" in message
    with pytest.raises(RunError, match=f"{limit + 1} training samples"):
        BadSamples(limit, lambda line: None, names).check()


class TestResumed:
    """A resumed run knows the bad samples of its checkpoint."""

    def run(self, root: Path, *more: str) -> None:
        skip = ("--on_bad_sample", "skip", "--epochs", "3", "--save_ckpt_freq", "1")
        pretrain(tiny_run(root / "data", root / "out", *skip, *more))

    def spoil(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Two files are damaged between the check and training."""
        checked = loaders.check_samples

        def check(data: MultiModalDataset, *args: Any) -> list[BadSample]:
            found = checked(data, *args) if (root / "data/rgb/a/000.jpg").stat().st_size else []
            for name in ("a/000", "b/003"):
                (root / f"data/rgb/{name}.jpg").write_bytes(b"")
            return found

        monkeypatch.setattr(loaders, "check_samples", check)

    def state(self, path: Path) -> Any:
        return torch.load(path, weights_only=True)

    def test_resumed_run_does_not_count_twice(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        write_scenes(tmp_path / "data", 8)
        self.spoil(tmp_path, monkeypatch)
        self.run(tmp_path)
        assert capsys.readouterr().out.count("skipped bad sample") == 2
        folder = tmp_path / "out/checkpoints"
        assert self.state(folder / "checkpoint-1.pth")["left_out"] == ["a/000", "b/003"]
        (folder / "checkpoint-3.pth").unlink()
        (tmp_path / "data/rgb/a/002.jpg").write_bytes(b"")
        self.run(tmp_path)
        out = capsys.readouterr().out
        assert "resumed from" in out and out.count("skipped bad sample") == 1
        assert "bad sample 3, a/002" in out
        newest = self.state(folder / "checkpoint-3.pth")
        assert newest["left_out"] == ["a/000", "a/002", "b/003"]
        (folder / "checkpoint-3.pth").unlink()
        with pytest.raises(RunError, match="3 training samples.*max_bad_samples 2"):
            self.run(tmp_path, "--max_bad_samples", "2")
        assert not (folder / "checkpoint-3.pth").exists()

    def test_older_checkpoint_resumes(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        write_scenes(tmp_path / "data", 8)
        self.run(tmp_path)
        folder = tmp_path / "out/checkpoints"
        state = self.state(folder / "checkpoint-2.pth")
        del state["left_out"]
        shutil.rmtree(folder)
        folder.mkdir()
        torch.save(state, folder / "checkpoint-2.pth")
        self.run(tmp_path)
        assert "resumed from" in capsys.readouterr().out
        assert self.state(folder / "checkpoint-3.pth")["left_out"] == []


def test_the_flags() -> None:
    cfg = parse_config(PretrainConfig, ["--on_bad_sample", "skip", "--max_bad_samples", "0"])
    assert cfg.data.skips_bad and cfg.data.max_bad_samples == 0
    assert not parse_config(PretrainConfig, []).data.skips_bad
    for wrong in (["--max_bad_samples", "-1"], ["--on_bad_sample", "ignore"]):
        with pytest.raises(UserError, match=wrong[0]):
            parse_config(PretrainConfig, wrong)


SCRIPT = """
import sys
from pathlib import Path
from tests.support.image_folders import make_dataset, write_folder
from utils.data.dataset import build_loader
from utils.data.samplers import GlobalBatchSampler
from utils.distributed.script import run_script

def main():
    data = make_dataset(Path(sys.argv[1]))
    sampler = GlobalBatchSampler(len(data), 4, shuffle=False)
    for _ in build_loader(data, sampler, num_workers=2, pin_memory=False):
        pass

if __name__ == "__main__":
    run_script(main)
"""


def test_run_with_workers_exits_after_its_error(tmp_path: Path) -> None:
    """Workers ignore the signal that ends them; without care, Python would wait forever."""
    path = write_folder(tmp_path) / "rgb/bath/004.jpg"
    path.write_bytes(b"")
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    ended = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2 and str(path) in ended.stderr
    assert "Traceback" not in ended.stderr
