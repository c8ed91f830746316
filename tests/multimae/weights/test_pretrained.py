"""The Python API: from_pretrained, save_pretrained, encode, attention, reconstruct, predict."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from multimae import CheckpointError, ModelSpec, MultiMAE, MultiViT
from multimae.images.preprocess import prepare
from multimae.images.readers import read
from multimae.inference.encode import Encoding
from multimae.plotting import attention_grid
from multimae.specs.class_names import COCO_CLASSES
from multimae.specs.modalities import default_table, make_table, select
from multimae.specs.registry import DecoderOptions
from multimae.weights.guess import guess_spec
from multimae.weights.pretrained import CONFIG, WEIGHTS
from tests.support.scenes import write_scene
from utils.data.transforms import EvalTransform

SHIPPED = Path(__file__).parents[3] / "weights"

TABLE = make_table({"semseg": {"num_classes": 5}, "depth": {"normalization": "robust"}})
ROWS = tuple(select(TABLE, ["rgb", "depth", "semseg"]))
SPEC = ModelSpec(
    "pretrain_multimae_nano",
    ROWS,
    (*ROWS, *select(TABLE, ["norm_rgb"])),
    patch_size=8,
    image_size=32,
    num_global_tokens=2,
    decoder=DecoderOptions(32, 1, 4),
)
NAMES = [m.name for m in ROWS]


@pytest.fixture(scope="module")
def model() -> MultiMAE:
    torch.manual_seed(0)
    return MultiMAE.from_spec(SPEC).eval()


@pytest.fixture
def sample(tmp_path: Path) -> dict[str, Path]:
    write_scene(tmp_path, "a/000", seed=3)
    return {name: tmp_path / name / f"a/000.{'jpg' if name == 'rgb' else 'png'}" for name in NAMES}


def same(a: MultiMAE, b: MultiMAE) -> bool:
    mine, theirs = a.state_dict(), b.state_dict()
    return list(mine) == list(theirs) and all(torch.equal(mine[k], theirs[k]) for k in mine)


# --- saving and loading


def test_save_pretrained_round_trip_is_bit_equal(model: MultiMAE, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "folder")
    assert sorted(p.name for p in (tmp_path / "folder").iterdir()) == [
        "README.md",
        CONFIG,
        WEIGHTS,
    ]
    for location in (tmp_path / "folder", str(tmp_path / "folder"), tmp_path / "folder" / WEIGHTS):
        loaded = MultiMAE.from_pretrained(location)
        assert same(loaded, model) and loaded.spec == SPEC and not loaded.training
    config = json.loads((tmp_path / "folder" / CONFIG).read_text())
    assert config["modalities"]["rgb"]["mean"] == [0.485, 0.456, 0.406]
    assert config["modalities"]["depth"]["normalization"] == "robust"
    card = (tmp_path / "folder" / "README.md").read_text()
    assert "library_name: multimae" in card and "from_pretrained" in card


def test_config_json_overrides_the_header(model: MultiMAE, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    raw = json.loads((tmp_path / CONFIG).read_text())
    raw["modalities"]["semseg"]["class_names"] = ["a", "b", "c", "d", "e"]
    (tmp_path / CONFIG).write_text(json.dumps(raw))
    loaded = MultiMAE.from_pretrained(tmp_path)
    assert loaded.spec.inputs[2].class_names == ("a", "b", "c", "d", "e")
    (tmp_path / CONFIG).write_text("{}")
    with pytest.raises(CheckpointError, match=r"config\.json: not a description"):
        MultiMAE.from_pretrained(tmp_path)


def test_from_pretrained_downloads_from_the_hub(
    model: MultiMAE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.save_pretrained(tmp_path)
    asked: list[tuple[str, str, Any]] = []

    def download(repository: str, name: str, **options: Any) -> str:
        asked.append((repository, name, options))
        return str(tmp_path / name)

    monkeypatch.setattr("multimae.weights.model_files.hf_hub_download", download)
    loaded = MultiMAE.from_pretrained("somebody/multimae", revision="v1")
    assert same(loaded, model)
    assert {(r, n) for r, n, _ in asked} == {("somebody/multimae", n) for n in (WEIGHTS, CONFIG)}
    assert all(options == {"revision": "v1"} for _, _, options in asked)


def test_pushing_uploads_weights_config_and_card(
    model: MultiMAE, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploads: list[tuple[str, list[str]]] = []

    class Api:
        def __init__(self, token: str | None = None) -> None: ...

        def create_repo(self, repo_id: str, **_: Any) -> Any:
            return type("Repository", (), {"repo_id": repo_id})

        def upload_folder(self, *, repo_id: str, folder_path: Path, **_: Any) -> str:
            uploads.append((repo_id, sorted(p.name for p in Path(folder_path).iterdir())))
            return "url"

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Api)
    assert model.push_to_hub("somebody/multimae") == "url"
    assert uploads == [("somebody/multimae", ["README.md", CONFIG, WEIGHTS])]


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("nowhere.safetensors", "no such file"),
        ("some/where/nowhere.pth", "no such file"),
        ("no/such/repository", "not a file or folder"),
        ("not a name", "not a file or folder"),
        (f"{SHIPPED}/multimae-tiny_rooms.safetensor", "did you mean .*tiny_rooms.safetensors"),
        (f"{SHIPPED}/multimae-tiny_room.safetensors", "did you mean .*tiny_rooms.safetensors"),
    ],
)
def test_missing_locations_are_errors(
    location: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match=expected):
        MultiMAE.from_pretrained(location)


def test_spec_of_published_layout_is_inferred(tmp_path: Path) -> None:
    """Names and shapes of the published checkpoint (ViT-B), and loading a small one."""
    contract = Path(__file__).parents[2] / "data/contract" / "multimae_b_state_dict.json"
    shapes = json.loads(contract.read_text())
    state = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    spec = guess_spec(state)
    table = default_table()
    assert spec.name == "pretrain_multimae_base" and (spec.patch_size, spec.image_size) == (16, 224)
    assert [m.name for m in spec.inputs] == ["rgb", "depth", "semseg"]
    semseg = dataclasses.replace(table["semseg"], class_names=COCO_CLASSES)
    assert spec.inputs[0] == table["rgb"] and spec.inputs[2] == semseg
    assert spec.inputs[1].normalization == "robust" and spec.inputs[1].robust_unit == 2**16
    with torch.device("meta"):
        built = MultiMAE.from_spec(spec).state_dict()
    assert {k: list(v.shape) for k, v in built.items()} == shapes

    original = MultiMAE.from_spec(replace(SPEC, outputs=ROWS, decoder=DecoderOptions()))
    torch.save({"model": original.state_dict(), "epoch": 3}, tmp_path / "published.pth")
    assert same(MultiMAE.from_pretrained(tmp_path / "published.pth"), original)


def test_spec_that_cannot_be_inferred_is_an_error(tmp_path: Path) -> None:
    table = make_table({"thermal": {"num_channels": 1}})
    rows = tuple(select(table, ["rgb", "thermal"]))
    spec = ModelSpec("pretrain_multimae_nano", rows, rows, patch_size=8, image_size=32)
    original = MultiMAE.from_spec(spec)
    path = tmp_path / "mine.pth"
    torch.save({"model": original.state_dict()}, path)
    with pytest.raises(CheckpointError, match=r"'thermal' is no modality.*spec="):
        MultiMAE.from_pretrained(path)
    assert same(MultiMAE.from_pretrained(path, spec=spec), original)


def test_multivit_loads_the_encoder_only(model: MultiMAE, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    vit = MultiViT.from_pretrained(tmp_path)
    assert type(vit) is MultiViT and not vit.output_adapters
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        tokens, _ = model.embed(x)
        assert torch.equal(vit(x), model.encode_tokens(tokens))


def test_model_without_spec_is_an_error() -> None:
    model = MultiMAE(**SPEC.keywords()).eval()
    assert model.encode({"rgb": torch.randn(2, 3, 32, 32)}, pool="mean").shape == (2, 64)
    with pytest.raises(ValueError, match="knows no modalities"):
        model.reconstruct({"rgb": torch.randn(2, 3, 32, 32)})
    assert model.describe(SPEC).spec is SPEC


# --- encode


def test_images_arrays_files_and_tensors_are_equivalent(
    model: MultiMAE, sample: dict[str, Path]
) -> None:
    pixels = {m.name: read(sample[m.name], m) for m in ROWS}
    x = EvalTransform(ROWS, 32)(pixels)
    x = prepare({name: value[None] for name, value in x.items()}, ROWS)
    given: list[Any] = [
        x,
        dict(sample),
        {name: str(path) for name, path in sample.items()},
        {name: Image.open(path) for name, path in sample.items()},
        {name: np.asarray(Image.open(path)) for name, path in sample.items()},
        {name: [path] for name, path in sample.items()},
    ]
    with torch.no_grad():
        outputs = [model.encode(images, pool="mean") for images in given]
    assert all(torch.equal(outputs[0], other) for other in outputs[1:])
    rgb = model.encode(sample["rgb"], pool="mean")
    assert torch.equal(rgb, model.encode({"rgb": sample["rgb"]}, pool="mean"))
    assert rgb.requires_grad


def test_encode_returns_layers_and_feature_maps(model: MultiMAE, sample: dict[str, Path]) -> None:
    images = {name: [path, path] for name, path in sample.items()}
    with torch.no_grad():
        encoding = model.encode(images, layers=2)
        first = model.encode(images, layers=[0])
    assert len(encoding.layers) == 2 and torch.equal(encoding.layers[0], first.layers[0])
    assert encoding.layers[0].shape == (2, 3 * 16 + 2, 64)
    assert encoding.feature_map("depth").shape == (2, 64, 4, 4)
    assert torch.equal(encoding.feature_map("depth")[0, :, 1, 2], encoding.tokens("depth")[0, 6])
    assert encoding.global_tokens().shape == (2, 2, 64)
    assert encoding.pooled("mean_global").shape == (2, 2 * 2 * 64)
    for layers in (0, 3, [2], []):
        with pytest.raises(ValueError, match="blocks 0..1"):
            model.encode(images, layers=layers)


def test_encode_pools_tokens() -> None:
    layers = (torch.randn(2, 6, 8), torch.randn(2, 6, 8))  # 4 patches, 2 global tokens
    layout = MultiMAE.from_spec(SPEC).layout({"rgb": (16, 16)})
    encoding = Encoding(layers, layout)
    assert torch.allclose(encoding.pooled(), torch.cat([t[:, :4].mean(1) for t in layers], 1))
    both = Encoding(layers[1:], layout).pooled("mean_global")
    expected = torch.cat([layers[1][:, :4].mean(1), layers[1][:, 4:].mean(1)], 1)
    assert torch.allclose(both, expected)
    scaled = Encoding(tuple(t * torch.rand(2, 6, 1).add(0.5) + 3 for t in layers), layout)
    for pool in ("mean", "global"):
        a, b = (e.pooled(pool, token_norm=True) for e in (scaled, encoding))  # type: ignore[arg-type]
        assert torch.allclose(a, b, atol=1e-3)
    with pytest.raises(ValueError, match="pool must be one of"):
        encoding.pooled("max")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        ({}, "no images.* rgb, depth, semseg"),
        ({"thermal": np.zeros((32, 32), np.uint8)}, "no input 'thermal'"),
        ({"rgb": np.zeros((32, 32), np.uint8)}, r"\(H, W, 3\)"),
        ({"rgb": np.zeros((32, 32, 3), np.float32)}, "float32"),
        ({"depth": np.full((32, 32), -1)}, "values -1..-1"),
        ({"semseg": np.full((32, 32), 9)}, "class id 9"),
        ({"semseg": Image.new("RGB", (32, 32))}, "Map its colours"),
        ({"rgb": Image.new("RGB", (32, 32)), "depth": torch.zeros(1, 1, 32, 32)}, "all modalities"),
        (
            {"rgb": [Image.new("RGB", (32, 32))] * 2, "depth": np.zeros((32, 32), int)},
            "equal length.*2.*1",
        ),
        (
            {"rgb": Image.new("RGB", (32, 32)), "depth": np.zeros((32, 64), np.uint16)},
            "aspect ratios differ",
        ),
        ({"rgb": "nowhere.jpg"}, "nowhere.jpg"),
    ],
)
def test_encode_rejects_mismatched_images(
    model: MultiMAE, images: dict[str, Any], expected: str
) -> None:
    with pytest.raises(ValueError, match=expected):
        model.encode(images)


# --- attention


def test_attention_equals_the_blocks_attention(model: MultiMAE, sample: dict[str, Path]) -> None:
    for layer in (0, -1):
        maps = model.attention(dict(sample), ("depth", 1, 2), layer=layer)
        assert {name: m.shape for name, m in maps.items()} == dict.fromkeys(NAMES, (1, 4, 4))
        total = sum(m.sum() for m in maps.values())
        assert 0 < total < 1 and all((m >= 0).all() for m in maps.values())
    # By hand, for the first block.
    maps = model.attention(dict(sample), ("depth", 1, 2), layer=0)
    with torch.no_grad():
        x, _ = model.embed(model._load(dict(sample)).x)
        x = model.with_global_tokens(x)
        block: Any = model.encoder[0]
        qkv = block.attn.qkv(block.norm1(x))[0].view(-1, 3, 4, 16)
        weights = [(qkv[16 + 6, 0, h] @ qkv[:, 1, h].T / 4).softmax(dim=0) for h in range(4)]
    assert torch.allclose(maps["rgb"].flatten(), torch.stack(weights).mean(0)[:16], atol=1e-6)
    for query in (("depth", 4, 0), ("thermal", 0, 0), ("rgb", 0, -1)):
        with pytest.raises(ValueError, match="no such patch; the grids are rgb 4 x 4"):
            model.attention(dict(sample), query)


def test_attention_picture(model: MultiMAE, sample: dict[str, Path]) -> None:
    maps = {n: m[0].numpy() for n, m in model.attention(dict(sample), ("rgb", 0, 3)).items()}
    pictures = {n: np.full((32, 32, 3), 90, np.uint8) for n in maps}
    image = attention_grid(pictures, maps, ("rgb", 0, 3), caption="block 1")
    array = np.asarray(image)
    frame = (array == (64, 220, 120)).all(axis=-1)
    assert frame.any() and np.argwhere(frame)[:, 1].max() < 20 + 224  # only rgb is marked
    with pytest.raises(ValueError, match="no picture of"):
        attention_grid({}, maps, ("rgb", 0, 0))


# --- reconstruct


def test_reconstruct_equals_forward(model: MultiMAE, sample: dict[str, Path]) -> None:
    shown = {"rgb": np.eye(4, dtype=bool), "depth": "none", "semseg": torch.ones(4, 4).bool()}
    result = model.reconstruct(dict(sample), visible=shown)
    x = model._load(dict(sample)).x
    masks = {"rgb": (~np.eye(4, dtype=bool)), "depth": np.ones((4, 4)), "semseg": np.zeros((4, 4))}
    task_masks = {n: torch.tensor(m).long().flatten()[None] for n, m in masks.items()}
    with torch.no_grad():
        expected, _ = model(x, task_masks=task_masks)
    for name in NAMES:
        assert torch.equal(result.predictions[name], expected[name])
        assert np.array_equal(result.visible[name][0], ~masks[name].astype(bool))
    assert not torch.equal(result.predictions["norm_rgb"], expected["norm_rgb"])  # brought back


def test_reconstruct_respects_visible(model: MultiMAE, sample: dict[str, Path]) -> None:
    images = {name: [path, path, path] for name, path in sample.items()}
    assert sum(v.sum() for v in model.reconstruct(images).visible.values()) == 3 * (48 // 6)
    a, b, c = (model.reconstruct(images, 20, seed=s).visible for s in (1, 1, 2))
    assert all(np.array_equal(a[n], b[n]) for n in NAMES)
    assert not all(np.array_equal(a[n], c[n]) for n in NAMES)
    even = model.reconstruct(images, 24, alphas=1e6).visible
    assert all((v.sum(axis=(1, 2)) == 8).all() for v in even.values())
    one = model.reconstruct(images, 12, alphas={"rgb": 1e6, "depth": 1e-3, "semseg": 1e-3}).visible
    assert (one["rgb"].sum(axis=(1, 2)) == 12).all()
    counted = model.reconstruct(images, {"depth": 5, "rgb": "all"}).visible
    assert [counted[n].sum() for n in NAMES] == [48, 15, 0]


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        ({}, "nothing is visible"),
        ({"rgb": "none", "depth": 0}, "nothing is visible"),
        ({"rgb": "some"}, "'all', 'none', a number"),
        ({"rgb": 17}, "there are 16 patches"),
        ({"rgb": np.ones((2, 2))}, r"patch grid is \(4, 4\)"),
        ({"norm_rgb": "all"}, "norm_rgb not among the inputs"),
        (0, "not in 1..48"),
        (49, "not in 1..48"),
    ],
)
def test_reconstruct_rejects_invalid_visible(
    model: MultiMAE, sample: dict[str, Path], visible: Any, expected: str
) -> None:
    with pytest.raises(ValueError, match=expected):
        model.reconstruct(dict(sample), visible)


def test_values_and_pictures(model: MultiMAE, sample: dict[str, Path]) -> None:
    result = model.reconstruct(dict(sample), 16)
    assert result.values("rgb").shape == (32, 32, 3) and result.values("semseg").shape == (8, 8)
    # Depth uses the ground truth's statistics: a perfect prediction gives the stored values.
    perfect = type(result)(
        SPEC, {**result.predictions, "depth": result.truth["depth"]}, result.truth,
        result.visible, result.raw,
    )  # fmt: skip
    stored = result.raw["depth"][0, 0].numpy()
    assert np.allclose(perfect.values("depth")[..., 0], stored, rtol=1e-4)
    for name in ("rgb", "depth", "semseg", "norm_rgb"):
        pictures = [
            result.picture(name, column)  # type: ignore[arg-type]
            for column in ("input", "masked", "prediction", "truth", "error")
        ]
        assert all(p.shape == (32, 32, 3) and p.dtype == np.uint8 for p in pictures)
        seen = result.visible["rgb" if name == "norm_rgb" else name][0].repeat(8, 0).repeat(8, 1)
        assert np.array_equal(pictures[0][seen], pictures[3][seen])
        assert np.array_equal(pictures[1][~seen], pictures[2][~seen])
    none_wrong = perfect.picture("depth", "error")
    assert len(np.unique(none_wrong.reshape(-1, 3), axis=0)) == 1
    assert result.grid().width > 300


def test_reconstruct_predicts_every_output_from_rgb_alone(
    model: MultiMAE, sample: dict[str, Path]
) -> None:
    result = model.reconstruct(sample["rgb"], {"rgb": "all"})
    assert set(result.truth) == {"rgb", "norm_rgb"} and set(result.visible) == {"rgb"}
    assert result.picture("depth").shape == (32, 32, 3)
    assert result.values("depth").shape == (32, 32, 1)
    with pytest.raises(KeyError):
        result.picture("depth", "truth")
    assert result.grid().height > 300


# --- predict


def test_predict_needs_heads_and_reconstruct_needs_decoders(
    model: MultiMAE, sample: dict[str, Path]
) -> None:
    with pytest.raises(ValueError, match=r"no heads.*reconstruct"):
        model.predict(sample["rgb"])
    vit = MultiViT.from_spec(SPEC)
    with pytest.raises(ValueError, match="no pre-training decoders"):
        vit.reconstruct(sample["rgb"])
