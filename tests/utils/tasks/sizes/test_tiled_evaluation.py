"""--eval_tiles and --eval_tta in the dense scripts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import run_finetuning_depth
import run_finetuning_semseg
import run_finetuning_taskonomy
from multimae.cli import main
from tests.support.image_folders import message_of, save
from tests.support.scenes import ON_CPU

SIZE = ("--model", "multivit_nano", "--input_size", "32", "--patch_size", "8")
HEAD = ("--decoder_dim", "64", "--decoder_depth", "1", "--decoder_preds_per_patch", "4")
SEMSEG = ("--num_classes", "4", "--in_domains", "rgb-depth", "--decoder_main_tasks", "rgb-depth")
QUICK = ("--num_workers", "0", "--device", "cpu", "--precision", "fp32")


def samples(root: Path, *sizes: tuple[int, int]) -> Path:
    """Images of different sizes with depth and labels."""
    for i, (h, w) in enumerate(sizes):
        rng = np.random.default_rng(i)
        depth = (1500 + 30 * np.arange(w) + rng.integers(0, 60, (h, 1))).astype(np.uint16)
        save(root / f"rgb/{i}.png", rng.integers(0, 256, (h, w, 3), dtype=np.uint8))
        save(root / f"depth/{i}.png", depth)
        save(root / f"semseg/{i}.png", (np.indices((h, w)).sum(0) // 9 % 4).astype(np.uint8))
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    samples(root / "train", *[(32, 32)] * 4)
    samples(root / "val", (40, 70), (90, 33), (20, 50))
    samples(root / "equal", (32, 32), (32, 32))
    return root


def arguments(root: Path, out: Path, *more: str) -> list[str]:
    return [
        *("--data_path", str(root / "train"), "--eval_data_path", str(root / "val")),
        *("--output_dir", str(out), *SIZE, *HEAD, "--batch_size", "4", "--epochs", "1"),
        *("--warmup_epochs", "0", "--num_workers", "0", *ON_CPU, "--num_pictures", "1", *more),
    ]


def write_views(root: Path, side: int) -> Path:
    """One view of each of three buildings."""
    for building in ("b0", "b1", "b2"):
        for task in ("rgb", "normal", "depth_zbuffer"):
            rng = np.random.default_rng(len(task))
            shape = (side, side) if task == "depth_zbuffer" else (side, side, 3)
            values = rng.integers(10, 250, shape)
            name = f"{task}/{building}/point_0_view_0_domain_{task}.png"
            save(root / name, values.astype(np.uint16 if len(shape) == 2 else np.uint8))
    return root


def scored(out: Path) -> dict[str, float]:
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return {k: v for k, v in lines[-1].items() if k.startswith("eval/")}


def test_segmentation_is_scored_as_predict_does(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run_finetuning_semseg.main(arguments(root, out, *SEMSEG))
    values = {}
    for name, more in {
        "plain": (), "tiles": ("--eval_tiles",), "tta": ("--eval_tta", "flip"),
        "both": ("--eval_tiles", "--eval_tta", "flip,0.75,1"),
    }.items():  # fmt: skip
        run_finetuning_semseg.main(arguments(root, out, *SEMSEG, "--eval", *more))
        values[name] = scored(out)
    assert len({tuple(v.values()) for v in values.values()}) == 4
    predicted = {
        "tiles": ("--tile",), "tta": ("--tta", "flip"), "both": ("--tile", "--tta", "flip,0.75,1"),
    }  # fmt: skip
    for name, more in predicted.items():
        assert main(
            ["predict", str(out / "model.safetensors"), str(root / "val"), "--out",
             str(tmp_path / name), "--truth", str(root / "val"), "--batch_size", "4", *QUICK, *more]
        ) == 0  # fmt: skip
        metrics = json.loads((tmp_path / name / "metrics.json").read_text())
        for metric, value in metrics.items():
            assert values[name][f"eval/{metric}"] == pytest.approx(value, rel=1e-5), (name, metric)


def test_one_tile_is_scored_as_without_tiles(root: Path, tmp_path: Path) -> None:
    values = []
    for name, more in (("a", ()), ("b", ("--eval_tiles",))):
        more = (*SEMSEG, "--eval_data_path", str(root / "equal"), *more)
        run_finetuning_semseg.main(arguments(root, tmp_path / name, *more))
        values.append(scored(tmp_path / name))
    assert values[0] == pytest.approx(values[1], rel=1e-6)


def test_depth_by_tiles(root: Path, tmp_path: Path) -> None:
    more = ("--in_domains", "rgb", "--output_adapter", "dpt")
    out = tmp_path / "run"
    run_finetuning_depth.main(arguments(root, out, *more, "--eval_tiles"))
    assert main(
        ["predict", str(out / "model.safetensors"), str(root / "val"), "--inputs", "rgb", "--tile",
         "--out", str(tmp_path / "p"), "--truth", str(root / "val"), "--batch_size", "4", *QUICK]
    ) == 0  # fmt: skip
    metrics = json.loads((tmp_path / "p/metrics.json").read_text())
    assert scored(out) == pytest.approx({f"eval/{k}": v for k, v in metrics.items()}, rel=1e-4)


def test_taskonomy_by_tiles(tmp_path: Path) -> None:
    """Views of 32 x 32 are one tile; larger ones are scored at once, over borders of tiles."""
    for name, side in (("equal", 32), ("large", 48)):
        root = write_views(tmp_path / name, side)
        values = []
        for options in ((), ("--eval_tiles",), ("--eval_tta", "flip")):
            out = tmp_path / f"{name}{len(values)}"
            roots = ("--data_path", str(root), "--eval_data_path", str(root))
            args = arguments(
                root, out, *roots, "--out_domains", "normal", "--batch_size", "1", *options
            )
            run_finetuning_taskonomy.main(args)
            values.append(scored(out)["eval/l1"])
        assert len(set(values[1:])) == 2
        if side == 32:
            assert values[1] == pytest.approx(values[0], rel=1e-6)


def test_options_are_checked(root: Path, tmp_path: Path) -> None:
    more = ("--eval_tta", "flop", "--eval_overlap", "0.95")
    text = message_of(lambda: run_finetuning_semseg.main(arguments(root, tmp_path, *SEMSEG, *more)))
    assert "flop" in text and "eval_overlap" in text
