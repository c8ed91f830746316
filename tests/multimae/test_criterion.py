"""Losses: finite values and gradients for all masks, and agreement with plain formulas."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from multimae.criterion import (
    IGNORED,
    MaskedCrossEntropyLoss,
    MaskedL1Loss,
    MaskedMSELoss,
    UncertaintyWeightingStrategy,
    build_loss,
    masked_berhu_loss,
    masked_l1_loss,
    masked_mse_loss,
)
from multimae.nn.tokens import patchify, unpatchify
from multimae.specs.modalities import default_table

LOSSES = {
    "mse": MaskedMSELoss(4),
    "mse_norm": MaskedMSELoss(4, norm_pix=True),
    "l1": MaskedL1Loss(8, stride=2),
    "ce": MaskedCrossEntropyLoss(16, stride=4),
    "ce_smooth": MaskedCrossEntropyLoss(4, label_smoothing=0.2),
}


def case(name: str, batch: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    channels = 5 if name.startswith("ce") else 3
    pred = torch.randn(batch, channels, 8, 12, generator=generator)
    if name.startswith("ce"):
        return pred, torch.randint(0, channels, (batch, 8, 12), generator=generator)
    target = torch.randn(batch, channels, 8, 12, generator=generator)
    target[:, :, :4, :4] = 0.5  # a constant patch: its variance is 0
    return pred, target


@settings(max_examples=80, deadline=None)
@given(
    name=st.sampled_from(sorted(LOSSES)),
    rows=st.lists(st.lists(st.booleans(), min_size=6, max_size=6), min_size=1, max_size=4),
    seed=st.integers(0, 1000),
)
def test_values_and_gradients_are_finite_for_every_mask(
    name: str, rows: list[list[bool]], seed: int
) -> None:
    pred, target = case(name, len(rows), seed)
    pred.requires_grad_(True)
    mask = torch.tensor(rows).long()
    loss = LOSSES[name](pred, target, mask)
    loss.backward()
    assert loss.isfinite()
    assert pred.grad is not None and pred.grad.isfinite().all()
    gradient = patchify(pred.grad, (4, 4)).abs().sum(dim=-1)
    assert (gradient[mask == 0] == 0).all()
    # The mean over samples that count, each the mean over its masked tokens.
    tokens = LOSSES[name].per_token(patchify(pred.detach(), (4, 4)), target)
    means = [tokens[i][m.bool()].mean() for i, m in enumerate(mask) if m.any()]
    expected = torch.stack(means).mean() if means else torch.zeros(())
    torch.testing.assert_close(loss.detach(), expected)


@pytest.mark.parametrize("name", LOSSES)
def test_without_mask_it_is_the_plain_mean(name: str) -> None:
    pred, target = case(name, 3, 0)
    loss = LOSSES[name](pred, target)
    everything = LOSSES[name](pred, target, torch.ones(3, 6))
    torch.testing.assert_close(loss, everything)
    plain = {
        "mse": lambda: F.mse_loss(pred, target),
        "l1": lambda: F.l1_loss(pred, target),
        "ce": lambda: F.cross_entropy(pred, target),
        "ce_smooth": lambda: F.cross_entropy(pred, target, label_smoothing=0.2),
    }
    if name in plain:
        torch.testing.assert_close(loss, plain[name]())


def test_norm_pix_standardises_with_unbiased_variance() -> None:
    _, target = case("mse", 2, 1)
    patches = MaskedMSELoss(4, norm_pix=True).target_patches(target)
    raw = patchify(target, (4, 4))
    expected = (raw - raw.mean(-1, keepdim=True)) / (raw.var(-1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(patches, expected)


def test_patches_fold_back() -> None:
    image = torch.randn(2, 3, 8, 12)
    torch.testing.assert_close(unpatchify(patchify(image, (4, 6)), (2, 2), (4, 6)), image)
    # channel outermost, then row, then column
    assert torch.equal(patchify(image, (4, 6))[0, 1, :6], image[0, 0, 0, 6:])


def test_ignored_labels_count_as_zero() -> None:
    logits = torch.randn(2, 12, 4, 4)
    labels = torch.randint(12, (2, 4, 4))
    loss = MaskedCrossEntropyLoss(2)
    all_pixels = loss.per_token(patchify(logits, (2, 2)), labels)
    ignored = labels.clone()
    ignored[0, 0, 0], ignored[1, :2, :2] = IGNORED, IGNORED
    some_pixels = loss.per_token(patchify(logits, (2, 2)), ignored)
    pixel = F.cross_entropy(logits[:1, :, 0, 0], labels[:1, 0, 0])
    torch.testing.assert_close(some_pixels[0, 0], all_pixels[0, 0] - pixel / 4)
    assert some_pixels[1, 0] == 0
    torch.testing.assert_close(some_pixels[:, 1:], all_pixels[:, 1:])


def test_losses_come_from_the_table() -> None:
    table = default_table()
    assert isinstance(build_loss(table["depth"], 16), MaskedL1Loss)
    norm_rgb = build_loss(table["norm_rgb"], 16)
    assert isinstance(norm_rgb, MaskedMSELoss) and norm_rgb.norm_pix
    assert build_loss(table["semseg"], 16).patch_size == (4, 4)


@pytest.mark.parametrize("loss", [masked_l1_loss, masked_mse_loss, masked_berhu_loss])
def test_depth_losses_ignore_invalid_pixels(loss) -> None:  # type: ignore[no-untyped-def]
    pred = torch.randn(2, 1, 4, 4, requires_grad=True)
    target = torch.randn(2, 1, 4, 4)
    valid = torch.ones(2, 1, 4, 4)
    valid[:, :, 0] = 0
    spoiled = target.clone()
    spoiled[:, :, 0] = torch.tensor([torch.nan, torch.inf, -torch.inf, 1e9])
    value = loss(pred, spoiled, valid)
    torch.testing.assert_close(value, loss(pred, target, valid))
    torch.testing.assert_close(value, loss(pred[:, :, 1:], target[:, :, 1:]))
    value.backward()
    assert pred.grad is not None and pred.grad.isfinite().all()
    empty = loss(pred, spoiled, torch.zeros_like(valid))
    assert empty == 0 and empty.requires_grad


def test_balancer_gives_no_gradient_to_an_absent_task() -> None:
    balancer = UncertaintyWeightingStrategy(["a", "b"])
    loss = torch.tensor(2.0, requires_grad=True)
    out = balancer({"a": loss, "b": loss * 0})
    assert out["b"] == 0
    sum(out.values()).backward()  # type: ignore[union-attr]
    assert balancer.log_vars.grad is not None
    assert balancer.log_vars.grad[1] == 0 and balancer.log_vars.grad[0] != 0
