"""Fine-tuning of a published MAE checkpoint with its recipe."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

import run_finetuning_cls
from tests.support.image_folders import message_of
from tests.support.scenes import ON_CPU, write_scenes
from tests.support.states import random_timm

REPO = Path(__file__).parents[3]
CONFIG = REPO / "cfgs/finetune/cls/ft_in1k_100e_mae-b.yaml"


def mae_checkpoint(path: Path) -> dict[str, Tensor]:
    """Write random ViT-B weights in MAE's layout, with final norm and decoder."""
    state = dict(random_timm("vit_base_patch16_224").state_dict())
    state |= {f"norm.{kind}": torch.ones(768) for kind in ("weight", "bias")}
    state |= {"mask_token": torch.ones(1, 1, 512), "decoder_pos_embed": torch.ones(1, 197, 512)}
    shapes: dict[str, tuple[int, ...]] = {"decoder_embed": (512, 768), "decoder_pred": (768, 512)}
    for block in range(8):
        shapes |= {
            f"decoder_blocks.{block}.{layer}": shape
            for layer, shape in {
                "norm1": (512,), "attn.qkv": (1536, 512), "attn.proj": (512, 512),
                "norm2": (512,), "mlp.fc1": (2048, 512), "mlp.fc2": (512, 2048),
            }.items()
        }  # fmt: skip
    for layer, shape in {**shapes, "decoder_norm": (512,)}.items():
        state[f"{layer}.weight"] = torch.zeros(1).expand(shape)
        state[f"{layer}.bias"] = torch.zeros(shape[0])
    torch.save({"model": state}, path)
    return state


def arguments(tmp_path: Path, weights: Path) -> list[str]:
    return [
        *("--config", str(CONFIG), "--finetune", str(weights), "--nb_classes", "2"),
        *("--data_path", str(tmp_path / "train/rgb"), "--eval_data_path", "none"),
        *("--output_dir", str(tmp_path / "out"), "--batch_size", "2", "--max_steps", "1"),
        *("--num_workers", "0", *ON_CPU, "--no_save_ckpt"),
        *("--log_every", "1"),
    ]


def test_mae_is_fine_tuned_by_its_recipe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_scenes(tmp_path / "train", 4)
    state = mae_checkpoint(tmp_path / "mae.pth")
    run_finetuning_cls.main(arguments(tmp_path, tmp_path / "mae.pth"))
    (row,) = (json.loads(line) for line in (tmp_path / "out/log.jsonl").read_text().splitlines())
    assert row["step"] == 1 and row["loss"] > 0
    fates = [line.split() for line in (tmp_path / "out/weights.txt").read_text().splitlines()]
    keys = {fate: {key for f, key in fates if f == fate} for fate, _ in fates}
    decoder = {key for key in state if key.startswith(("decoder_", "mask_token"))}
    assert keys["unused"] == decoder | {"norm.weight", "norm.bias"}
    assert all(key.startswith("output_adapters.cls.") for key in keys["new"])
    body = {key.replace("blocks.", "encoder.") for key in state if key.startswith("blocks.")}
    inputs = {f"input_adapters.rgb.{key}" for key in ("proj.weight", "proj.bias", "pos_emb")}
    assert keys["loaded"] == body | inputs | {"global_tokens"} and len(body) == 144
    said = capsys.readouterr().out
    assert f"{len(decoder) + 2} unused (not in the model): " in said and "mae.pth" in said


def test_weights_without_matching_keys_are_an_error(tmp_path: Path) -> None:
    write_scenes(tmp_path / "train", 4)
    decoder = {"decoder_embed.weight": torch.zeros(2, 2), "mask_token": torch.zeros(1, 1, 2)}
    torch.save({"model": decoder}, tmp_path / "decoder.pth")
    message = message_of(run_finetuning_cls.main, arguments(tmp_path, tmp_path / "decoder.pth"))
    assert "decoder.pth does not fit this model" in message and "decoder_embed" in message
