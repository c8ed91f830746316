"""Encoder sizes, and the registered model names made of them: ``KIND_SIZE``."""

from __future__ import annotations

from multimae.specs.coercion import did_you_mean

# Base and large are the published ones.
SIZES: dict[str, dict[str, int]] = {
    "tiny": {"dim_tokens": 192, "depth": 12, "num_heads": 3},
    "small": {"dim_tokens": 384, "depth": 12, "num_heads": 6},
    "base": {"dim_tokens": 768, "depth": 12, "num_heads": 12},
    "large": {"dim_tokens": 1024, "depth": 24, "num_heads": 16},
    "huge": {"dim_tokens": 1280, "depth": 32, "num_heads": 16},
}

PRETRAIN, MULTIVIT = "pretrain_multimae", "multivit"
KINDS = (PRETRAIN, MULTIVIT)


def model_names() -> list[str]:
    """``pretrain_multimae_tiny`` to ``multivit_huge``."""
    return [f"{kind}_{size}" for kind in KINDS for size in SIZES]


def split_name(name: str) -> tuple[str, str]:
    """Kind and size of a registered name.

    Raises:
        ValueError: Unknown name; the message suggests the nearest.
    """
    kind, _, size = name.rpartition("_")
    if kind not in KINDS or size not in SIZES:
        known = model_names()
        near = did_you_mean(name, known)
        raise ValueError(f"unknown model '{name}'{near} Known: {', '.join(known)}")
    return kind, size


def encoder_shape(name: str) -> tuple[int, int]:
    """``(depth, dim)`` of a registered model.

    Raises:
        ValueError: Unknown name.
    """
    dims = SIZES[split_name(name)[1]]
    return dims["depth"], dims["dim_tokens"]


def find_size(blocks: int, width: int | None) -> str | None:
    """The size with so many blocks of this width, if there is one."""
    return next((s for s in SIZES if encoder_shape(f"{MULTIVIT}_{s}") == (blocks, width)), None)
