"""Samples that lack modalities (``--missing allow``)."""

from __future__ import annotations

from multimae.images.folders import MultiModalFolder
from multimae.nn.tokens import as_size
from multimae.specs.errors import UserError
from utils.config.pretrain_options import PretrainConfig


def check_patterns(cfg: PretrainConfig, folder: MultiModalFolder) -> None:
    """Check that every sample has at least ``num_encoded_tokens`` input patches.

    Raises:
        UserError: A sample has fewer input patches.
    """
    (h, w), needed = as_size(cfg.model.input_size), cfg.model.num_encoded_tokens
    inputs = [m for m in folder.modalities if m.name in cfg.in_names]
    sides = {m.name: max(1, (m.patch_size or cfg.model.patch_size) // m.stride) for m in inputs}
    units = {m.name: m.stride * sides[m.name] for m in inputs}
    tokens = {name: (h // unit) * (w // unit) for name, unit in units.items()}
    for names, index in folder.patterns().items():
        count = sum(tokens[name] for name in names if name in tokens)
        if count < min(needed, sum(tokens.values())):
            raise UserError(
                f"{folder.root}: sample '{folder.name(index)}' has only {', '.join(names)}: "
                f"{count} input patches, fewer than num_encoded_tokens {needed}. Lower "
                "num_encoded_tokens, or remove such samples."
            )
