"""The list of published pseudo labels follows the class folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools import pseudo_label_urls


def test_one_tar_per_class_kind_and_split(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in ("train/n01440764", "train/other", "val/rgb/n01443537"):
        (tmp_path / path).mkdir(parents=True)
    assert pseudo_label_urls.main([str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    base = "https://datasets.epfl.ch/vilab/imagenet_multitask"
    paths = [f"train/{k}_tar/n01440764.tar" for k in ("depth", "semseg")]
    paths += [f"val/{k}_tar/n01443537.tar" for k in ("depth", "semseg")]
    assert lines[::2] == [f"{base}/{path}" for path in paths]
    assert lines[1::2] == [f"  out={path}" for path in paths]
    assert pseudo_label_urls.main([str(tmp_path / "train")]) == 2
