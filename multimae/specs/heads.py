"""Specs of fine-tuning heads, and heads built from them for any encoder size."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from multimae import output_adapters as heads
from multimae.specs.modalities import Modality, changed_fields, make_table
from multimae.specs.registry import encoder_shape

MM_PER_M = 1000.0
LabelKind = Literal["class", "multi", "number"]
"""What an image has: one class, several classes, or numbers."""
HeadKind = Literal["segmenter", "convnext", "dpt"]
_HEAD_WIDTH = 64  # channels per attention head: 12 heads at the published width 768
_DPT_WIDTH = 256  # feature_dim of DPT at the published width 768; less for narrower encoders


@dataclass(frozen=True)
class HeadOptions:
    """Options of a dense head.

    Attributes:
        kind: Architecture.
        main_tasks: Modalities whose tokens the head reads.
        dim: Width of Segmenter and ConvNeXt.
        depth: Blocks of Segmenter and ConvNeXt.
        preds_per_patch: Cells per token of ConvNeXt, a square number.
        interpolate_mode: Final upsampling of ConvNeXt.
        drop_path: Drop-path rate of Segmenter and ConvNeXt.
        num_heads: Attention heads of Segmenter; ``None``: one per 64 channels. Published heads
            have 12 at any width.
    """

    kind: HeadKind = "convnext"
    main_tasks: tuple[str, ...] = ("rgb",)
    dim: int = 6144
    depth: int = 4
    preds_per_patch: int = 16
    interpolate_mode: Literal["bilinear", "nearest"] = "bilinear"
    drop_path: float = 0.0
    num_heads: int | None = None


@dataclass(frozen=True)
class LinearOptions:
    """Options of a linear classification head.

    Attributes:
        use_mean_pooling: Pool by the mean of all tokens, else use the last global token.
        init_scale: Factor on the initial weights.
        predicts: Softmax over the classes of ``target``, a sigmoid for each of them, or the
            channels of ``target`` as numbers, standardized by its mean and std and named by its
            ``class_names``.
    """

    use_mean_pooling: bool = True
    init_scale: float = 1.0
    predicts: LabelKind = "class"


_TRUTH_FIELDS = ("zero_is_void", "stored_channels", "uses_mask_valid")
"""Fields of :class:`HeadSpec` that files of earlier versions lack."""


@dataclass(frozen=True)
class HeadSpec:
    """Spec of a head.

    Attributes:
        name: Key in the model's output adapters.
        target: Predicted modality. Labels: one logit per class, per pixel or per image. Images: the
            first ``channels`` channels, normalised.
        channels: Output channels. A segmentation head may have one more than classes, for void.
        options: Architecture; :class:`LinearOptions` for image classification.
        unit: Unit of the predicted values, such as ``m``; empty: a scale from 0 to 1. Millimetres
            (weights of earlier versions) become metres.
        scale: Predicted values in ``unit`` per stored value of ``target``.
        zero_is_void: Stored label 0 is void and classes count from 1; ``None``: unknown (weights
            of earlier versions).
        stored_channels: Channels of the files of an image target; 0: those of ``target``.
        uses_mask_valid: Trained with a map of valid pixels, ``mask_valid``.
    """

    name: str
    target: Modality
    channels: int
    options: HeadOptions | LinearOptions
    unit: str = ""
    scale: float = 1.0
    zero_is_void: bool | None = None
    stored_channels: int = 0
    uses_mask_valid: bool = False

    def __post_init__(self) -> None:
        """Turn millimetres into metres."""
        if self.unit == "mm":
            object.__setattr__(self, "unit", "m")
            object.__setattr__(self, "scale", self.scale / MM_PER_M)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as stored with weights."""
        options = dataclasses.asdict(self.options)
        if isinstance(self.options, LinearOptions):
            options["kind"] = "linear"
            if self.options.predicts == "class":
                del options["predicts"]
        return {
            "name": self.name,
            "target": {self.target.name: changed_fields(self.target)},
            "channels": self.channels,
            "unit": self.unit,
            "scale": self.scale,
            **{name: getattr(self, name) for name in _TRUTH_FIELDS},
            "options": options,
        }

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> HeadSpec:
        """Inverse of :meth:`to_dict`."""
        (target,) = make_table(raw["target"], base={}).values()
        options = dict(raw["options"])
        if options.get("kind") == "linear":
            del options["kind"]
            shape: HeadOptions | LinearOptions = LinearOptions(**options)
        else:
            options["main_tasks"] = tuple(options["main_tasks"])
            shape = HeadOptions(**options)
        return cls(
            str(raw["name"]),
            target,
            int(raw["channels"]),
            shape,
            str(raw["unit"]),
            float(raw.get("scale", 1.0)),
            **{name: raw[name] for name in _TRUTH_FIELDS if name in raw},
        )

    def build(self, model: str, patch_size: int = 16) -> nn.Module:
        """Build the head for the encoder ``model`` (registered name).

        Raises:
            ValueError: Unknown model, or a width not divisible by the number of heads.
        """
        if isinstance(self.options, LinearOptions):
            return heads.LinearOutputAdapter(
                self.channels,
                use_mean_pooling=self.options.use_mean_pooling,
                init_scale=self.options.init_scale,
            )
        labels = self.target.is_labels
        return dense_head(
            self.options, self.channels, model=model, patch_size=patch_size, labels=labels
        )


def dense_head(
    options: HeadOptions,
    num_outputs: int,
    *,
    model: str,
    patch_size: int = 16,
    labels: bool = False,
) -> nn.Module:
    """Build a head that predicts ``num_outputs`` channels at full resolution.

    Args:
        options: Options of the head.
        num_outputs: Channels or classes.
        model: Registered name of the encoder; sets DPT's hooks and widths.
        patch_size: Patch side of the encoder.
        labels: Whether outputs are class logits (selects DPT's semantic segmentation head).

    Raises:
        ValueError: Unknown model, or a width not divisible by the number of heads.
    """
    if options.kind == "segmenter":
        num_heads = options.num_heads or max(1, options.dim // _HEAD_WIDTH)
        if options.dim % num_heads:
            raise ValueError(f"decoder_dim {options.dim} is not divisible by its {num_heads} heads")
        return heads.SegmenterMaskTransformerAdapter(
            num_outputs,
            depth=options.depth,
            num_heads=num_heads,
            embed_dim=options.dim,
            drop_path_rate=options.drop_path,
            main_tasks=options.main_tasks,
            patch_size=patch_size,
        )
    if options.kind == "convnext":
        return heads.ConvNeXtAdapter(
            num_outputs,
            embed_dim=options.dim,
            preds_per_patch=options.preds_per_patch,
            main_tasks=options.main_tasks,
            patch_size=patch_size,
            depth=options.depth,
            interpolate_mode=options.interpolate_mode,
            drop_path_rate=options.drop_path,
        )
    depth, dim = encoder_shape(model)
    hooks, layer_dims = heads.dpt_defaults(depth, dim)
    return heads.DPTOutputAdapter(
        num_outputs,
        patch_size=patch_size,
        main_tasks=options.main_tasks,
        hooks=hooks,
        layer_dims=layer_dims,
        feature_dim=min(_DPT_WIDTH, dim // 3),
        head_type="semseg" if labels else "regression",
    )


def reads_all_layers(model: nn.Module) -> bool:
    """Whether a head of the model needs the tokens of all blocks."""
    return any(isinstance(module, heads.DPTOutputAdapter) for module in model.modules())
