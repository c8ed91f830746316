"""Heads: published numbers, every encoder size, odd grids, several main tasks, initialisation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from multimae.input_adapters import PatchedInputAdapter
from multimae.multimae import MultiMAE, MultiViT
from multimae.output_adapters.convnext import ConvNeXtAdapter
from multimae.output_adapters.dpt import DPTOutputAdapter, dpt_defaults
from multimae.output_adapters.linear import LinearOutputAdapter
from multimae.output_adapters.segmenter import SegmenterMaskTransformerAdapter
from multimae.specs.registry import SIZES
from tests.support.golden import assert_close, golden

HEADS: dict[str, type[nn.Module]] = {
    "linear": LinearOutputAdapter,
    "segmenter": SegmenterMaskTransformerAdapter,
    "convnext": ConvNeXtAdapter,
    "dpt": DPTOutputAdapter,
}
SMALL: dict[str, dict[str, Any]] = {
    "linear": {},
    "segmenter": {"embed_dim": 32, "num_heads": 4},
    "convnext": {"embed_dim": 64, "preds_per_patch": 4, "depth": 2},
    "dpt": {"hooks": [0, 1, 2, 3], "layer_dims": [4, 6, 8, 10], "feature_dim": 8},
}
DENSE = ["segmenter", "convnext", "dpt"]
ENCODER = {"dim_tokens": 24, "depth": 4, "num_heads": 3}
CHANNELS = {"rgb": 3, "depth": 1}


def head(kind: str, **kwargs: Any) -> nn.Module:
    return HEADS[kind](**{"num_classes": 5, **SMALL[kind], **kwargs})


def adapters(*names: str, patch: int = 16, size: int = 48) -> dict[str, PatchedInputAdapter]:
    return {n: PatchedInputAdapter(CHANNELS[n], 1, patch, image_size=size) for n in names}


def run(adapter: nn.Module, height: int, width: int, *names: str, patch: int = 16) -> Tensor:
    model = MultiViT(adapters(*names, patch=patch), {"out": adapter}, **ENCODER).eval()
    x = {name: torch.randn(2, CHANNELS[name], height, width) for name in names}
    with torch.no_grad():
        return model(x, return_all_layers=True)["out"]


@pytest.mark.parametrize(
    "case",
    [
        "cls_mean",
        "cls_token",
        "segmenter_rgb",
        "convnext_nearest",
        "convnext_rgb_depth",
        "dpt_regression",
        "dpt_semseg_two_tasks",
    ],
)
def test_golden(case: str) -> None:
    data = golden(case)
    config = data.config
    args = {"num_classes": config["num_classes"], **config["head"]}
    adapter = HEADS[args.pop("type")](**args)
    ((name, expected),) = data["output"].items()
    model = MultiViT(
        adapters(
            *config["in_domains"], patch=config["patch_size"], size=config["adapter_image_size"]
        ),
        {name: adapter},
        **{k: config[k] for k in ("dim_tokens", "depth", "num_heads", "num_global_tokens")},
    ).eval()
    model.load_state_dict(data["weight"], strict=True)
    with torch.no_grad():
        output = model(data["input"], return_all_layers=config["return_all_layers"])[name]
    assert_close(output, expected)


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("size", ["tiny", "small", "base", "large"])
def test_every_encoder_size(size: str, kind: str) -> None:
    """Shapes only: nothing is computed on the meta device."""
    dims = SIZES[size]
    extra: dict[str, Any] = {}
    if kind == "dpt":
        extra["hooks"], extra["layer_dims"] = dpt_defaults(dims["depth"], dims["dim_tokens"])
    with torch.device("meta"):
        adapter = head(kind, **extra)
        model = MultiViT(adapters("rgb"), {"out": adapter}, **dims)
        out = model(torch.zeros(2, 3, 32, 48), return_all_layers=True)["out"]
    assert out.shape == ((2, 5) if kind == "linear" else (2, 5, 32, 48))
    if kind == "dpt":
        assert max(extra["hooks"]) == dims["depth"] - 1
        assert extra["layer_dims"][-1] == dims["dim_tokens"]


def test_dpt_defaults_are_the_published_ones() -> None:
    published = DPTOutputAdapter()
    hooks, layer_dims = dpt_defaults(12, 768)
    assert (tuple(hooks), tuple(layer_dims)) == (published.hooks, published.layer_dims)
    assert dpt_defaults(24, 1024)[0] == [5, 11, 17, 23]


@pytest.mark.parametrize("kind", DENSE)
@pytest.mark.parametrize(("height", "width"), [(16, 16), (48, 48), (80, 112), (16, 64), (48, 96)])
def test_odd_grids(kind: str, height: int, width: int) -> None:
    out = run(head(kind), height, width, "rgb")
    assert out.shape == (2, 5, height, width)
    assert out.isfinite().all()


@pytest.mark.parametrize("kind", DENSE)
@pytest.mark.parametrize("patch", [8, 32])
def test_other_patch_sizes(kind: str, patch: int) -> None:
    assert run(head(kind, patch_size=patch), 96, 64, "rgb", patch=patch).shape == (2, 5, 96, 64)


@pytest.mark.parametrize("head_type", ["regression", "semseg"])
def test_dpt_output_stride(head_type: str) -> None:
    out = run(head("dpt", stride_level=4, head_type=head_type), 48, 80, "rgb")
    assert out.shape == (2, 5, 12, 20)


@pytest.mark.parametrize("kind", DENSE)
def test_maps_stay_channels_last(kind: str) -> None:
    """Convolutions and upsampling of other layouts take two to three times as long on CPUs."""
    out = run(head(kind), 64, 96, "rgb")
    assert out.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("kind", DENSE)
def test_two_main_tasks(kind: str) -> None:
    """Both tasks reach the output, in the order of ``main_tasks``."""
    torch.manual_seed(0)
    adapter = head(kind, main_tasks=("depth", "rgb"))
    model = MultiViT(adapters("rgb", "depth"), {"out": adapter}, **ENCODER).eval()
    seen: list[Tensor] = []
    first = adapter.act_postprocess[-1][0] if kind == "dpt" else adapter.proj_dec
    first.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    x = {"rgb": torch.randn(1, 3, 32, 48), "depth": torch.randn(1, 1, 32, 48)}
    tokens: list[Tensor] = []
    model.encoder[-1].register_forward_hook(lambda *args: tokens.append(args[2]))
    with torch.no_grad():
        assert model(x, return_all_layers=True)["out"].shape == (1, 5, 32, 48)
    features = seen[0].flatten(2).transpose(1, 2) if kind == "dpt" else seen[0]
    assert torch.equal(features, torch.cat([tokens[0][:, 6:12], tokens[0][:, :6]], dim=-1))


@pytest.mark.parametrize("kind", DENSE)
def test_missing_main_task_is_named(kind: str) -> None:
    with pytest.raises(ValueError, match=r"main_tasks depth are not in the input, which has rgb"):
        run(head(kind, main_tasks=("rgb", "depth")), 32, 32, "rgb")


def test_main_tasks_on_different_grids() -> None:
    inputs = {**adapters("rgb"), **adapters("depth", patch=8)}
    adapter = head("convnext", main_tasks=("rgb", "depth"))
    model = MultiViT(inputs, {"out": adapter}, **ENCODER)
    with pytest.raises(ValueError, match="different token grids: rgb 2x2, depth 4x4"):
        model({"rgb": torch.zeros(1, 3, 32, 32), "depth": torch.zeros(1, 1, 32, 32)})


def test_masked_tokens_are_refused() -> None:
    model = MultiMAE(adapters("rgb"), {"out": head("segmenter")}, **ENCODER)
    with pytest.raises(ValueError, match="needs all 10 tokens of the input, got 5"):
        model(torch.zeros(1, 3, 48, 48), num_encoded_tokens=4)


def test_dpt_needs_all_layers() -> None:
    model = MultiViT(adapters("rgb"), {"out": head("dpt")}, **ENCODER)
    with pytest.raises(ValueError, match="return_all_layers=True"):
        model(torch.zeros(1, 3, 32, 32))
    shallow = MultiViT(adapters("rgb"), {"out": DPTOutputAdapter()}, **ENCODER)
    with pytest.raises(ValueError, match=r"reads encoder layers \[2, 5, 8, 11\] but got 4"):
        shallow(torch.zeros(1, 3, 32, 32), return_all_layers=True)


@pytest.mark.parametrize(
    ("kind", "kwargs", "message"),
    [
        ("convnext", {"preds_per_patch": 8}, "square number"),
        ("convnext", {"embed_dim": 66}, "divides"),
        ("dpt", {"hooks": [1, 2]}, "4 hooks"),
        ("dpt", {"head_type": "boxes"}, "unknown head_type 'boxes'"),
    ],
)
def test_bad_arguments(kind: str, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        head(kind, **kwargs)


def test_init_scale_survives_the_models_initialisation() -> None:
    def weight(scale: float) -> Tensor:
        torch.manual_seed(0)
        adapter = LinearOutputAdapter(5, init_scale=scale)
        MultiViT(adapters("rgb"), {"cls": adapter}, **ENCODER)
        return adapter.head.weight

    assert_close(weight(0.001), weight(1.0) * 0.001)
    bound = (6 / (5 + 24)) ** 0.5
    assert 0.5 * bound < weight(1.0).abs().max() <= bound


def test_segmenter_class_tokens_are_truncated_normal() -> None:
    adapter = SegmenterMaskTransformerAdapter(100, embed_dim=96, num_heads=4)
    MultiViT(adapters("rgb"), {"semseg": adapter}, **ENCODER)
    assert adapter.cls_emb.std().item() == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize("kind", HEADS)
def test_every_trainable_parameter_gets_a_gradient(kind: str) -> None:
    """Else DDP waits for it: DPT's unused unit must be frozen."""
    model = MultiViT(adapters("rgb"), {"out": head(kind)}, **ENCODER)
    out = model(torch.randn(2, 3, 48, 48), return_all_layers=True)["out"]
    out.square().sum().backward()
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trainable
    assert [n for n in trainable if model.get_parameter(n).grad is None] == []


@pytest.mark.parametrize("kind", ["segmenter", "convnext"])
def test_drop_path_acts_in_training_only(kind: str) -> None:
    adapter = head(kind, drop_path_rate=0.5)
    model = MultiViT(adapters("rgb"), {"out": adapter}, **ENCODER)
    x = torch.randn(8, 3, 32, 32)
    torch.manual_seed(0)
    with torch.no_grad():
        trained = [model.train()(x)["out"] for _ in range(2)]
        evaluated = [model.eval()(x)["out"] for _ in range(2)]
    assert not torch.equal(*trained)
    assert torch.equal(*evaluated)
