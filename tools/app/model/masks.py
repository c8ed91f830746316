"""Which patches are visible, as the page writes it down."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from multimae.nn.tokens import Size
from multimae.specs.modalities import Modality
from multimae.specs.spec import ModelSpec
from utils.logs.errors import UserError

Mask = npt.NDArray[np.bool_]
"""``[rows, columns]``, true where a patch is visible."""

_NO_SHARE = 1e-4  # a Dirichlet concentration must be positive


def patch_grid(modality: Modality, spec: ModelSpec) -> Size:
    """Rows and columns of a modality's patches."""
    count = spec.image_size // (modality.patch_size or spec.patch_size)
    return count, count


def to_bits(mask: Mask) -> str:
    """A mask row by row, ``1`` where visible."""
    return "".join("1" if seen else "0" for seen in mask.ravel())


def from_bits(bits: object, grid: Size, name: str) -> Mask:
    """Inverse of :func:`to_bits`.

    Raises:
        UserError: Not ``rows * columns`` characters 0 or 1.
    """
    count = grid[0] * grid[1]
    if not isinstance(bits, str) or len(bits) != count or set(bits) - {"0", "1"}:
        raise UserError(
            f"The visible patches of {name} must be {count} characters 0 or 1, row by row."
        )
    return np.array([bit == "1" for bit in bits]).reshape(grid)


def concentrations(concentration: float, shares: Mapping[str, float]) -> dict[str, float]:
    """Dirichlet concentration of every modality.

    Args:
        concentration: Low: a draw favours few modalities. High: it keeps to the shares.
        shares: Expected part of the patches by modality, of any sum.

    Returns:
        ``concentration * share``, where the mean share is 1.

    Raises:
        UserError: No concentration, or no share at all.
    """
    total = sum(max(0.0, share) for share in shares.values())
    if not concentration > 0 or not total > 0:
        raise UserError("Give at least one modality a share, and a concentration above 0.")
    return {
        name: max(_NO_SHARE, concentration * len(shares) * share / total)
        for name, share in shares.items()
    }
