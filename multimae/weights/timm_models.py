"""timm models of the RGB encoder: ``multimae_{tiny,small,base,large}_patch16_224``.

    import multimae.weights.timm_models
    vit = timm.create_model("multimae_tiny_patch16_224", checkpoint_path="multimae.safetensors")

Importing this module registers them. They load weights with MultiMAE's names and with timm's. The
global token becomes timm's class token, which comes first; ``pos_embed`` is the fixed sin-cos
table.

Shapes: b batch, n patches, d width.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import timm
import torch
from timm.models import build_model_with_cfg, register_model
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from multimae.multimae import MultiMAE
from multimae.nn.layers import LayerNorm
from multimae.nn.network import DEFAULT_INPUT
from multimae.nn.tokens import as_size, pos_emb_tokens, resize_pos_emb, sincos_2d
from multimae.specs.modalities import default_table
from multimae.specs.registry import SIZES, split_name
from multimae.weights.convert import multimae_to_vit

__all__ = ["MultiMAEVisionTransformer", "checkpoint_filter_fn", "from_multimae"]

_HEADS = "output_adapters."
_HEAD_KEYS = ("norm.weight", "norm.bias", "head.weight", "head.bias")  # of a linear head
_CLASSIFIER = ("fc_norm.", "head.")


class MultiMAEVisionTransformer(VisionTransformer):
    """timm's ViT with MultiMAE's position table and pooling.

    Without a classifier, ``forward`` returns the mean of the patch tokens, with
    ``global_pool="token"`` the global token, with ``""`` all tokens, always after the last block.
    The classifier equals that of fine-tuning: mean of all tokens, LayerNorm, linear layer.
    """

    cls_token: nn.Parameter
    pos_embed: nn.Parameter

    def __init__(self, *, num_classes: int = 0, global_pool: Any = "avg", **kwargs: Any) -> None:
        """See timm's VisionTransformer; without ``num_classes`` there is no final norm."""
        kwargs.setdefault("fc_norm", True)
        kwargs.setdefault("final_norm", num_classes > 0)
        kwargs.setdefault("pool_include_prefix", num_classes > 0)
        super().__init__(num_classes=num_classes, global_pool=global_pool, **kwargs)
        with torch.no_grad():
            rows, columns = self.patch_embed.grid_size
            table = sincos_2d(rows, columns, self.embed_dim)
            self.pos_embed.zero_()
            self.pos_embed[:, self.num_prefix_tokens :] = table.flatten(2).transpose(1, 2)
        self.pos_embed.requires_grad_(False)
        self.register_load_state_dict_pre_hook(_convert_before_loading)  # type: ignore[no-untyped-call]

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier; ``num_classes=0`` removes it."""
        super().reset_classifier(num_classes, global_pool)
        has_norm = not isinstance(self.fc_norm, nn.Identity)
        if has_norm != (num_classes > 0):
            norm = LayerNorm(self.embed_dim).to(self.cls_token)
            self.fc_norm = norm if num_classes else nn.Identity()
            self.pool_include_prefix = num_classes > 0

    def set_input_size(self, img_size: Any = None, patch_size: Any = None) -> None:
        """Change the image size; resizes positions as MultiMAE does."""
        before = self._table()
        super().set_input_size(img_size=img_size, patch_size=patch_size)
        with torch.no_grad():
            self.pos_embed[:, self.num_prefix_tokens :] = pos_emb_tokens(
                before, self.patch_embed.grid_size, "bicubic"
            )

    def _table(self) -> Tensor:
        """Position table of the patches, (1, d, rows, columns)."""
        rows, columns = self.patch_embed.grid_size
        patches = self.pos_embed[:, self.num_prefix_tokens :]
        return patches.transpose(1, 2).reshape(1, -1, rows, columns)

    def _pos_embed(self, x: Tensor) -> Tensor:
        """Add positions and prepend the class token: -> (b, 1+n, d)."""
        if not self.dynamic_img_size:
            return super()._pos_embed(x)
        _, rows, columns, _ = x.shape
        x = x.flatten(1, 2) + pos_emb_tokens(self._table(), (rows, columns), "bicubic")
        token = self.cls_token + self.pos_embed[:, : self.num_prefix_tokens]
        return self.pos_drop(torch.cat([token.expand(x.shape[0], -1, -1), x], dim=1))  # type: ignore[no-any-return]


def checkpoint_filter_fn(
    state: Mapping[str, Tensor], model: MultiMAEVisionTransformer
) -> dict[str, Tensor]:
    """Convert weights for ``model``.

    Args:
        state: Weights of a MultiMAE or MultiViT, or of this timm model.
        model: Sets the size of the position table. A single linear head in ``state`` becomes its
            classifier if the number of classes matches.

    Raises:
        ValueError: Unknown weights, no RGB input, or several global tokens.
    """
    if "patch_embed.proj.weight" in state:
        return dict(state)
    table = f"input_adapters.{DEFAULT_INPUT}.pos_emb"
    state = dict(state)
    if table in state:
        grid = model.patch_embed.grid_size
        state[table] = resize_pos_emb(state[table].float(), grid, "bicubic")
    out = multimae_to_vit(state, modality=DEFAULT_INPUT).state
    head = _linear_head(state)
    if head and head["head.weight"].shape[0] == model.num_classes:
        out.update({key.replace("norm.", "fc_norm."): value for key, value in head.items()})
    return out


def from_multimae(
    source: MultiMAE | str | os.PathLike[str], **kwargs: Any
) -> MultiMAEVisionTransformer:
    """Build the timm model of a MultiMAE with its weights, image size and normalisation.

    Args:
        source: A model with a spec, or a location for :meth:`multimae.MultiMAE.from_pretrained`.
        **kwargs: Arguments of ``timm.create_model``, such as ``num_classes``.

    Raises:
        CheckpointError: Not found, or unreadable.
        ValueError: The model has no RGB input, several global tokens, or an unregistered size.
    """
    model = source if isinstance(source, MultiMAE) else MultiMAE.from_pretrained(source)
    spec = model.spec
    rgb = next((m for m in spec.inputs if m.name == DEFAULT_INPUT), None)
    name = f"multimae_{split_name(spec.name)[1]}_patch16_224"
    if rgb is None or not timm.is_model(name):
        raise ValueError(
            f"{spec.name} with inputs {', '.join(m.name for m in spec.inputs)} has no timm model: "
            f"there are {', '.join(timm.list_models('multimae_*'))}, for models with input rgb"
        )
    size = kwargs.pop("img_size", None) or spec.image_size
    vit: Any = timm.create_model(
        name,
        img_size=size,
        patch_size=rgb.patch_size or spec.patch_size,
        pretrained_cfg_overlay={"mean": rgb.mean, "std": rgb.std, "crop_pct": spec.crop_pct},
        **kwargs,
    )
    vit.load_state_dict(model.state_dict())
    return vit.eval()  # type: ignore[no-any-return]


def _convert_before_loading(
    model: nn.Module, state: dict[str, Any], prefix: str, *_: object
) -> None:
    """Convert MultiMAE's names in ``load_state_dict``; a missing classifier is unchanged."""
    own = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    if "global_tokens" not in own or not isinstance(model, MultiMAEVisionTransformer):
        return
    for key in own:
        del state[prefix + key]
    new = {k: v for k, v in model.state_dict().items() if k.startswith(_CLASSIFIER)}
    state.update({prefix + k: v for k, v in (new | checkpoint_filter_fn(own, model)).items()})


def _linear_head(state: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Linear head of the weights, if it is their only output; else ``None``."""
    keys = [k for k in state if k.startswith(_HEADS)]
    names = {k.split(".")[1] for k in keys}
    if len(names) != 1:
        return None
    prefix = f"{_HEADS}{names.pop()}."
    head = {k.removeprefix(prefix): state[k] for k in keys}
    return head if set(head) == set(_HEAD_KEYS) else None


def _config() -> dict[str, Any]:
    """Timm's pretrained config, without a download URL."""
    rgb = default_table()[DEFAULT_INPUT]
    return {
        "url": "",
        "num_classes": 0,
        "input_size": (3, 224, 224),
        "pool_size": None,
        "crop_pct": 1.0,
        "interpolation": rgb.interpolation,
        "fixed_input_size": True,
        "mean": rgb.mean,
        "std": rgb.std,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
        "license": "apache-2.0",
    }


default_cfgs = {f"multimae_{size}_patch16_224": _config() for size in SIZES}


def _create(size: str, pretrained: bool, kwargs: dict[str, Any]) -> MultiMAEVisionTransformer:
    """Build the model with timm's factory; ``img_size`` also sets the config's input size."""
    if "img_size" in kwargs:
        input_size = {"input_size": (3, *as_size(kwargs["img_size"]))}
        kwargs["pretrained_cfg_overlay"] = input_size | (kwargs.get("pretrained_cfg_overlay") or {})
    dims = SIZES[size]
    shape = {
        "patch_size": 16,
        "embed_dim": dims["dim_tokens"],
        "depth": dims["depth"],
        "num_heads": dims["num_heads"],
    }
    out_indices = kwargs.pop("out_indices", 3)
    return build_model_with_cfg(
        MultiMAEVisionTransformer,
        f"multimae_{size}_patch16_224",
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": out_indices, "feature_cls": "getter"},
        **{**shape, **kwargs},
    )


@register_model
def multimae_tiny_patch16_224(pretrained: bool = False, **kwargs: Any) -> MultiMAEVisionTransformer:
    """MultiMAE's encoder, ViT-Ti/16."""
    return _create("tiny", pretrained, kwargs)


@register_model
def multimae_small_patch16_224(
    pretrained: bool = False, **kwargs: Any
) -> MultiMAEVisionTransformer:
    """MultiMAE's encoder, ViT-S/16."""
    return _create("small", pretrained, kwargs)


@register_model
def multimae_base_patch16_224(pretrained: bool = False, **kwargs: Any) -> MultiMAEVisionTransformer:
    """MultiMAE's encoder, ViT-B/16."""
    return _create("base", pretrained, kwargs)


@register_model
def multimae_large_patch16_224(
    pretrained: bool = False, **kwargs: Any
) -> MultiMAEVisionTransformer:
    """MultiMAE's encoder, ViT-L/16."""
    return _create("large", pretrained, kwargs)
