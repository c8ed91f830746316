"""Weight decay and layer-wise learning rates of fine-tuning."""

from __future__ import annotations

from torch import Tensor

_TOKENS_WITHOUT_DECAY = frozenset({"global_tokens", "mask_token", "pos_emb"})


def finetune_no_decay(name: str, param: Tensor) -> bool:
    """Whether fine-tuning exempts ``param`` from weight decay (SPEC section 1).

    Exempt are 1-D parameters, biases, learned tokens and position tables, but not class
    embeddings, task embeddings and Segmenter's class tokens.
    """
    leaf = name.rpartition(".")[2]
    return param.ndim <= 1 or leaf == "bias" or leaf in _TOKENS_WITHOUT_DECAY


def layer_lr_scale(name: str, depth: int, decay: float) -> float:
    """Layer-wise learning-rate decay ``decay ** (depth + 1 - layer)`` (SPEC section 6).

    Args:
        name: Parameter name in a MultiViT: ``global_tokens`` and ``input_adapters.*`` are layer
            0, ``encoder.{i}.*`` layer ``i + 1``, everything else ``depth + 1``.
        depth: Number of encoder blocks.
        decay: Factor per layer.

    Raises:
        ValueError: The block index of ``name`` is out of range.
    """
    head, _, rest = name.partition(".")
    if head in ("global_tokens", "input_adapters"):
        layer = 0
    elif head == "encoder":
        layer = int(rest.partition(".")[0]) + 1
        if layer > depth:
            raise ValueError(f"parameter '{name}' lies beyond the encoder's {depth} blocks")
    else:
        layer = depth + 1
    return float(decay ** (depth + 1 - layer))
