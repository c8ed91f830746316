from fractions import Fraction
from math import floor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from multimae.images.views import View, interpolate, nearest
from multimae.specs.modalities import Modality
from tests.support.image_folders import MODALITIES, RGB, SIZE, message_of
from utils.data.dense_transforms import DepthTrainTransform
from utils.data.transforms import EvalTransform, TrainTransform

boxes = st.tuples(st.integers(0, 20), st.integers(0, 20), st.integers(1, 20), st.integers(1, 32))


@settings(max_examples=60, deadline=None)
@given(box=boxes, out=st.tuples(st.integers(1, 60), st.integers(1, 60)))
def test_nearest_selects_the_pixel_at_the_centre(box, out):
    array = np.arange(40 * 52).reshape(40, 52)
    top, left, height, width = box
    view = View((40, 52), top, left, height, width)
    rows = [floor(top + Fraction(2 * i + 1, 2) * height / out[0]) for i in range(out[0])]
    columns = [floor(left + Fraction(2 * i + 1, 2) * width / out[1]) for i in range(out[1])]
    np.testing.assert_array_equal(nearest(array, view, out), array[np.ix_(rows, columns)])
    mirrored = nearest(array, view, out, flip=True)
    np.testing.assert_array_equal(mirrored, array[np.ix_(rows, columns[::-1])])


@pytest.mark.parametrize("out", [(16, 16), (32, 64), (128, 8)])
@pytest.mark.parametrize("box", [(0, 0, 40, 52), (3, 7, 31, 29), (11, 2, 5, 50)])
def test_nearest_equals_pillow(box, out):
    array = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    top, left, height, width = box
    crop = Image.fromarray(array).crop((left, top, left + width, top + height))
    expected = crop.resize(out[::-1], Image.Resampling.NEAREST)
    result = nearest(array, View(SIZE, *box), out)
    np.testing.assert_array_equal(result, np.asarray(expected))


@pytest.mark.parametrize("name", ["bicubic", "bilinear"])
@pytest.mark.parametrize("channels", [1, 3])
def test_interpolation_equals_torchvisions_resized_crop(name, channels):
    shape = SIZE if channels == 1 else (*SIZE, 3)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
    expected = F.resized_crop(image, 3, 7, 31, 29, [24, 48], F.InterpolationMode(name))
    result = interpolate(image, View(SIZE, 3, 7, 31, 29), (24, 48), Image.Resampling[name.upper()])
    np.testing.assert_array_equal(result, np.asarray(expected))


def test_train_transform_draws_as_torchvision():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8))
    bicubic = F.InterpolationMode.BICUBIC
    theirs = v2.RandomResizedCrop(32, (0.2, 1.0), (3 / 4, 4 / 3), bicubic)
    ours = TrainTransform([RGB], 32, hflip=0.0)
    for seed in range(5):
        torch.manual_seed(seed)
        expected = F.pil_to_tensor(theirs(image))
        torch.manual_seed(seed)
        torch.testing.assert_close(ours({"rgb": image})["rgb"], expected, rtol=0, atol=0)


def coordinate_rows():
    return [
        Modality("fine", num_channels=1, max_value=65535.0, interpolation="nearest"),
        Modality("other", num_channels=1, max_value=65535.0, interpolation="nearest"),
        Modality("coarse", num_channels=1, max_value=65535.0, interpolation="nearest"),
        Modality("ramp", num_channels=1, max_value=65535.0, interpolation="bicubic"),
        Modality(
            "ids",
            "labels",
            num_classes=256,
            interpolation="nearest",
            loss="cross_entropy",
            stride=4,
        ),
    ]


@pytest.mark.parametrize("transform", [TrainTransform, EvalTransform])
def test_modalities_stay_aligned(transform):
    h, w = 160, 200
    block = np.arange(40 * 50, dtype=np.uint16).reshape(40, 50)  # stored at 1/4
    column = np.tile(np.arange(w, dtype=np.uint16), (h, 1))
    pixels = {
        "fine": block.repeat(4, 0).repeat(4, 1),
        "other": column,
        "coarse": block,
        "ramp": column * 100,
        "ids": (block % 256).astype(np.uint8),
    }
    cut = transform(coordinate_rows(), (64, 96))
    flips = 0
    for seed in range(20):
        torch.manual_seed(seed)
        out = {k: v.to(torch.float64) for k, v in cut(pixels).items()}
        assert torch.equal(out["fine"], out["coarse"])
        # Interpolation sees pixel centres: column c stands for positions c..c+1.
        inner = (out["ramp"] / 100 - out["other"])[..., 2:-2]
        assert inner.abs().max() < 1.0
        flips += bool(out["other"][0, 0, 0] > out["other"][0, 0, -1])
        assert out["ids"].shape == (16, 24)
        # A stride-4 pixel's centre lies on the corner of the 4 full-size pixels around it.
        around = torch.stack([out["fine"][0, i::4, j::4] % 256 for i in (1, 2) for j in (1, 2)])
        assert (around == out["ids"]).any(0).all()
    assert (0 < flips < 20) if transform is TrainTransform else flips == 0


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), stored=st.sampled_from([(40, 52), (20, 26), (10, 13)]))
def test_labels_and_depth_are_not_interpolated(seed, stored):
    rng = np.random.default_rng(seed)
    pixels = {
        "rgb": Image.new("RGB", SIZE[::-1]),
        "depth": rng.choice(np.array([3, 700, 65535], np.uint16), SIZE),
        "semseg": rng.choice(np.array([0, 17, 40], np.uint8), stored),
    }
    torch.manual_seed(seed)
    out = TrainTransform(MODALITIES, 48)(pixels)
    assert out["semseg"].shape == (12, 12) and out["semseg"].dtype == torch.uint8
    assert out["depth"].shape == (1, 48, 48) and out["depth"].dtype == torch.uint16
    assert set(out["semseg"].flatten().tolist()) <= {0, 17, 40}
    assert set(out["depth"].flatten().tolist()) <= {3, 700, 65535}


def test_flip_negates_the_declared_channels():
    row = Modality("normals", interpolation="nearest", hflip_negate=(0,), loss="l1")
    array = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    plain = EvalTransform([row], 16)({"normals": array})["normals"]
    mirrored = TrainTransform([row], 16, (1.0, 1.0), (1.0, 1.0), hflip=1.0)({"normals": array})
    expected = plain.flip(-1)
    expected[0] = 255 - expected[0]
    assert torch.equal(mirrored["normals"], expected)


def test_sixteen_bit_interpolation_keeps_precision():
    row = Modality("range", num_channels=1, max_value=65535.0, interpolation="bilinear")
    ramp = np.tile(np.arange(64, dtype=np.uint16) * 1001, (64, 1))
    out = EvalTransform([row], 32)({"range": ramp})["range"].float()
    torch.testing.assert_close(
        out[0, 0, 1:-1], (torch.arange(1, 31) * 2 + 0.5) * 1001, atol=1, rtol=0
    )


def test_four_channels_are_resampled_independently():
    row = Modality("nir", num_channels=4)
    array = np.random.default_rng(0).integers(0, 256, (32, 32, 4), dtype=np.uint8)
    array[..., 3] = 0  # as alpha it would erase the others
    out = EvalTransform([row], 16)({"nir": array})["nir"]
    alone = interpolate(
        Image.fromarray(array[..., 0].copy()),
        View((32, 32), 0, 0, 32, 32),
        (16, 16),
        Image.Resampling.BICUBIC,
    )
    assert (out[0].int() - torch.from_numpy(alone.astype(np.int32))).abs().max() <= 1
    assert out.shape == (4, 16, 16) and out[3].max() == 0


@pytest.mark.parametrize(
    ("stored", "size", "view"),
    [
        ((100, 160), (32, 32), (0, 30, 100, 100)),
        ((160, 100), (32, 32), (30, 0, 100, 100)),
        ((100, 160), (32, 64), (10, 0, 80, 160)),
        ((100, 200), (32, 64), (0, 0, 100, 200)),
    ],
)
def test_eval_view_is_the_centre_crop(stored, size, view):
    assert EvalTransform([RGB], size).draw_view(stored)[1:5] == view


def test_colour_augmentation_is_the_published_one():
    """SPEC section 6: jitter with probability 0.5, then grey with probability 0.3."""
    array = np.empty((16, 16, 3), np.uint8)
    array[:] = (180, 90, 60)
    transform = DepthTrainTransform([RGB], 16, colour=True)
    changed, greys = 0, 0
    torch.manual_seed(0)
    for _ in range(1000):
        out = transform({"rgb": Image.fromarray(array)})["rgb"][:, 0, 0].tolist()
        grey = out[0] == out[1] == out[2]
        greys += grey
        changed += out not in ([180, 90, 60], [113] * 3)  # grey, but not jittered
    assert 0.45 < changed / 1000 < 0.55 and 0.26 < greys / 1000 < 0.34
    (jitter,) = transform.colour.transforms[0].transforms
    expected = [(0.8745, 1.1255), (0.6, 1.4), (0.5, 1.5), (-0.2, 0.2)]
    ranges = [jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue]
    np.testing.assert_allclose(ranges, expected)


def test_input_size_must_be_a_multiple_of_the_stride():
    assert "stride 4 of modality 'semseg'" in message_of(TrainTransform, MODALITIES, (32, 34))
