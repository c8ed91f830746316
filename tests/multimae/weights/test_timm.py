"""The RGB encoder in timm: equal features, with every way to create and load a model."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from multimae import ModelSpec, MultiMAE, MultiViT, make_table, save_model
from multimae.specs.heads import HeadSpec, LinearOptions
from multimae.specs.modalities import Modality
from multimae.weights.timm_models import checkpoint_filter_fn, from_multimae
from tests.support.golden import assert_close

REPO = Path(__file__).parents[3]
SHIPPED = REPO / "weights" / "multimae-tiny_rooms.safetensors"
TINY = "multimae_tiny_patch16_224"
TABLE = make_table({"rgb": {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}})
ROWS = (TABLE["rgb"], TABLE["depth"])
CLASSES = Modality("kind", kind="labels", num_classes=7, interpolation="nearest",
                   loss="cross_entropy")  # fmt: skip


@pytest.fixture(scope="module")
def model() -> MultiMAE:
    """Every parameter random, biases, norms and positions too."""
    torch.manual_seed(0)
    spec = ModelSpec("pretrain_multimae_tiny", ROWS, ROWS, image_size=64, crop_pct=0.8)
    return randomized(MultiMAE.from_spec(spec))


@pytest.fixture(scope="module")
def path(model: MultiMAE, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("timm") / "multimae.safetensors"
    save_model(model.state_dict(), model.spec, path)
    return path


def randomized(model: MultiMAE) -> MultiMAE:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    return model.eval()


@torch.no_grad()
def ours(model: MultiMAE, image: Tensor) -> Tensor:
    """Tokens in timm's order: the global token first."""
    tokens = model.encode_tokens(model.embed(image)[0])
    return torch.cat([tokens[:, -1:], tokens[:, :-1]], dim=1)


def test_models_are_registered() -> None:
    names = [f"multimae_{size}_patch16_224" for size in ("base", "large", "small", "tiny")]
    assert timm.list_models("*multimae*") == timm.list_models(module="timm_models") == names
    vit = timm.create_model("multimae_small_patch16_224", img_size=32)
    assert (vit.num_features, len(vit.blocks), vit.blocks[0].attn.num_heads) == (384, 12, 6)


def test_library_does_not_import_timm() -> None:
    code = "import multimae, sys; sys.exit('timm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPO).returncode == 0


@pytest.mark.parametrize("size", [(64, 64), (96, 48), (32, 32)])
@pytest.mark.parametrize("dynamic", [False, True])
def test_features_equal_at_any_size(
    model: MultiMAE, path: Path, size: tuple[int, int], dynamic: bool
) -> None:
    vit = timm.create_model(
        TINY, img_size=64 if dynamic else size, dynamic_img_size=dynamic, checkpoint_path=path
    ).eval()
    image = torch.randn(2, 3, *size)
    with torch.no_grad():
        assert_close(vit.forward_features(image), ours(model, image))
        assert_close(vit(image), model.encode(image, pool="mean"))
        vit.reset_classifier(0, global_pool="token")
        assert_close(vit(image), model.encode(image, pool="global"))


def test_set_input_size_resizes_positions_as_multimae(model: MultiMAE, path: Path) -> None:
    vit = timm.create_model(TINY, img_size=64, checkpoint_path=path).eval()
    vit.set_input_size(img_size=(32, 80))
    image = torch.randn(1, 3, 32, 80)
    with torch.no_grad():
        assert_close(vit.forward_features(image), ours(model, image))


def test_intermediate_layers(model: MultiMAE, path: Path) -> None:
    image = torch.randn(1, 3, 64, 32)
    encoding = model.encode(image, layers=[2, 5, 11])
    expected = [encoding.feature_map("rgb", layer) for layer in range(3)]
    vit = timm.create_model(TINY, img_size=(64, 32), checkpoint_path=path).eval()
    features = timm.create_model(
        TINY,
        img_size=(64, 32),
        features_only=True,
        out_indices=[2, 5, 11],
        pretrained=True,
        pretrained_cfg_overlay={"file": str(path)},
    ).eval()
    assert features.feature_info.reduction() == [16, 16, 16]
    with torch.no_grad():
        by_method = vit.forward_intermediates(image, indices=[2, 5, 11], intermediates_only=True)
        for a, b, c in zip(by_method, features(image), expected, strict=True):
            assert_close(a, c)
            assert_close(b, c)


def test_spec_sets_size_and_normalisation(model: MultiMAE, path: Path) -> None:
    image = torch.randn(1, 3, 64, 64)
    sources: list[Any] = [model, path, str(path)]
    for source in sources:
        vit = from_multimae(source)
        config = timm.data.resolve_model_data_config(vit)
        assert config["input_size"] == (3, 64, 64) and config["crop_pct"] == 0.8
        assert config["mean"] == (0.1, 0.2, 0.3) and config["std"] == (0.4, 0.5, 0.6)
        with torch.no_grad():
            assert_close(vit.forward_features(image), ours(model, image))
    default = timm.data.resolve_model_data_config(timm.create_model(TINY, img_size=96))
    assert default["input_size"] == (3, 96, 96) and default["interpolation"] == "bicubic"
    assert default["mean"] == (0.485, 0.456, 0.406) and default["std"] == (0.229, 0.224, 0.225)
    assert from_multimae(path, img_size=96, num_classes=5)(torch.zeros(1, 3, 96, 96)).shape[1] == 5


def test_the_shipped_weights() -> None:
    model = MultiViT.from_pretrained(SHIPPED)
    vit = timm.create_model(TINY, img_size=128, num_classes=0, checkpoint_path=SHIPPED).eval()
    image = torch.randn(1, 3, 128, 128)
    with torch.no_grad():
        assert_close(vit.forward_features(image), ours(model, image))


@pytest.mark.parametrize("mean", [True, False])
def test_fine_tuned_classifier_is_loaded(mean: bool, tmp_path: Path) -> None:
    head = HeadSpec("kind", CLASSES, 7, LinearOptions(use_mean_pooling=mean))
    model = randomized(
        MultiViT.from_spec(ModelSpec("multivit_tiny", ROWS[:1], image_size=32, heads=(head,)))
    )
    save_model(model.state_dict(), model.spec, path := tmp_path / "classifier.safetensors")
    pool = "avg" if mean else "token"
    vit = timm.create_model(
        TINY, img_size=32, num_classes=7, global_pool=pool, checkpoint_path=path
    ).eval()
    image = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        assert_close(vit(image), model(image)["kind"])  # type: ignore[call-overload]
    other = timm.create_model(TINY, img_size=32, num_classes=3, checkpoint_path=path)
    assert other(image).shape == (3, 3)


def test_new_classifier_has_a_final_norm() -> None:
    vit = timm.create_model(TINY, img_size=32)
    assert isinstance(vit.fc_norm, torch.nn.Identity) and not vit.pool_include_prefix
    vit.reset_classifier(4)
    assert isinstance(vit.fc_norm, torch.nn.LayerNorm) and vit.pool_include_prefix
    vit.reset_classifier(0)
    assert isinstance(vit.fc_norm, torch.nn.Identity) and not vit.pool_include_prefix


def test_timm_state_dict_round_trip(path: Path) -> None:
    vit = timm.create_model(TINY, img_size=64, num_classes=4, checkpoint_path=path)
    again = timm.create_model(TINY, img_size=64, num_classes=4)
    assert not again.pos_embed.requires_grad
    again.load_state_dict(checkpoint_filter_fn(vit.state_dict(), again))
    assert all(torch.equal(a, b) for a, b in zip(vit.parameters(), again.parameters(), strict=True))


def without_rgb() -> None:
    from_multimae(MultiMAE.from_spec(ModelSpec("multivit_tiny", ROWS[1:])))


def unregistered() -> None:
    from_multimae(MultiMAE.from_spec(ModelSpec("multivit_nano", ROWS)))


def several_global_tokens() -> None:
    spec = ModelSpec("multivit_tiny", ROWS, image_size=32, num_global_tokens=2)
    from_multimae(MultiMAE.from_spec(spec))


def other_weights() -> None:
    checkpoint_filter_fn({"weight": torch.zeros(1)}, timm.create_model(TINY, img_size=32))


@pytest.mark.parametrize(
    ("use", "expected"),
    [
        (without_rgb, "inputs depth has no timm model: there are multimae_base"),
        (unregistered, "multivit_nano with inputs rgb, depth has no timm model"),
        (several_global_tokens, "2 global tokens but a ViT has one cls_token"),
        (other_weights, "not the weights of a MultiMAE"),
    ],
)
def test_models_without_timm_equivalent_are_errors(use: Callable[[], None], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        use()
