import hashlib
import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch
from einops import rearrange
from PIL import Image, ImageDraw
from torch import Tensor

from multimae.plotting.colours import MASK_GREY, VOID_GREY, label_palette, scalar_colours
from multimae.plotting.drawing import draw_legend
from multimae.plotting.grids import reconstruction_grid
from multimae.plotting.overlays import NO_CLASS, blend_labels, named_overlay
from multimae.plotting.pictures import to_picture, unnormalize_patches
from multimae.specs.modalities import IMAGENET_MEAN, IMAGENET_STD, Modality, make_table

TABLE = make_table(
    {
        "semseg": {"num_classes": 5, "class_names": ["void", "wall", "floor", "bed", "door"]},
        "normals": {
            "loss": "l1",
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
            "interpolation": "nearest",
            "plot": "normals",
        },
        "bands": {"num_channels": 5},
        "parts": {
            "kind": "labels",
            "num_classes": 3,
            "loss": "cross_entropy",
            "interpolation": "nearest",
        },
    }
)


def to_model_space(rgb: Tensor) -> Tensor:
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    return (rgb - mean) / std


# --- colours


def test_legends_hold_true_and_predicted_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    listed: list[list[int]] = []

    def note(m: Modality, ids: npt.NDArray[np.integer], *geometry: int) -> Image.Image:
        listed.append(np.unique(ids).tolist())
        return draw_legend(m, ids, *geometry)

    monkeypatch.setattr("multimae.plotting.grids.draw_legend", note)
    m = replace(TABLE["parts"], name="labels", num_classes=6)
    truth = torch.full((3, 16, 16), 2)
    truth[2] = 5  # not shown
    pred = torch.zeros(3, 6, 16, 16)
    pred[:, 4] = 1.0
    for known, classes in ((truth, [2, 4]), (None, [4])):
        shown = {} if known is None else {"labels": known}
        reconstruction_grid(shown, {"labels": pred}, {}, [m], 16, max_rows=2)
        assert listed[-1] == classes


@pytest.mark.parametrize(("side", "fits"), [(64, False), (256, True)])
def test_titles_stay_within_their_columns(
    side: int, fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", lambda *args, **_: written.append(args[2]))
    rgb = torch.zeros(1, 3, side, side)
    reconstruction_grid({"rgb": rgb}, {"rgb": rgb}, {}, [TABLE["rgb"]], 16)
    subtitles = {"visible patches", "filled in", "all patches"}
    assert "prediction" in written and subtitles & set(written) == (subtitles if fits else set())


def test_names_are_written_where_there_is_room() -> None:
    names = ("wide", "thin")
    m = replace(TABLE["parts"], num_classes=2, class_names=names)
    photo = np.full((32, 32, 3), 128, np.uint8)
    ids = np.zeros((32, 32), np.int64)
    ids[:, 31] = 1
    large = named_overlay(photo, ids, m)
    assert large.shape == (224, 224, 3)
    plain = blend_labels(photo.repeat(7, 0).repeat(7, 1), ids, m)
    rows, columns = np.nonzero((large != plain).any(axis=2))
    assert 80 < rows.mean() < 144 and 80 < columns.mean() < 144  # "wide", in the middle
    assert len(rows) and columns.max() < 217
    ids[:] = NO_CLASS
    assert np.array_equal(named_overlay(photo, ids, m), blend_labels(large * 0 + 128, ids, m))


def test_scalar_colours_get_lighter_and_clip() -> None:
    picture = scalar_colours(np.linspace(-1.0, 2.0, 301)[None], 0.0, 1.0)
    assert picture.shape == (1, 301, 3) and picture.dtype == np.uint8
    luminance = picture[0].astype(float) @ [0.2126, 0.7152, 0.0722]
    assert np.all(np.diff(luminance) >= -1.0)
    assert luminance[0] < 5 and luminance[-1] > 230
    assert np.array_equal(picture[0, 0], picture[0, 100])
    assert np.array_equal(picture[0, -1], picture[0, 200])


def test_scalar_colours_of_nan_and_constant_maps() -> None:
    picture = scalar_colours(np.array([[math.nan, 3.0]]), 3.0, 3.0)
    assert picture[0, 0].tolist() == list(VOID_GREY)
    assert picture[0, 1].tolist() == [0, 0, 4]


def test_palette_is_stable_and_distinct() -> None:
    palette = label_palette(134)
    assert palette.shape == (134, 3) and palette.dtype == np.uint8
    assert palette[0].tolist() == list(VOID_GREY)
    assert np.array_equal(palette[:20], label_palette(20))
    distance = np.abs(palette[:, None].astype(int) - palette[None]).sum(-1)
    np.fill_diagonal(distance, 999)
    assert distance.min() >= 12
    assert distance[:41, :41].min() >= 24
    # A class keeps its colour between versions and machines, so that pictures compare.
    assert hashlib.sha256(label_palette(256).tobytes()).hexdigest() == (
        "a84d3734b6ab1d352760841892bb1a75c998a6f9bec6ffbcac75f3924c3f0f2d"
    )
    ramp = scalar_colours(np.linspace(-0.25, 1.25, 611)[None], 0.0, 1.0)
    assert hashlib.sha256(ramp.tobytes()).hexdigest() == (
        "f8332a31f45030cfcf1fb5fd6deb144dba8182d7b62d4296f68fa6ff292e3c79"
    )


def test_palette_repeats_beyond_256() -> None:
    assert np.array_equal(label_palette(300)[256:], label_palette(44))


# --- tensors to pictures


def test_rgb_picture_is_the_image() -> None:
    rgb = torch.randint(0, 256, (3, 6, 8), dtype=torch.uint8)
    picture = to_picture(to_model_space(rgb / 255), TABLE["rgb"])
    assert np.array_equal(picture, rgb.permute(1, 2, 0).numpy())


def test_scalar_prediction_shares_the_scale_of_the_truth() -> None:
    truth = torch.linspace(-1, 1, 100).view(1, 10, 10)
    same = to_picture(truth, TABLE["depth"], truth)
    assert np.array_equal(to_picture(truth, TABLE["depth"]), same)
    squeezed = to_picture(truth * 0.1, TABLE["depth"], truth)
    assert np.ptp(squeezed[..., 0].astype(int)) < np.ptp(same[..., 0].astype(int)) / 2
    assert to_picture(truth + 9, TABLE["depth"], truth).reshape(-1, 3).std(0).max() == 0


def test_label_ids_and_logits_give_the_same_full_size_picture() -> None:
    ids = torch.tensor([[0, 1], [2, 4]])
    logits = torch.nn.functional.one_hot(ids, 5).permute(2, 0, 1).bfloat16()
    picture = to_picture(ids, TABLE["semseg"])
    assert picture.shape == (8, 8, 3)
    assert np.array_equal(picture, to_picture(logits, TABLE["semseg"]))
    assert np.array_equal(picture[::4, ::4], label_palette(5)[ids.numpy()])


def test_out_of_range_labels_are_drawn_as_void() -> None:
    picture = to_picture(torch.tensor([[255, -1]]), TABLE["semseg"])
    assert (picture == VOID_GREY).all()


def test_normals_are_normalised() -> None:
    up = torch.tensor([0.0, 0.0, 1.0]).view(3, 1, 1)
    assert to_picture(0.3 * up, TABLE["normals"])[0, 0].tolist() == [128, 128, 255]
    assert to_picture(0.0 * up, TABLE["normals"])[0, 0].tolist() == [128, 128, 128]


@pytest.mark.parametrize("name", list(TABLE))
def test_every_modality_of_the_table_draws(name: str) -> None:
    m = TABLE[name]
    pred = torch.randn(m.out_channels, 4, 6)
    truth = torch.randint(0, m.num_classes, (4, 6)) if m.is_labels else torch.randn_like(pred)
    assert to_picture(pred, m, truth).shape == (4 * m.stride, 6 * m.stride, 3)


def test_grey_image_with_robust_normalisation() -> None:
    m = Modality("thermal", num_channels=1, normalization="robust")
    picture = to_picture(torch.linspace(-3, 5, 64).view(1, 8, 8), m)
    assert picture.min() == 0 and picture.max() == 255
    assert np.array_equal(picture[..., 0], picture[..., 2])


def test_unnormalize_patches_inverts_the_norm_pix_target() -> None:
    truth = torch.randn(3, 8, 12)
    patches = rearrange(truth, "c (h p) (w q) -> (h w) (c p q)", p=4, q=4)
    target = (patches - patches.mean(1, True)) / (patches.var(1, keepdim=True) + 1e-6).sqrt()
    target = rearrange(target, "(h w) (c p q) -> c (h p) (w q)", h=2, p=4, q=4)
    torch.testing.assert_close(unnormalize_patches(target, truth, 4), truth)


# --- grid


def batch(size: tuple[int, int], count: int = 3) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    h, w = size
    truth = {
        "rgb": to_model_space(torch.full((count, 3, h, w), 0.5)),
        "depth": torch.randn(count, 1, h, w),
        "semseg": torch.randint(0, 5, (count, h // 4, w // 4)),
        "normals": torch.randn(count, 3, h, w),
    }
    preds = {
        "rgb": to_model_space(torch.ones(count, 3, h, w)),
        "norm_rgb": torch.randn(count, 3, h, w),
        "depth": torch.randn(count, 1, h, w),
        "semseg": torch.randn(count, 5, h // 4, w // 4),
        "normals": torch.randn(count, 3, h, w),
    }
    return truth, preds


def test_grid_pastes_visible_patches_and_hides_masked_ones() -> None:
    size = (224, 256)
    truth, preds = batch(size, count=1)
    mask = torch.ones(1, 14 * 16)
    mask[0, 16 + 2] = 0  # the patch in row 1, column 2
    picture = np.asarray(reconstruction_grid(truth, preds, {"rgb": mask}, [TABLE["rgb"]], 16))
    grey = (picture == MASK_GREY).all(-1)
    top, left = np.argwhere(grey)[0]
    assert grey.sum() == size[0] * size[1] - 16 * 16
    cells = [
        picture[top : top + size[0], x : x + size[1]]
        for x in (left + c * (size[1] + 4) for c in range(4))
    ]
    inside, outside = (slice(16, 32), slice(32, 48)), (slice(32, None), slice(None))
    for cell, (seen, hidden) in zip(
        cells, [(128, MASK_GREY), (128, 255), (255, 255), (128, 128)], strict=True
    ):
        assert (cell[inside] == seen).all()
        assert (cell[outside] == hidden).all()


def test_grid_grows_with_samples_and_modalities_and_upscales_small_images() -> None:
    truth, preds = batch((32, 64))
    masks = {name: torch.ones(3, 2 * 4) for name in ("rgb", "depth", "semseg")}
    names = ["rgb", "norm_rgb", "depth", "semseg", "normals"]

    def size(count: int, rows: list[str]) -> tuple[int, int]:
        shown = [TABLE[name] for name in rows]
        return reconstruction_grid(truth, preds, masks, shown, 16, max_rows=count).size

    one, two, three = (size(n, ["rgb", "depth"]) for n in (1, 2, 3))
    assert one[0] > 4 * 2 * 64
    assert two[0] > 2 * one[0] - 50
    assert three[0] == two[0] and three[1] - two[1] > 2 * 2 * 32
    assert size(9, ["rgb", "depth"]) == three
    assert size(1, names)[1] > one[1] + 3 * 2 * 32


def test_empty_grid_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one sample"):
        reconstruction_grid({}, {}, {}, [], 16)
