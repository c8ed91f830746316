"""Checks of the pre-training options, and the resulting modality table."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from multimae.specs.modalities import IMAGENET_MEAN
from utils.config import runtime_options
from utils.config.parse import ConfigError, parse_config
from utils.config.pretrain_options import PretrainConfig, PretrainModelOptions
from utils.config.semseg_options import SemsegConfig


def problems_of(argv: list[str]) -> list[str]:
    with pytest.raises(ConfigError) as info:
        parse_config(PretrainConfig, argv)
    return str(info.value).split("\n  - ")[1:]


@pytest.mark.parametrize(
    ("argv", "problem"),
    [
        (["--seed", "-1"], "--seed: -1 is not in [0, inf)"),
        (["--blr", "nan"], "--blr: nan is not in (0, inf)"),
        (["--blr", "inf"], "--blr: inf is not in (0, inf)"),
        (["--opt_betas", "0.9", "1"], "--opt_betas: (0.9, 1.0) is not in [0, 1)"),
        (["--crop_scale", "1", "0.5"], "--crop_scale: the smallest value 1.0 exceeds"),
        (["--task_balancer", "x"], "--task_balancer: expected one of none, uncertainty"),
        (["--model", "pretrain_multimae_bse"], "did you mean pretrain_multimae_base?"),
        (["--model", "multivit_base"], "--model: multivit_base does not mask"),
        (["--decoder_dim", "250"], "--decoder_dim: 250 is not divisible by decoder_num_heads 8"),
        (["--device", "gpu"], "--device: 'gpu' is not a device"),
        (["--start_epoch", "2000"], "--start_epoch: 2000 lies beyond epochs 1600"),
        (["--epochs", "9"], "warmup_epochs: 40 must be less than epochs 9"),
        (
            ["--in_domains", "rgb-dpth"],
            "--in_domains: unknown modality 'dpth'; did you mean depth?",
        ),
        (["--in_domains", "rgb-rgb"], "--in_domains: 'rgb' is named twice"),
        (["--in_domains", ""], "--in_domains: name at least one modality"),
        (["--in_domains", "norm_rgb"], "--in_domains: 'norm_rgb' is a target computed from 'rgb'"),
        (["--out_domains", "x"], "--out_domains: unknown modality 'x'"),
        (["--fp32_output_adapters", "x"], "--fp32_output_adapters: unknown modality 'x'"),
        (["--modalities", "{a: {b: 1}}"], "--modalities: modality 'a': unknown field 'b'"),
        (["--modalities", "{1: {}}"], "--modalities: modality '1': the name must be letters"),
        (["--modalities", "{a: b: c}"], "--modalities: not YAML: line 1"),
        (["--modalities", "{a: {}, a: {}}"], "--modalities: line 1: key 'a' is already on line 1"),
        (["--modalities", "{depth: {stride: 20}}"], "input_size: 224 is not divisible by 20"),
    ],
)
def test_invalid_options_are_errors(argv: list[str], problem: str) -> None:
    assert any(problem in line for line in problems_of(argv)), problems_of(argv)


def test_invalid_modalities_do_not_hide_unknown_names() -> None:
    argv = ["--modalities", "{depth: {x: 1}, new: {}}", "--in_domains", "new-dept"]
    first, second = problems_of(argv)
    assert "unknown field 'x'" in first and "'dept'; did you mean depth?" in second


def test_failed_option_is_not_checked_by_its_default() -> None:
    assert problems_of(["--input_size", "big", "--patch_size", "48"]) == [
        "--input_size: expected whole number, got 'big'"
    ]


def test_flags_change_modalities() -> None:
    argv = ["--standardize_depth", "--no_imagenet_default_mean_and_std"]
    table = parse_config(PretrainConfig, [*argv, "--train_interpolation", "bilinear"]).table()
    assert table["depth"].normalization == "robust"
    assert table["rgb"].interpolation == table["norm_rgb"].interpolation == "bilinear"
    assert table["rgb"].mean == table["norm_rgb"].mean == table["rgb"].std == (0.5,)
    plain = PretrainConfig().table()
    assert plain["depth"].normalization == "mean_std"
    assert plain["rgb"].mean == plain["norm_rgb"].mean == IMAGENET_MEAN


def test_depth_is_divided_in_pretraining_and_not_in_segmentation() -> None:
    """SPEC sections 5 and 6; floats (metres, degrees) and 8-bit values are never divided."""
    rows = "{heat: {num_channels: 1, storage: float, normalization: robust}, range: "
    rows += "{num_channels: 1, max_value: 65535, normalization: robust}}"
    argv = ["--standardize_depth", "--modalities", rows, "--in_domains", "rgb-depth-range-heat"]
    table = parse_config(PretrainConfig, argv).table()
    assert [table[name].robust_unit for name in ("depth", "range", "heat")] == [2**16, 2**16, 1]
    assert PretrainConfig().table()["depth"].robust_unit == 1
    old = parse_config(
        PretrainConfig, ["--standardize_depth", "--modalities", "{depth: {robust_unit: 1}}"]
    )
    assert old.table()["depth"].robust_unit == 1
    segmentation = parse_config(SemsegConfig, argv).table()
    assert segmentation["depth"].robust_unit == segmentation["range"].robust_unit == 1
    assert segmentation["depth"].robust_pixels == "valid"
    published = parse_config(SemsegConfig, ["--depth_stats", "all"])
    assert published.table()["depth"].robust_pixels == "all"


def test_declared_fields_win_over_flags() -> None:
    rows = "{depth: {normalization: mean_std}, rgb: {mean: [0.1]}, norm_rgb: {max_value: 9}}"
    argv = ["--standardize_depth", "--no_imagenet_default_mean_and_std", "--modalities", rows]
    table = parse_config(PretrainConfig, argv).table()
    assert table["depth"].normalization == "mean_std"
    assert table["rgb"].mean == table["norm_rgb"].mean == (0.1,)
    assert table["rgb"].std == (0.5,)
    assert (table["rgb"].max_value, table["norm_rgb"].max_value) == (255.0, 9.0)


def test_output_names() -> None:
    assert PretrainConfig().out_names == ("rgb", "depth", "semseg", "norm_rgb")
    plain = PretrainModelOptions(extra_norm_pix_loss=False)
    assert PretrainConfig(model=plain).out_names == ("rgb", "depth", "semseg")
    assert parse_config(PretrainConfig, ["--out_domains", "depth"]).out_names == ("depth",)
    both = parse_config(PretrainConfig, ["--out_domains", "norm_rgb-rgb"])
    assert both.out_names == ("norm_rgb", "rgb")


def test_new_modality_needs_yaml_only(tmp_path: Path) -> None:
    path = tmp_path / "normals.yaml"
    path.write_text(
        "in_domains: rgb-normals\nout_domains: normals\nmodalities:\n"
        "  normals: {loss: l1, mean: [0.5], std: [0.5], hflip_negate: [0]}\n",
    )
    cfg = parse_config(PretrainConfig, ["--config", str(path)])
    assert cfg.in_names == ("rgb", "normals") and cfg.out_names == ("normals",)
    assert cfg.table()["normals"].hflip_negate == (0,)


@pytest.mark.parametrize(
    ("row", "unit"),
    [("{}", 65536), ("{max_value: 255}", 1), ("{storage: float}", 1), ("{robust_unit: 10}", 10)],
)
def test_standardized_depth_of_16_bits_is_divided_by_2_to_the_16(row: str, unit: float) -> None:
    argv = ["--data_path", "x", "--standardize_depth", "--modalities", f"{{depth: {row}}}"]
    assert parse_config(PretrainConfig, argv).table()["depth"].robust_unit == unit


@pytest.mark.parametrize(
    ("cores", "env", "quota", "expected"),
    [
        (16, {}, "max 100000", 15),
        (96, {"LOCAL_WORLD_SIZE": "8"}, "max 100000", 11),
        (96, {"OMPI_COMM_WORLD_LOCAL_SIZE": "4"}, "", 16),
        (96, {"LOCAL_WORLD_SIZE": "8", "SLURM_CPUS_PER_TASK": "48"}, "", 5),
        (96, {}, "400000 100000", 3),
        (2, {"LOCAL_WORLD_SIZE": "4"}, "", 1),
    ],
)
def test_loader_processes_follow_cores_and_processes(
    cores: int,
    env: dict[str, str],
    quota: str,
    expected: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in (*runtime_options.LOCAL_SIZES, "SLURM_CPUS_PER_TASK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(cores))
    monkeypatch.setattr(runtime_options, "CPU_MAX", tmp_path / "cpu.max")
    if quota:
        (tmp_path / "cpu.max").write_text(quota)
    assert parse_config(PretrainConfig, []).data.num_workers == expected
    assert parse_config(PretrainConfig, ["--num_workers", "0"]).data.num_workers == 0
