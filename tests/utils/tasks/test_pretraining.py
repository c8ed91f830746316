"""Pre-training runs: logs, pictures, checkpoints, resuming, several processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from multimae.specs.commands import exit_on_user_error
from multimae.specs.modalities import Modality
from run_pretraining_multimae import main
from tests.support.image_folders import message_of
from tests.support.processes import run_on_two_processes
from tests.support.scenes import tiny_run, write_scenes
from utils.config.parse import parse_config
from utils.config.pretrain_options import PretrainConfig
from utils.tasks.pretraining import Targets, build_eval_set, run_modalities
from utils.tasks.reconstruction import drawn_truth

REPO = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("train"), 12)


@pytest.fixture(scope="module")
def unseen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("val"), 6, first_seed=1000)


def rows(output_dir: Path, kind: str = "train") -> list[dict[str, Any]]:
    lines = (output_dir / "log.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["kind"] == kind]


def weights(output_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(output_dir / "model.safetensors")


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [k for k in a if not torch.equal(a[k], b[k])] == []


def test_run_learns_and_writes_documented_outputs(scenes: Path, tmp_path: Path) -> None:
    more = ("--epochs", "100", "--eval_data_path", str(scenes), "--eval_freq", "50")
    more = (*more, "--batch_size", "12", "--blr", "0.1", "--loss_on_unmasked")
    more = (*more, "--num_encoded_tokens", "24", "--hflip", "0", "--crop_scale", "1", "1")
    more = (*more, "--num_pictures", "3", "--save_ckpt_freq", "50", "--log_every", "2")
    main(tiny_run(scenes, tmp_path, *more))
    train = rows(tmp_path)
    assert [row["step"] for row in train] == list(range(2, 101, 2))
    losses = [f"loss/{name}" for name in ("rgb", "depth", "semseg", "norm_rgb")]
    assert {*losses, "loss", "lr", "grad_norm", "images_per_s", "data_wait"} <= train[0].keys()
    assert train[0]["loss"] == pytest.approx(sum(train[0][k] for k in losses), rel=1e-5)
    first, last = rows(tmp_path, "eval")
    assert (first["step"], last["step"], last["epoch"]) == (50, 100, 100.0)
    assert last["gain/depth"] > 0.4
    for name in ("rgb", "depth", "semseg", "norm_rgb"):
        assert last[f"eval/{name}"] < last[f"trivial/{name}"], name
        gain = 1 - last[f"eval/{name}"] / last[f"trivial/{name}"]
        assert last[f"gain/{name}"] == pytest.approx(gain)
    checkpoints = sorted(p.name for p in (tmp_path / "checkpoints").glob("*.pth"))
    assert checkpoints == ["checkpoint-100.pth", "checkpoint-50.pth", "checkpoint-best.pth"]
    best = torch.load(tmp_path / "checkpoints/checkpoint-best.pth", weights_only=True)
    gains = [sum(v for k, v in row.items() if k.startswith("gain/")) / 4 for row in (first, last)]
    assert [row["gain"] for row in (first, last)] == pytest.approx(gains)
    assert (best["best"], best["step"]) == max((r["gain"], r["step"]) for r in (first, last))
    saved = torch.load(tmp_path / "checkpoints/checkpoint-100.pth", weights_only=True)
    assert (saved["epoch"], saved["step"]) == (100, 100)
    assert_same(saved["model"], weights(tmp_path))
    with Image.open(tmp_path / "pictures/reconstructions-000100.png") as picture:
        assert min(picture.size) > 200 and len(picture.convert("RGB").getcolors(2**20) or []) > 100
    # The resolved configuration restarts the same run, which is finished.
    main(["--config", str(tmp_path / "config.yaml")])
    assert len(rows(tmp_path)) == 50


@pytest.mark.parametrize("stop", [6, 7])
def test_a_stopped_run_continues_bit_for_bit(scenes: Path, tmp_path: Path, stop: int) -> None:
    """Stopped after an epoch (6 = 2 x 3 steps) or in the middle of one (7)."""
    options = ("--epochs", "4", "--task_balancer", "uncertainty", "--drop_path", "0.2")
    main(tiny_run(scenes, tmp_path / "whole", *options))
    main(tiny_run(scenes, tmp_path / "parts", *options, "--max_steps", str(stop)))
    main(tiny_run(scenes, tmp_path / "parts", *options))
    whole, parts = rows(tmp_path / "whole"), rows(tmp_path / "parts")
    assert [r["step"] for r in parts] == list(range(1, 13))
    assert [r["loss"] for r in parts] == [r["loss"] for r in whole]
    assert_same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    states = [
        torch.load(tmp_path / run / "checkpoints/checkpoint-4.pth", weights_only=True)
        for run in ("whole", "parts")
    ]
    assert_same(states[0]["task"], states[1]["task"])
    assert states[0]["task"]["balancer.log_vars"].abs().max() > 0


def test_accumulation_equals_the_larger_batch(scenes: Path, tmp_path: Path) -> None:
    main(tiny_run(scenes, tmp_path / "a"))
    main(tiny_run(scenes, tmp_path / "b", "--batch_size", "2", "--update_freq", "2"))
    for a, b in zip(rows(tmp_path / "a"), rows(tmp_path / "b"), strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-5)
        assert b["lr"] == a["lr"]


def test_results_do_not_depend_on_workers(scenes: Path, tmp_path: Path) -> None:
    main(tiny_run(scenes, tmp_path / "a"))
    main(tiny_run(scenes, tmp_path / "b", "--num_workers", "2"))
    assert_same(weights(tmp_path / "a"), weights(tmp_path / "b"))


def test_two_processes_match_one(scenes: Path, unseen: Path, tmp_path: Path) -> None:
    """torchrun with two ranks on the CPU: the same first 20 losses and the same evaluation."""
    more = ("--epochs", "7", "--max_steps", "20", "--eval_data_path", str(unseen))
    more = (*more, "--blr", "0.01", "--num_threads", "1", "--model", "pretrain_multimae_tiny")
    main(tiny_run(scenes, tmp_path / "one", *more))
    arguments = tiny_run(scenes, tmp_path / "two", *more, "--batch_size", "2")
    run_on_two_processes("run_pretraining_multimae.py", *arguments)
    one, two = rows(tmp_path / "one"), rows(tmp_path / "two")
    assert len(one) == len(two) == 20
    for a, b in zip(one, two, strict=True):
        for key in ("loss", "loss/rgb", "loss/depth", "loss/semseg", "loss/norm_rgb"):
            assert b[key] == pytest.approx(a[key], rel=1e-5), (a["step"], key)
    # All six validation images once, none twice.
    scored = zip(rows(tmp_path / "one", "eval"), rows(tmp_path / "two", "eval"), strict=True)
    for a, b in scored:
        assert b["eval/depth"] == pytest.approx(a["eval/depth"], rel=1e-4)
        assert b["trivial/depth"] == pytest.approx(a["trivial/depth"], rel=1e-6)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_follows_float32(scenes: Path, tmp_path: Path, precision: str) -> None:
    main(tiny_run(scenes, tmp_path / "fp32", "--precision", "fp32"))
    arguments = tiny_run(scenes, tmp_path / precision, "--precision", precision)
    main([*arguments, "--fp32_output_adapters", "semseg"])
    for a, b in zip(rows(tmp_path / "fp32"), rows(tmp_path / precision), strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=0.03)


def test_clipping_and_skipping(scenes: Path, tmp_path: Path) -> None:
    main(tiny_run(scenes, tmp_path / "skip", "--skip_grad", "1e-6", "--epochs", "1"))
    state = torch.load(tmp_path / "skip/checkpoints/checkpoint-1.pth", weights_only=True)
    assert state["optimizer"]["state"] == {}  # no step was taken
    main(tiny_run(scenes, tmp_path / "free", "--opt", "sgd", "--epochs", "1"))
    main(tiny_run(scenes, tmp_path / "clip", "--opt", "sgd", "--epochs", "1", "--clip_grad", "0.1"))
    assert rows(tmp_path / "free")[0]["grad_norm"] == rows(tmp_path / "clip")[0]["grad_norm"]
    assert rows(tmp_path / "free")[1]["loss"] != rows(tmp_path / "clip")[1]["loss"]


def test_nonfinite_loss_ends_the_run(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = tiny_run(scenes, tmp_path, "--opt", "sgd", "--blr", "1e30", "--epochs", "4")
    with pytest.raises(SystemExit) as exit_info, exit_on_user_error():
        main(arguments)
    assert exit_info.value.code == 1
    message = capsys.readouterr().err
    assert "error: the loss is not finite at step 2: loss, loss/rgb" in message
    assert "Traceback" not in message
    assert not (tmp_path / "checkpoints").exists()


def test_a_new_modality_by_yaml_alone(scenes: Path, unseen: Path, tmp_path: Path) -> None:
    config = REPO / "cfgs/pretrain/rooms/normals.yaml"
    more = ("--epochs", "30", "--eval_data_path", str(unseen), "--batch_size", "4")
    more = (*more, "--max_steps", "90", "--warmup_steps", "-1", "--eval_freq", "30")
    arguments = tiny_run(scenes, tmp_path, *more)
    del arguments[4:6]  # its own modalities section
    text = config.read_text().replace("num_classes: 41", "num_classes: 5")
    (tmp_path / "normals.yaml").write_text(text)
    main(["--config", str(tmp_path / "normals.yaml"), *arguments, "--precision", "fp32"])
    train = [row["loss/normals"] for row in rows(tmp_path)]
    assert sum(train[-9:]) < 0.6 * sum(train[:9])
    assert {"eval/normals", "trivial/normals"} <= rows(tmp_path, "eval")[-1].keys()
    assert "input_adapters.normals.proj.weight" in weights(tmp_path)


def test_a_limited_evaluation_is_spread_over_the_set(unseen: Path) -> None:
    def names(*more: str) -> list[str]:
        cfg = parse_config(PretrainConfig, tiny_run(unseen, "", *more))
        evaluated = build_eval_set(cfg, str(unseen), run_modalities(cfg)[0])
        return [evaluated.name(i) for i in range(len(evaluated))]

    assert len(names()) == 6
    assert names("--max_val_images", "3") == names()[::2]
    assert names("--max_val_images", "100") == names()


def test_tensorboard(scenes: Path, unseen: Path, tmp_path: Path) -> None:
    more = ("--log_tensorboard", "--eval_data_path", str(unseen), "--epochs", "1")
    main(tiny_run(scenes, tmp_path, *more))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert "train/loss/depth" in events.Tags()["scalars"]
    assert events.Tags()["images"] == ["reconstructions"]


def test_probes_do_not_change_training(scenes: Path, unseen: Path, tmp_path: Path) -> None:
    more = ("--eval_data_path", str(unseen), "--epochs", "3", "--hflip", "0.5")
    probe = ("--probe_freq", "2", "--probe_data_path", str(unseen))
    main(tiny_run(scenes, tmp_path / "off", *more))
    main(tiny_run(scenes, tmp_path / "on", *more, *probe))
    assert_same(weights(tmp_path / "off"), weights(tmp_path / "on"))
    plain, probed = rows(tmp_path / "off", "eval"), rows(tmp_path / "on", "eval")
    assert not any("eval/knn" in row for row in plain)
    found = [row for row in probed if "eval/rankme" in row]
    assert [row["step"] for row in found] == [6, 9]  # epoch 2 of 3 steps, and the last
    for row in found:
        assert 1 <= row["eval/rankme"] <= 6
        assert row["eval/knn"] == pytest.approx(100 * round(row["eval/knn"] * 0.06) / 6)


def test_probes_run_between_evaluations(scenes: Path, unseen: Path, tmp_path: Path) -> None:
    more = ("--eval_data_path", str(unseen), "--epochs", "5", "--eval_freq", "3")
    main(tiny_run(scenes, tmp_path, *more, "--probe_freq", "2", "--num_pictures", "0"))
    found = rows(tmp_path, "eval")
    assert [row["step"] // 3 for row in found if "eval/rankme" in row] == [2, 4, 5]
    assert [row["step"] // 3 for row in found if "gain" in row] == [3, 5]


def test_probe_needs_something_to_probe(scenes: Path, tmp_path: Path) -> None:
    arguments = tiny_run(scenes, tmp_path, "--probe_freq", "1")
    assert "probe_data_path" in message_of(main, arguments)


def test_pictures_show_where_there_is_no_value() -> None:
    height = Modality("height", num_channels=1, no_data=0, interpolation="nearest", plot="scalar")
    photo = Modality("photo", no_data=0, interpolation="nearest")
    extra = Modality("norm_photo", norm_pix=True, source="photo")
    valid = torch.tensor([[[[True, False]]]])
    x = {"height": torch.zeros(1, 1, 1, 2), "photo": torch.zeros(1, 3, 1, 2)}
    targets = Targets(x, {"height": valid, "photo": valid})
    truth = drawn_truth(targets, [height, photo])
    assert truth["height"].isnan().tolist() == (~valid).tolist()
    assert truth["photo"].isnan()[..., 1].all() and not x["photo"].isnan().any()
    # A patch with NaN would have no mean.
    assert not drawn_truth(targets, [height, photo, extra])["photo"].isnan().any()
