"""Dirichlet token sampling: exact budgets, inverse permutations, agreement of ids and masks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from multimae.nn.masking import (
    TokenMasks,
    gather_tokens,
    masks_from_task_masks,
    no_masks,
    sample_masks,
)
from multimae.nn.tokens import TokenLayout

grids = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=4)


def layout_of(sizes: list[tuple[int, int]]) -> TokenLayout:
    return TokenLayout.from_grids((80, 80), {f"m{i}": g for i, g in enumerate(sizes)}, 1)


def check(masks: TokenMasks, layout: TokenLayout, batch: int, budget: int) -> None:
    total = layout.num_task_tokens
    assert masks.ids_keep.shape == (batch, budget)
    assert masks.ids_restore.shape == (batch, total)
    everyone = torch.arange(total).expand(batch, -1)
    assert torch.equal(masks.ids_restore.sort(dim=1).values, everyone)  # a permutation
    # ids_restore inverts the order [visible, masked].
    place = masks.ids_restore.gather(1, masks.ids_keep)
    assert torch.equal(place, torch.arange(budget).expand(batch, -1))
    flat = torch.cat([masks.task_masks[name] for name in layout.slices], dim=1)
    assert set(flat.unique().tolist()) <= {0, 1}
    assert torch.equal((flat == 0).sum(dim=1), torch.full((batch,), budget))
    assert (flat.gather(1, masks.ids_keep) == 0).all()
    assert torch.equal(flat == 0, masks.ids_restore < budget)


@settings(max_examples=150, deadline=None)
@given(
    sizes=grids,
    batch=st.integers(1, 5),
    share=st.floats(0.01, 1.0),
    alpha=st.floats(0.01, 100.0),
    uniform=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_exact_budget_and_consistent_ids(
    sizes: list[tuple[int, int]], batch: int, share: float, alpha: float, uniform: bool, seed: int
) -> None:
    layout = layout_of(sizes)
    budget = max(1, round(share * layout.num_task_tokens))
    generator = torch.Generator().manual_seed(seed)
    masks = sample_masks(layout, batch, budget, alpha, uniform, generator)
    check(masks, layout, batch, budget)
    again = masks_from_task_masks(masks.task_masks, layout)
    check(again, layout, batch, budget)
    assert torch.equal(again.ids_keep, masks.ids_keep.sort(dim=1).values)


@settings(max_examples=30, deadline=None)
@given(sizes=grids, batch=st.integers(1, 3))
def test_no_masks_keeps_all_tokens_in_order(sizes: list[tuple[int, int]], batch: int) -> None:
    layout = layout_of(sizes)
    masks = no_masks(layout, batch, "cpu")
    check(masks, layout, batch, layout.num_task_tokens)
    x = torch.randn(batch, layout.num_task_tokens, 3)
    assert torch.equal(gather_tokens(x, masks.ids_keep), x)


def test_masks_depend_only_on_the_generator() -> None:
    layout = layout_of([(4, 4), (4, 4)])
    torch.manual_seed(1)
    first = sample_masks(layout, 3, 8, generator=torch.Generator().manual_seed(7))
    torch.manual_seed(2)
    second = sample_masks(layout, 3, 8, generator=torch.Generator().manual_seed(7))
    other = sample_masks(layout, 3, 8, generator=torch.Generator().manual_seed(8))
    assert torch.equal(first.ids_keep, second.ids_keep)
    assert not torch.equal(first.ids_keep, other.ids_keep)


def test_rows_select_samples_of_the_global_draw() -> None:
    layout = layout_of([(4, 4), (4, 4)])
    whole = sample_masks(layout, 6, 8, generator=torch.Generator().manual_seed(3))
    part = sample_masks(layout, 6, 8, generator=torch.Generator().manual_seed(3), rows=(2, 5))
    assert torch.equal(whole.ids_keep[2:5], part.ids_keep)
    assert torch.equal(whole.ids_restore[2:5], part.ids_restore)


def test_shares_follow_the_dirichlet_distribution() -> None:
    """Dirichlet(1, 1, 1) is uniform on the simplex: each share has mean 1/3, variance 1/18."""
    layout = layout_of([(10, 10)] * 3)
    masks = sample_masks(layout, 4000, 90, generator=torch.Generator().manual_seed(0))
    share = (1 - masks.task_masks["m0"]).sum(dim=1) / 90
    assert share.mean() == pytest.approx(1 / 3, abs=0.015)
    assert share.var() == pytest.approx(1 / 18, rel=0.1)
    # A large alpha distributes evenly, a small one favours a single modality.
    even = sample_masks(layout, 50, 90, 1e6, generator=torch.Generator().manual_seed(0))
    counts = (1 - even.task_masks["m0"]).sum(dim=1)
    assert (counts - 30).abs().max() <= 1
    single = sample_masks(layout, 50, 90, 1e-4, generator=torch.Generator().manual_seed(0))
    most = torch.stack([(1 - m).sum(1) for m in single.task_masks.values()]).max(dim=0).values
    assert (most >= 89).float().mean() > 0.9


def test_uniform_task_sampling_drops_modalities() -> None:
    """Subsets of three modalities are drawn uniformly: 3/7 of the samples use a single one."""
    layout = layout_of([(10, 10)] * 3)
    generator = torch.Generator().manual_seed(0)
    masks = sample_masks(
        layout, 4000, 50, sample_tasks_uniformly=True, alphas=100.0, generator=generator
    )
    used = torch.stack([((1 - m).sum(1) > 2).long() for m in masks.task_masks.values()]).sum(0)
    for count, expected in ((1, 3 / 7), (2, 3 / 7), (3, 1 / 7)):
        assert (used == count).float().mean() == pytest.approx(expected, abs=0.03)


def test_alphas_per_modality() -> None:
    layout = layout_of([(10, 10)] * 2)
    masks = sample_masks(layout, 500, 50, [9.0, 1.0], generator=torch.Generator().manual_seed(0))
    share = (1 - masks.task_masks["m0"]).float().sum(dim=1).mean() / 50
    assert share == pytest.approx(0.9, abs=0.02)


@pytest.mark.parametrize("budget", [0, 33])
def test_num_encoded_tokens_out_of_range_is_an_error(budget: int) -> None:
    with pytest.raises(ValueError, match=rf"num_encoded_tokens = {budget} is not in 1..32"):
        sample_masks(layout_of([(4, 4), (4, 4)]), 2, budget)


def test_invalid_task_masks_are_errors() -> None:
    layout = layout_of([(2, 2), (2, 2)])
    visible = torch.zeros(2, 4)
    with pytest.raises(ValueError, match="lack m1"):
        masks_from_task_masks({"m0": visible}, layout)
    with pytest.raises(ValueError, match=r"task_masks\['m1'\] has shape \(2, 3\)"):
        masks_from_task_masks({"m0": visible, "m1": visible[:, :3]}, layout)
    unequal = torch.tensor([[0, 0, 1, 1], [0, 1, 1, 1]])
    with pytest.raises(ValueError, match=r"samples have \[5, 6\] visible tokens"):
        masks_from_task_masks({"m0": visible, "m1": unequal}, layout)
    with pytest.raises(ValueError, match=r"\[0\] visible"):
        masks_from_task_masks({"m0": visible + 1, "m1": visible + 1}, layout)


def test_small_modalities_are_not_dropped_more_often() -> None:
    """Five tokens of three equal shares: 2 + 2 + 2 are drawn, and any one of the six is dropped."""
    layout = TokenLayout.from_grids((16, 16), {"a": (1, 2), "b": (8, 8), "c": (8, 8)}, 1)
    generator = torch.Generator().manual_seed(0)
    masks = sample_masks(layout, 4000, 5, alphas=1e6, generator=generator)
    visible = (1 - masks.task_masks["a"].float()).sum(dim=1).mean()
    assert visible.item() == pytest.approx(2 - 1 / 3, abs=0.03)


def test_generator_matches_the_global_one_and_does_not_change_it() -> None:
    layout = layout_of([(4, 4), (3, 5)])
    torch.manual_seed(7)
    expected, after = sample_masks(layout, 6, 9, alphas=0.3), torch.get_rng_state()
    torch.manual_seed(8)
    before, generator = torch.get_rng_state(), torch.Generator().manual_seed(7)
    found = sample_masks(layout, 6, 9, alphas=0.3, generator=generator)
    assert torch.equal(found.ids_keep, expected.ids_keep)
    assert torch.equal(generator.get_state(), after)
    assert torch.equal(torch.get_rng_state(), before)
