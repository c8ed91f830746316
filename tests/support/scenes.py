"""Tiny multi-modal data sets with structure: a box in front of a sloping ground."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.support.image_folders import save

NUM_CLASSES = 5


# What tests compare to the last digits is computed in float32, also where bf16 is the default.
ON_CPU = ("--device", "cpu", "--precision", "fp32")


def write_scene(root: Path, key: str, seed: int, side: int = 40) -> None:
    """One aligned sample: rgb, depth (16-bit), semseg and normals agree about the box."""
    rng = np.random.default_rng(seed)
    top, left = rng.integers(4, side // 2, 2)
    bottom, right = top + rng.integers(8, side // 2), left + rng.integers(8, side // 2)
    label = int(rng.integers(1, NUM_CLASSES))
    semseg = np.zeros((side, side), np.uint8)
    semseg[top:bottom, left:right] = label
    depth = np.repeat(np.linspace(6000, 2000, side)[:, None], side, 1)
    depth = np.where(semseg > 0, 1500, depth).astype(np.uint16)
    colours = np.array([[90, 90, 90], [220, 60, 40], [40, 200, 70], [50, 80, 220], [230, 210, 50]])
    rgb = (colours[semseg] * (0.6 + 0.4 * np.linspace(1, 0, side)[:, None, None])).astype(np.uint8)
    normals = np.where(semseg[..., None] > 0, [128, 128, 255], [128, 255, 128]).astype(np.uint8)
    save(root / f"rgb/{key}.jpg", rgb, quality=95)
    save(root / f"depth/{key}.png", depth)
    save(root / f"semseg/{key}.png", semseg)
    save(root / f"normals/{key}.png", normals)


def write_scenes(root: Path, count: int, first_seed: int = 0) -> Path:
    """A data set of ``count`` scenes in two sub-folders."""
    for i in range(count):
        write_scene(root, f"{'ab'[i % 2]}/{i:03d}", first_seed + i)
    return root


def tiny_run(train: Path, output_dir: Path | str, *more: str) -> list[str]:
    """Arguments of a pre-training run that takes a second (the size is tests/conftest.py's)."""
    return [
        *("--data_path", str(train), "--output_dir", str(output_dir)),
        *("--modalities", f"{{semseg: {{num_classes: {NUM_CLASSES}}}}}", "--standardize_depth"),
        *("--model", "pretrain_multimae_nano", "--input_size", "32", "--patch_size", "8"),
        *("--num_encoded_tokens", "12", "--decoder_dim", "32", "--decoder_depth", "1"),
        *("--decoder_num_heads", "4", "--batch_size", "4", "--epochs", "2", "--blr", "0.05"),
        *("--warmup_epochs", "0", "--num_workers", "0", "--log_every", "1", *ON_CPU),
        *more,
    ]
