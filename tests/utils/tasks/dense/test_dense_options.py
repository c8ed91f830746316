"""Losses and augmentation of dense fine-tuning."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from multimae.images.views import View, cut
from multimae.specs.modalities import Modality, make_table
from utils.config.depth_options import DepthConfig
from utils.config.parse import ConfigError, parse_config
from utils.config.semseg_options import SemsegConfig
from utils.data.dense_transforms import DepthTrainTransform, SegTrainTransform
from utils.tasks.segmentation import SegmentationTask
from utils.tasks.segmentation_losses import counted_images, dice_sum, focal_sum

LABELS = torch.tensor([[[0, 1, 1], [2, 255, 1]]])
WEIGHTS = torch.tensor([1.0, 2.0, 0.5, 7.0])


class FakeModel(nn.Module):
    """Stands for a model that is not run."""

    output_adapters: dict[str, nn.Module] = {}


def test_focal_loss_by_hand() -> None:
    logits = torch.randn(1, 4, 2, 3, generator=torch.Generator().manual_seed(0))
    shares, expected = logits.softmax(1), 0.0
    for (row, column), label in np.ndenumerate(LABELS[0].numpy()):
        if label != 255:
            p = float(shares[0, label, row, column])
            expected -= float(WEIGHTS[label]) * (1 - p) ** 3 * np.log(p)
    assert float(focal_sum(logits, LABELS, WEIGHTS, 3.0)) == pytest.approx(expected, rel=1e-5)
    plain = F.cross_entropy(logits, LABELS, ignore_index=255, reduction="sum")
    torch.testing.assert_close(focal_sum(logits, LABELS, None, 0.0), plain)


def test_focal_loss_of_certain_pixels_has_a_finite_gradient() -> None:
    logits = torch.tensor([200.0, 0.0]).view(1, 2, 1, 1).requires_grad_()
    focal_sum(logits, torch.zeros(1, 1, 1, dtype=torch.long), None, 0.5).backward()
    assert logits.grad is not None and logits.grad.isfinite().all()


def test_dice_loss_by_hand() -> None:
    logits = torch.randn(1, 4, 2, 3, generator=torch.Generator().manual_seed(0))
    shares = logits.softmax(1)[0].permute(1, 2, 0)[LABELS[0] != 255]  # (5, 4)
    truth = F.one_hot(LABELS[LABELS != 255], 4).float()
    losses = 1 - 2 * (shares * truth).sum(0) / (shares.sum(0) + truth.sum(0))
    losses, weights = losses[:3], WEIGHTS[:3]  # class 3 does not occur
    torch.testing.assert_close(dice_sum(logits, LABELS, None), losses.mean())
    expected = (losses * weights).sum() / weights.sum()
    torch.testing.assert_close(dice_sum(logits, LABELS, WEIGHTS), expected)
    perfect = 100 * F.one_hot(LABELS.clamp_max(3), 4).movedim(-1, 1).float()
    assert dice_sum(perfect, LABELS, None) < 1e-6
    void = torch.full_like(LABELS, 255)
    assert dice_sum(logits, void, None) == 0
    pair = torch.cat([LABELS, void, LABELS.flip(2)])
    logits = torch.cat([logits, logits, perfect.flip(3)])
    torch.testing.assert_close(dice_sum(logits, pair, None), losses.mean())  # per image
    assert counted_images(pair, None) == 2
    assert counted_images(pair, torch.tensor([0.0, 0.0, 0.0, 1.0])) == 0


def test_losses_are_added() -> None:
    target = dataclasses.replace(SemsegConfig().data.target(), num_classes=4)

    def loss(*names: Any) -> torch.Tensor:
        task = SegmentationTask(
            FakeModel(), (), target, zero_is_void=False, losses=names, focal_gamma=1.0
        )
        return task.loss(logits, LABELS, padding)

    padding = torch.zeros_like(LABELS, dtype=torch.bool)
    logits = torch.randn(1, 4, 2, 3, generator=torch.Generator().manual_seed(0))
    parts = loss("ce") + loss("focal") + loss("dice")
    torch.testing.assert_close(loss("ce", "focal", "dice"), parts)
    torch.testing.assert_close(loss("focal"), focal_sum(logits, LABELS, None, 1.0) / 5)


def test_options() -> None:
    data = parse_config(SemsegConfig, ["--seg_loss", "ce+dice"]).data
    assert data.losses == ("ce", "dice") and SemsegConfig().data.losses == ("ce",)
    for bad in (["--seg_loss", "ce+iou"], ["--seg_loss", "ce+ce"], ["--scale_jitter", "2", "1"],
                ["--scale_jitter", "1"], ["--vflip", "1.5"]):  # fmt: skip
        with pytest.raises(ConfigError, match=bad[0].removeprefix("--")):
            parse_config(SemsegConfig, bad)
    with pytest.raises(ConfigError, match="scale_jitter"):
        parse_config(DepthConfig, ["--scale_jitter", "0.5", "1"])
    normals = "{normals: {plot: normals, loss: l1, interpolation: nearest, hflip_negate: [0]}}"
    flags = ["--in_domains", "rgb-normals", "--vflip", "0.5", "--modalities"]
    with pytest.raises(ConfigError, match="vflip_negate"):
        parse_config(SemsegConfig, [*flags, normals])
    parse_config(SemsegConfig, [*flags, normals.replace("[0]", "[0], vflip_negate: [1]")])


def gradient_image() -> np.ndarray:
    rows, columns = np.mgrid[:8, :8].astype(np.uint8)
    return np.stack([rows * 10, columns * 10, rows + columns], axis=-1)


NORMALS = make_table({"normals": {
    "plot": "normals", "loss": "l1", "interpolation": "nearest", "hflip_negate": [0],
    "vflip_negate": [1],
}})["normals"]  # fmt: skip


@pytest.mark.parametrize(("flip", "vflip"), [(False, True), (True, True), (True, False)])
def test_flips_mirror_pixels_and_directions(flip: bool, vflip: bool) -> None:
    image = gradient_image()
    view = View((8, 8), 0, 0, 8, 8, flip, vflip)
    found = cut(image, NORMALS, view, (8, 8)).numpy()
    expected = image[:: -1 if vflip else 1, :: -1 if flip else 1].transpose(2, 0, 1).copy()
    expected[0] = 255 - expected[0] if flip else expected[0]
    expected[1] = 255 - expected[1] if vflip else expected[1]
    assert (found == expected).all()


def test_all_modalities_share_the_draws() -> None:
    table = make_table({})
    rgb = dataclasses.replace(table["rgb"], interpolation="nearest")
    grey = Modality("grey", num_channels=1, interpolation="nearest", plot="grey", loss="l1")
    image = gradient_image().repeat(5, 0).repeat(5, 1)
    pixels = {"rgb": image, "grey": image[..., 0]}
    seen = set()
    dense = SegTrainTransform([rgb, grey], 32, (0.5, 1.5), 0.5, 0.5, jitter=0.0)
    cropped = DepthTrainTransform([rgb, grey], 32, vflip=0.5, scales=(1.0, 2.0))
    for seed in range(12):
        for transform in (dense, cropped):
            torch.manual_seed(seed)
            images = transform(pixels)
            inside = images.get("inside", torch.ones(32, 32, dtype=torch.bool))
            assert (images["rgb"][0][inside] == images["grey"][0][inside]).all()
            column = images["grey"][0][:, 0][inside[:, 0]].int()
            seen.add((transform is dense, bool(column[0] > column[-1])))
    assert len(seen) == 4


def test_defaults_draw_what_was_published() -> None:
    table = make_table({})
    modalities = [table["rgb"], table["depth"]]
    image = gradient_image().repeat(5, 0).repeat(5, 1)
    pixels = {"rgb": image, "depth": image[..., 0].astype(np.uint16)}
    data, depth = SemsegConfig().data, DepthConfig().data
    assert (data.scale_jitter, data.hflip, data.vflip) == ((0.1, 2.0), 0.5, 0.0)
    assert (depth.scale_jitter, depth.hflip, depth.vflip) == ((1.0, 1.0), 0.5, 0.0)
    torch.manual_seed(0)
    DepthTrainTransform(modalities, 32)(pixels)
    after = torch.rand(())
    torch.manual_seed(0)
    for _ in range(2):
        torch.randint(0, 1, ())
    torch.rand(())
    assert torch.rand(()) == after  # two offsets and a flip
