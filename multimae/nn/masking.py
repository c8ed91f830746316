"""Which tokens the encoder sees: Dirichlet sampling over modalities (SPEC section 2).

Shapes: b batch, N tokens of all modalities, n visible tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Gamma

from multimae.nn.tokens import TokenLayout

# Concentration of a modality that was not chosen: it gets (almost) no share.
_UNCHOSEN = 1e-5


@dataclass(frozen=True)
class TokenMasks:
    """Visible and masked tokens of a batch.

    Attributes:
        ids_keep: (b, n) indices of the visible tokens in the full sequence.
        ids_restore: (b, N) index of every token in ``[visible, masked]``; below n: visible.
        task_masks: Modality -> (b, N_m), 1 = masked, 0 = visible.
    """

    ids_keep: Tensor
    ids_restore: Tensor
    task_masks: dict[str, Tensor]

    def to(self, device: torch.device) -> TokenMasks:
        """Copy to ``device``."""
        task_masks = {name: mask.to(device) for name, mask in self.task_masks.items()}
        return TokenMasks(self.ids_keep.to(device), self.ids_restore.to(device), task_masks)


class MaskNoise(NamedTuple):
    """Random numbers that determine the masks of a batch.

    Attributes:
        shares: (b, modalities) share of each modality in the visible tokens, float64.
        noise: (b, N) uniform: the lowest of each modality are visible.
        ties: (b, N) uniform: which tokens to drop or add to reach the exact number.
    """

    shares: Tensor
    noise: Tensor
    ties: Tensor

    def take(self, rows: slice | Sequence[int]) -> MaskNoise:
        """Select the numbers of some samples."""
        if isinstance(rows, slice):
            return MaskNoise(*(x[rows] for x in self))
        index = torch.tensor(rows, dtype=torch.long, device=self.noise.device)
        return MaskNoise(*(x[index] for x in self))


def sample_masks(
    layout: TokenLayout,
    batch_size: int,
    num_encoded_tokens: int,
    alphas: float | Sequence[float] = 1.0,
    sample_tasks_uniformly: bool = False,
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
    rows: tuple[int, int] | None = None,
    present: Mapping[str, Tensor] | None = None,
) -> TokenMasks:
    """Draw exactly ``num_encoded_tokens`` visible tokens per sample.

    The shares of the modalities are drawn from Dirichlet(alphas). Each modality gets
    ``round(share * num_encoded_tokens)`` random patches; random tokens are then dropped or added
    to reach the exact number. Runs without host synchronisation.

    Args:
        layout: Layout of the full sequence.
        batch_size: b, the number of samples to draw.
        num_encoded_tokens: n; at most N.
        alphas: Dirichlet concentration, one for all or one per modality.
        sample_tasks_uniformly: First draw a non-empty subset of modalities uniformly; the other
            modalities get almost no share.
        generator: Random generator on ``device``.
        device: Device to draw on.
        rows: Return only samples ``start .. stop-1`` of the draw. Ranks that use the same seed and
            select their samples of the global batch get the masks of a single process.
        present: Modality -> (b,) bool of the returned samples. Tokens are drawn from the modalities
            that are present, which must have at least n tokens. Masks of complete samples do not
            change.

    Raises:
        ValueError: ``num_encoded_tokens`` is not in 1..N, or ``alphas`` has a wrong length.
    """
    drawn = draw_noise(
        layout,
        batch_size,
        num_encoded_tokens,
        alphas,
        sample_tasks_uniformly,
        generator,
        device,
    )
    if rows is not None:
        drawn = drawn.take(slice(*rows))
    return masks_from_noise(drawn, layout, num_encoded_tokens, present)


def draw_noise(
    layout: TokenLayout,
    batch_size: int,
    num_encoded_tokens: int,
    alphas: float | Sequence[float] = 1.0,
    sample_tasks_uniformly: bool = False,
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
) -> MaskNoise:
    """Draw what :func:`masks_from_noise` turns into masks; arguments as :func:`sample_masks`.

    Raises:
        ValueError: See :func:`sample_masks`.
    """
    total = layout.num_task_tokens
    if not 1 <= num_encoded_tokens <= total:
        raise ValueError(
            f"num_encoded_tokens = {num_encoded_tokens} is not in 1..{total}, "
            f"the tokens of {', '.join(layout.slices)} at {layout.image_size}"
        )
    shares = _dirichlet_shares(
        batch_size, len(layout.slices), alphas, sample_tasks_uniformly, generator, device
    )
    noise = torch.rand(batch_size, total, generator=generator, device=device)
    ties = torch.rand(batch_size, total, generator=generator, device=device)
    return MaskNoise(shares, noise, ties)


def masks_from_noise(
    drawn: MaskNoise,
    layout: TokenLayout,
    num_encoded_tokens: int,
    present: Mapping[str, Tensor] | None = None,
) -> TokenMasks:
    """Masks of a draw; no randomness, fixed shapes. Arguments as :func:`sample_masks`."""
    shares, noise, ties = drawn
    sizes = [s.num_tokens for s in layout.slices.values()]
    absent = _absent(layout, present, shares)
    counts = (_renormalize_shares(shares, absent) * num_encoded_tokens).round()
    # Drawn tokens sort first. Tokens to drop or add are chosen by new noise: reusing the noise of
    # the draw would favour larger modalities.
    order = _absent_last(ties - _lowest(noise, counts, layout).float(), absent, sizes)
    return _from_order(order.argsort(dim=1), num_encoded_tokens, layout)


def _absent(
    layout: TokenLayout, present: Mapping[str, Tensor] | None, shares: Tensor
) -> Tensor | None:
    """(b, modalities) bool, True where a modality is missing; ``None`` without ``present``."""
    if not present or not any(name in present for name in layout.slices):
        return None
    there = torch.ones_like(shares[:, 0], dtype=torch.bool)
    known = [present.get(name, there).to(shares.device) for name in layout.slices]
    return ~torch.stack(known, dim=1)


def _renormalize_shares(shares: Tensor, absent: Tensor | None) -> Tensor:
    """Renormalise shares over the present modalities; complete samples are unchanged."""
    if absent is None:
        return shares
    present = ~absent
    kept = shares * present
    total = kept.sum(dim=1, keepdim=True)
    even = present / present.sum(dim=1, keepdim=True).clamp_min(1)
    spread = torch.where(total > 1e-9, kept / total.clamp_min(1e-9), even)
    return torch.where(present.all(dim=1, keepdim=True), shares, spread)


def _absent_last(order: Tensor, absent: Tensor | None, sizes: Sequence[int]) -> Tensor:
    """Move the sort keys (b, N), in [-1, 1), of missing modalities to the end."""
    if absent is None:
        return order
    # A tensor of sizes would need a host-to-device copy, which synchronises.
    missing = [absent[:, i : i + 1].expand(-1, size) for i, size in enumerate(sizes)]
    return order + 2.0 * torch.cat(missing, dim=1)


def masks_from_task_masks(task_masks: Mapping[str, Tensor], layout: TokenLayout) -> TokenMasks:
    """Build masks from the caller's task masks.

    Args:
        task_masks: Modality -> (b, N_m), 1 = masked, 0 = visible, for every modality of ``layout``.
        layout: Layout of the full sequence.

    Raises:
        ValueError: A modality is missing, a shape is wrong, or the samples do not all have the
            same, positive number of visible tokens.
    """
    missing = [name for name in layout.slices if name not in task_masks]
    if missing:
        raise ValueError(f"task_masks lack {', '.join(missing)}: give one (B, N) mask per input")
    for name, part in layout.slices.items():
        shape = tuple(task_masks[name].shape)
        if len(shape) != 2 or shape[1] != part.num_tokens:
            raise ValueError(f"task_masks['{name}'] has shape {shape}, not (B, {part.num_tokens})")
    masked = torch.cat([task_masks[name] for name in layout.slices], dim=1).bool()
    visible = (~masked).sum(dim=1)
    counts = sorted(set(visible.tolist()))
    if len(counts) != 1 or counts[0] == 0:
        raise ValueError(
            f"task_masks: samples have {counts} visible tokens; every sample of a batch needs the "
            "same number, at least one (split the batch, or mask further patches)"
        )
    order = masked.to(torch.uint8).argsort(dim=1, stable=True)
    return _from_order(order, counts[0], layout)


def no_masks(layout: TokenLayout, batch_size: int, device: torch.device | str) -> TokenMasks:
    """Masks with all tokens visible, in order."""
    order = torch.arange(layout.num_task_tokens, device=device).expand(batch_size, -1)
    return _from_order(order, layout.num_task_tokens, layout)


def gather_tokens(x_bnd: Tensor, ids_bm: Tensor) -> Tensor:
    """Gather tokens by index: (b, n, d), (b, m) -> (b, m, d)."""
    return x_bnd.gather(1, ids_bm.unsqueeze(-1).expand(-1, -1, x_bnd.shape[-1]))


def _lowest(noise: Tensor, counts: Tensor, layout: TokenLayout) -> Tensor:
    """(b, N) bool: the ``counts`` (b, modalities) tokens of each modality with the lowest noise."""
    lowest = [
        _rank(noise[:, part.start : part.stop]) < counts[:, i : i + 1]
        for i, part in enumerate(layout.slices.values())
    ]
    return torch.cat(lowest, dim=1)


def _rank(noise: Tensor) -> Tensor:
    """Rank of every entry along dim 1."""
    return noise.argsort(dim=1).argsort(dim=1)


def _from_order(order_bn: Tensor, num_encoded_tokens: int, layout: TokenLayout) -> TokenMasks:
    """Masks from a permutation (b, N) with visible tokens first."""
    ids_restore = order_bn.argsort(dim=1)
    masked = (ids_restore >= num_encoded_tokens).long()
    task_masks = {name: masked[:, s.start : s.stop] for name, s in layout.slices.items()}
    return TokenMasks(order_bn[:, :num_encoded_tokens], ids_restore, task_masks)


def _dirichlet_shares(
    batch_size: int,
    num_tasks: int,
    alphas: float | Sequence[float],
    uniform_subset: bool,
    generator: torch.Generator | None,
    device: torch.device | str,
) -> Tensor:
    """(b, num_tasks) rows summing to 1, float64."""
    values = [float(alphas)] * num_tasks if isinstance(alphas, int | float) else list(alphas)
    if len(values) != num_tasks or min(values) <= 0:
        raise ValueError(f"alphas = {alphas}: need one positive number, or one per input")
    # Filled on the device: a host-to-device copy would synchronise.
    columns = [torch.full((batch_size,), v, dtype=torch.float64, device=device) for v in values]
    alpha = torch.stack(columns, dim=1)
    if uniform_subset:
        subset = torch.randint(1, 2**num_tasks, (batch_size, 1), generator=generator, device=device)
        chosen = (subset >> torch.arange(num_tasks, device=device)) & 1
        alpha = alpha * chosen + _UNCHOSEN
    # Gamma(a) = Gamma(a + 1) * U^(1/a), in log space: it underflows for small a.
    gamma = _standard_gamma(alpha + 1, generator)
    uniform = torch.rand(alpha.shape, dtype=alpha.dtype, generator=generator, device=device)
    return (gamma.log() + uniform.clamp_min(1e-300).log() / alpha).softmax(dim=1)


def _standard_gamma(concentration: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw Gamma(concentration, 1) from ``generator``.

    ``torch.distributions`` draws from the global generator, which gets the state of ``generator``
    meanwhile.
    """
    # Checking the arguments would wait for the device.
    gamma = Gamma(concentration, torch.ones_like(concentration), validate_args=False)
    if generator is None:
        return gamma.sample()
    device = concentration.device
    rng: Any = torch if device.type == "cpu" else torch.get_device_module(device)
    index = () if device.type == "cpu" else (device,)
    before = rng.get_rng_state(*index)
    try:
        rng.set_rng_state(generator.get_state(), *index)
        drawn: Tensor = gamma.sample()
        generator.set_state(rng.get_rng_state(*index))
    finally:
        rng.set_rng_state(before, *index)
    return drawn
