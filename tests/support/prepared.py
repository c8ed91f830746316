"""Helpers for tests of the preparation commands."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from utils.config.depth_options import DepthConfig
from utils.config.parse import parse_config
from utils.config.semseg_options import SemsegConfig
from utils.data.dataset import MultiModalDataset
from utils.data.samplers import SampleKey
from utils.distributed.world import World
from utils.tasks.depth_estimation import DepthFinetuning
from utils.tasks.segmentation import SegmentationFinetuning

REPO = Path(__file__).parents[2]
WORLD = World(0, 1, torch.device("cpu"))


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def files_of(root: Path) -> list[str]:
    return sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file())


def digests(root: Path) -> dict[str, str]:
    return {name: hashlib.sha256((root / name).read_bytes()).hexdigest() for name in files_of(root)}


def stamps(root: Path, suffixes: tuple[str, ...] = (".png", ".jpg")) -> dict[str, int]:
    return {
        name: (root / name).stat().st_mtime_ns for name in files_of(root) if name.endswith(suffixes)
    }


def refusal(
    tool: ModuleType, arguments: list[str], capsys: pytest.CaptureFixture[str], lines: int = 30
) -> str:
    """The error of a command that must fail with exit code 2 and one screen."""
    capsys.readouterr()
    assert tool.main(arguments) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("error: ") and "Traceback" not in shown.err and not shown.out
    assert shown.err.count("\n") <= lines
    return shown.err


def train_set(config: str, root: Path, split: str = "train") -> MultiModalDataset:
    """The training set that a published configuration reads, at 64 pixels."""
    arguments = [
        *("--config", str(REPO / "cfgs/finetune" / config), "--data_path", str(root / split)),
        *("--eval_data_path", str(root / split), "--input_size", "64", "--finetune", ""),
    ]
    if config.startswith("depth"):
        return DepthFinetuning(parse_config(DepthConfig, arguments), WORLD).train_set()
    return SegmentationFinetuning(parse_config(SemsegConfig, arguments), WORLD).train_set()


def read_all(dataset: MultiModalDataset) -> None:
    assert len(dataset)
    for index in range(len(dataset)):
        assert dataset.check(index).problems == []
        assert dataset[SampleKey(0, index)].images
