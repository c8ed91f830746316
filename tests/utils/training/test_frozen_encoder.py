"""Frozen encoders, low-rank adapters and early stopping."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import run_finetuning_semseg
import run_pretraining_multimae
from multimae import MultiMAE
from multimae.weights.files import read_checkpoint
from tests.support.image_folders import message_of
from tests.support.scenes import tiny_run, write_scenes
from tests.utils.tasks.test_finetuning_semseg import arguments, rows
from utils.config.parse import ConfigError, parse_config
from utils.config.semseg_options import SemsegConfig
from utils.distributed.world import World
from utils.tasks.segmentation import SegmentationFinetuning, SegmentationTask
from utils.training.lora import adapter_state
from utils.training.state import Goal

QKV = "encoder.0.attn.qkv.weight"
HEAD = "output_adapters.semseg.final_layer.weight"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes, and pre-trained weights of them."""
    root = tmp_path_factory.mktemp("scenes")
    write_scenes(root / "train", 8)
    write_scenes(root / "val", 4, first_seed=100)
    run_pretraining_multimae.main(tiny_run(root / "train", root / "pre", "--epochs", "1"))
    return root


def options(root: Path, out: Path | str, *more: str) -> list[str]:
    weights = str(root / "pre/model.safetensors")
    return arguments(root, out, "--finetune", weights, *more)


def task_of(root: Path, *more: str) -> SegmentationTask:
    cfg = parse_config(SemsegConfig, options(root, "", *more))
    job = SegmentationFinetuning(cfg, World(0, 1, torch.device("cpu")))
    task = job.build_task()
    task.freeze(cfg.optim)
    assert job.start is not None
    job.start.load(task.model, heads=False)
    return task


def test_a_frozen_encoder_has_no_gradient_and_no_dropout(root: Path) -> None:
    task = task_of(root, "--freeze_encoder", "--drop_path_encoder", "0.9")
    trained = {n for n, p in task.model.named_parameters() if p.requires_grad}
    assert trained and all(n.startswith("output_adapters.") for n in trained)
    task.train()
    assert not task.model.encoder.training and task.model.output_adapters.training
    x = {"rgb": torch.randn(2, 3, 32, 32)}
    tokens = task.model.encode_tokens(task.model.embed(x)[0])
    assert not tokens.requires_grad
    torch.testing.assert_close(tokens, task.model.encode_tokens(task.model.embed(x)[0]))
    task.eval()
    assert not task.model.output_adapters.training


def test_adapters_are_merged_in_state_dicts(root: Path) -> None:
    task = task_of(root, "--lora_rank", "2")
    model, width, layers = task.model, 64, 2
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    low_rank = sum(p.numel() for n, p in trained.items() if "lora_" in n)
    per_block = 2 * (4 * width + 2 * width + 5 * width + 5 * width)  # qkv, proj, fc1, fc2
    assert low_rank == layers * per_block
    assert all("lora_" in n or n.startswith("output_adapters.") for n in trained)
    before = model.state_dict()
    with torch.no_grad():
        for name, parameter in trained.items():
            if "lora_B" in name:
                parameter.normal_()
    merged = model.state_dict()
    assert merged.keys() == before.keys() and not any("lora" in key for key in merged)
    assert not torch.allclose(merged[QKV], before[QKV])
    model.eval()
    x = {"rgb": torch.randn(2, 3, 32, 32)}
    plain = task_of(root).model.eval()
    plain.load_state_dict(merged)
    expected = model(x, return_all_layers=task._all_layers)["semseg"]
    found = plain(x, return_all_layers=task._all_layers)["semseg"]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    model.load_state_dict(merged)  # as the best checkpoint is loaded for a test
    again = model(x, return_all_layers=task._all_layers)["semseg"]
    torch.testing.assert_close(again, expected, rtol=1e-4, atol=1e-5)


def test_a_run_with_adapters_resumes_exactly_and_is_evaluated(root: Path, tmp_path: Path) -> None:
    lora = ("--lora_rank", "2", "--save_ckpt_freq", "1", "--test_data_path", str(root / "val"))
    run_finetuning_semseg.main(options(root, tmp_path / "a", *lora))
    run_finetuning_semseg.main(options(root, tmp_path / "b", *lora, "--max_steps", "3"))
    run_finetuning_semseg.main(options(root, tmp_path / "b", *lora))
    name = "checkpoints/checkpoint-2.pth"
    a, b = (read_checkpoint(tmp_path / run / name) for run in ("a", "b"))
    assert torch.equal(a["model"][QKV], b["model"][QKV])
    low = "lora.encoder.0.attn.qkv.lora_B.default.weight"
    assert a["task"][low].abs().max() > 0
    assert all(torch.equal(v, b["task"][k]) for k, v in a["task"].items())
    start = MultiMAE.from_pretrained(root / "pre/model.safetensors").state_dict()
    final = MultiMAE.from_pretrained(tmp_path / "a/model.safetensors").state_dict()
    base = "lora.encoder.0.attn.qkv.base_layer.weight"
    assert torch.equal(a["task"][base], start[QKV])
    high = low.replace("lora_B", "lora_A")
    torch.testing.assert_close(final[QKV], start[QKV] + a["task"][low] @ a["task"][high])
    assert "lora" not in " ".join(final)
    best = max(row["eval/mean_iou"] for row in rows(tmp_path / "a", "eval") if "epoch" in row
               and "eval/mean_iou" in row)  # fmt: skip
    assert rows(tmp_path / "a", "eval")[-1]["test/mean_iou"] == best
    run_finetuning_semseg.main(options(root, tmp_path / "a", *lora, "--eval"))
    assert rows(tmp_path / "a", "eval")[-1]["eval/mean_iou"] == best


def test_options_that_leave_the_encoder_untrained_need_its_weights(root: Path) -> None:
    for flags in (["--lora_rank", "2"], ["--freeze_encoder"]):
        with pytest.raises(ConfigError, match="finetune"):
            parse_config(SemsegConfig, arguments(root, "", *flags))
    with pytest.raises(ConfigError, match="model_ema"):
        parse_config(SemsegConfig, options(root, "", "--lora_rank", "2", "--model_ema"))
    rgb_only = root / "rgb_only"
    run_finetuning_semseg.main(options(root, rgb_only, "--epochs", "1"))
    weights = str(rgb_only / "model.safetensors")
    inputs = ("--in_domains", "rgb-depth", "--decoder_main_tasks", "rgb-depth")
    message = message_of(
        run_finetuning_semseg.main,
        arguments(root, "", "--finetune", weights, *inputs, "--freeze_encoder"),
    )
    assert "input_adapters.depth" in message and "freeze_encoder" in message


def test_early_stopping(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # At a learning rate of 0 only the first evaluation is better than those before it.
    still = ("--lr", "1e-30", "--epochs", "9", "--early_stop_patience", "2")
    run_finetuning_semseg.main(options(root, tmp_path / "a", *still))
    assert "early stop after epoch 3" in capsys.readouterr().out
    assert len(rows(tmp_path / "a", "eval")) == 3
    saved = read_checkpoint(tmp_path / "a/checkpoints/checkpoint-3.pth")
    assert saved["stale"] == 2 and saved["epoch"] == 3
    run_finetuning_semseg.main(options(root, tmp_path / "a", *still))
    assert len(rows(tmp_path / "a", "eval")) == 3
    # Interrupted after one evaluation without improvement, it stops at the same epoch.
    partial = (*still, "--save_ckpt_steps", "1")
    run_finetuning_semseg.main(options(root, tmp_path / "b", *partial))
    for path in (tmp_path / "b/checkpoints").glob("checkpoint-3.pth*"):
        path.unlink()
    for path in (tmp_path / "b/checkpoints").glob("checkpoint-step6.pth*"):
        path.unlink()
    run_finetuning_semseg.main(options(root, tmp_path / "b", *partial))
    assert "after epoch 2, step 5" in capsys.readouterr().out
    assert read_checkpoint(tmp_path / "b/checkpoints/checkpoint-3.pth")["stale"] == 2
    with pytest.raises(ConfigError, match="early_stop_patience"):
        parse_config(SemsegConfig, options(root, "", "--early_stop_patience", "2",
                                           "--eval_data_path", ""))  # fmt: skip


def test_only_evaluations_of_the_goal_count() -> None:
    from utils.training.state import TrainState

    state = TrainState.__new__(TrainState)
    state.best, state.stale, goal = 1.0, 0, Goal("eval/mean_iou")
    for values in ({}, {"eval/mean_iou": float("nan")}, {"eval/mean_iou": 1.0}):
        state.improve(goal, values)
    assert state.stale == 2
    assert state.improve(goal, {"eval/mean_iou": 2.0}) and state.stale == 0
    assert adapter_state(torch.nn.Linear(2, 2)) == {}
