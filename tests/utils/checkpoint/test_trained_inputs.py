"""Inputs are preprocessed as in the training of the weights, also without the options."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import run_finetuning_depth
import run_finetuning_semseg
import run_pretraining_multimae
from multimae import ModelSpec, MultiMAE, read_spec
from multimae.specs.errors import UserError
from multimae.specs.heads import HeadOptions, HeadSpec
from multimae.specs.modalities import NOT_PREPARATION, PREPARATION, Modality, default_table
from multimae.specs.preparation import differing_fields
from tests.support.image_folders import message_of
from tests.support.scenes import tiny_run, write_scenes
from tests.utils.tasks.test_finetuning_depth import arguments as depth_run
from tests.utils.tasks.test_finetuning_depth import evaluations
from tests.utils.tasks.test_finetuning_semseg import arguments as semseg_run
from tools import probe
from utils.checkpoint.trained_inputs import trained_spec, with_trained_inputs
from utils.config.depth_options import DepthConfig
from utils.config.parse import parse_config
from utils.config.semseg_options import SemsegConfig

HALF = ("--no_imagenet_default_mean_and_std",)
QUICK = ("--max_steps", "1", "--num_pictures", "0")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("scenes")
    write_scenes(root / "train", 4)
    write_scenes(root / "val", 2, 50)
    return root


@pytest.fixture(scope="module")
def pretrained(data: Path) -> Path:
    """Half-half rgb and depth that is not standardized, against every script's defaults."""
    run_pretraining_multimae.main(
        tiny_run(data / "train", data / "pre", *QUICK, *HALF, "--no_standardize_depth")
    )
    return data / "pre"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Safetensors files that the test reads whole."""
    found: list[Path] = []

    def record(path: Path) -> dict[str, torch.Tensor]:
        found.append(path)
        return load_file(path)

    monkeypatch.setattr("multimae.weights.files.load_file", record)
    return found


def preparation(path: Path) -> list[tuple[Any, ...]]:
    return [(m.name, m.normalization, m.mean, m.std) for m in read_spec(path).inputs]


@pytest.mark.parametrize("file", ["model.safetensors", "checkpoints/checkpoint-1.pth", "old"])
def test_omitted_flags_do_not_change_preprocessing(
    data: Path, pretrained: Path, tmp_path: Path, file: str, reads: list[Path]
) -> None:
    weights = pretrained / file
    if file == "old":  # a checkpoint of an earlier version has the options, not the spec
        (newest,) = (pretrained / "checkpoints").glob("checkpoint-*.pth")
        checkpoint = torch.load(newest, weights_only=True)
        weights = tmp_path / "old.pth"
        torch.save({k: v for k, v in checkpoint.items() if k != "spec"}, weights)
    elif file.endswith(".pth"):
        (weights,) = (pretrained / "checkpoints").glob("checkpoint-*.pth")
    inputs = ("--in_domains", "rgb-depth", "--patch_size", "8")
    run_finetuning_semseg.main(
        semseg_run(data, tmp_path / "ft", *QUICK, *inputs, "--finetune", str(weights))
    )
    assert reads == [weights] * (file == "model.safetensors")
    assert preparation(tmp_path / "ft/model.safetensors") == [
        ("rgb", "mean_std", (0.5,), (0.5,)),
        ("depth", "mean_std", (0.0,), (1.0,)),
    ]


def test_contradicting_options_are_listed_and_refused(
    data: Path, pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = ("--finetune", str(pretrained / "model.safetensors"))
    base = depth_run(data, tmp_path, *QUICK, *weights)
    base[base.index("--patch_size") + 1] = "16"
    argv = [*base, "--imagenet_default_mean_and_std"]
    message = message_of(run_finetuning_depth.main, argv)
    for part in (
        "rgb: mean: the weights' (0.5), yours (0.485",
        "rgb: std",
        "patch_size: the weigh",
    ):
        assert part in message
    assert "8, yours 16" in message and "--override_inputs" in message
    run_finetuning_depth.main([*argv, "--override_inputs"])
    assert "--override_inputs: patch_size" in capsys.readouterr().out
    assert read_spec(tmp_path / "model.safetensors").inputs[0].mean == default_table()["rgb"].mean


def test_omitted_flags_do_not_change_metrics(data: Path, tmp_path: Path) -> None:
    run_finetuning_depth.main(depth_run(data, tmp_path, *QUICK, *HALF))
    scores = evaluations(tmp_path)[-1]
    scoring: Sequence[str] = depth_run(data, tmp_path, "--num_pictures", "0", "--eval")
    run_finetuning_depth.main(scoring)
    again = evaluations(tmp_path)[-1]
    assert again["eval/rmse"] == pytest.approx(scores["eval/rmse"], rel=1e-6)
    other = [*scoring, "--imagenet_default_mean_and_std"]
    assert "mean: the weights' (0.5)" in message_of(run_finetuning_depth.main, other)


def test_the_written_configuration_repeats_the_run(
    data: Path, pretrained: Path, tmp_path: Path
) -> None:
    weights = str(pretrained / "model.safetensors")
    run_finetuning_depth.main(depth_run(data, tmp_path / "a", *QUICK, "--finetune", weights))
    config = str(tmp_path / "a/config.yaml")
    run_finetuning_depth.main(["--config", config, "--output_dir", str(tmp_path / "b")])
    assert preparation(tmp_path / "a/model.safetensors") == preparation(
        tmp_path / "b/model.safetensors"
    )


THERMAL = Modality(
    "thermal", num_channels=1, storage="float", max_value=2.0, mean=(0.25,), std=(0.125,),
    no_data=float("nan"), interpolation="nearest", plot="scalar", stride=2,
)  # fmt: skip


def semseg_config(*argv: str) -> SemsegConfig:
    return parse_config(SemsegConfig, ["--data_path", "x", "--eval_data_path", "x", *argv])


def test_every_field_of_preparation_comes_from_the_weights() -> None:
    spec = ModelSpec("multivit_tiny", (THERMAL,), patch_size=8, num_global_tokens=2)
    row = "{thermal: {folder: t2, loss: l1}}"
    cfg = semseg_config("--in_domains", "thermal", "--modalities", row, "--decoder_main_tasks",
                        "thermal")  # fmt: skip
    cfg, notes = with_trained_inputs(cfg, spec, "w")
    (thermal,) = (cfg.table()[name] for name in cfg.in_names)
    for field in PREPARATION:
        assert [getattr(thermal, field)] == [getattr(THERMAL, field)], field
    assert thermal.folder == "t2"
    assert (cfg.model.patch_size, cfg.model.num_global_tokens, notes) == (8, 2, [])


@pytest.mark.parametrize(
    ("field", "value", "refused"),
    [
        ("mean", "[0.25001]", False),
        ("mean", "[0.3]", True),
        ("max_value", "1", True),
        ("no_data", "-1", True),
        ("interpolation", "bilinear", True),
        ("stride", "1", True),
        ("num_channels", "2", True),
        ("patch_size", "8", False),
        ("patch_size", "4", True),
        ("normalization", "computed", False),
        ("normalization", "robust", True),
        ("loss_weight", "2", False),
    ],
)
def test_only_other_values_contradict(field: str, value: str, refused: bool) -> None:
    spec = ModelSpec("multivit_tiny", (THERMAL,), patch_size=8)
    needed = "no_data: null, " if field in ("interpolation",) else ""
    row = f"{{thermal: {{{needed}{field}: {value}, storage: float"
    row += "" if field == "interpolation" else ", interpolation: nearest"
    argv = ("--in_domains", "thermal", "--decoder_main_tasks", "thermal")
    cfg = semseg_config(*argv, "--modalities", row + "}}")
    if refused:
        with pytest.raises(UserError, match=f"thermal: {field}: the weights'"):
            with_trained_inputs(cfg, spec, "w")
    else:
        changed, _ = with_trained_inputs(cfg, spec, "w")
        assert changed.table()["thermal"].mean == (0.25,)


OTHER_VALUES: dict[str, Any] = {
    "kind": "labels", "num_channels": 3, "num_classes": 7, "stride": 1, "patch_size": 32,
    "storage": "integer", "normalization": "robust", "robust_unit": 65536.0,
    "robust_pixels": "all", "max_value": 3.0, "mean": (0.5,), "std": (0.5,), "no_data": 0.0,
    "interpolation": "bilinear", "hflip_negate": (0,), "dim_class_emb": 32,
    "class_names": ("a", "b"), "plot": "grey", "label_map": ("7=0",), "vflip_negate": (1,),
}  # fmt: skip


def test_every_field_of_a_modality_is_classed() -> None:
    """A new field must be listed here, if it changes inputs, or in NOT_PREPARATION."""
    assert set(PREPARATION) == set(OTHER_VALUES)
    assert set(PREPARATION) | set(NOT_PREPARATION) == {f.name for f in fields(Modality)}
    assert set(PREPARATION).isdisjoint(NOT_PREPARATION)


@pytest.mark.parametrize("field", PREPARATION)
def test_every_field_of_preparation_is_compared(field: str) -> None:
    own, theirs = (SimpleNamespace(**asdict(THERMAL)) for _ in range(2))
    setattr(own, field, OTHER_VALUES[field])
    (text,) = differing_fields(own, theirs, PREPARATION, 16)  # type: ignore[arg-type]
    assert text.startswith(f"{field}: the weights'") and "yours" in text


def test_depth_stats_count_for_every_standardized_modality() -> None:
    heat = Modality("heat", num_channels=1, normalization="robust", robust_pixels="all")
    head = HeadSpec("semseg", SemsegConfig().data.target(), 150, HeadOptions())
    spec = ModelSpec("multivit_tiny", (heat,), heads=(head,))
    row = "{heat: {num_channels: 1, normalization: robust}}"
    argv = ("--in_domains", "heat", "--decoder_main_tasks", "heat", "--modalities", row)
    assert with_trained_inputs(semseg_config(*argv), spec, "w")[0].table()["heat"] == heat
    with pytest.raises(UserError, match="heat: robust_pixels: the weights' all, yours valid"):
        with_trained_inputs(semseg_config(*argv, "--depth_stats", "valid"), spec, "w")


def test_published_weights_are_prepared_as_published(tmp_path: Path) -> None:
    rows = tuple(default_table()[name] for name in ("rgb", "depth"))
    model = MultiMAE.from_spec(ModelSpec("pretrain_multimae_tiny", rows, rows))
    torch.save({"model": model.state_dict()}, tmp_path / "published.pth")
    _, spec = trained_spec(tmp_path / "published.pth", None)
    cfg, _ = with_trained_inputs(semseg_config("--in_domains", "rgb-depth"), spec, "w")
    assert cfg.table()["depth"].normalization == "robust"
    other = semseg_config("--in_domains", "rgb-depth", "--no_standardize_depth")
    with pytest.raises(
        UserError, match="depth: normalization: the weights' robust, yours mean_std"
    ):
        with_trained_inputs(other, spec, "w")


def test_computed_without_statistics_is_refused() -> None:
    row = "{thermal: {normalization: computed, storage: float}}"
    argv = ("--in_domains", "thermal", "--decoder_main_tasks", "thermal", "--modalities", row)
    with pytest.raises(UserError, match="thermal: normalization: computed"):
        with_trained_inputs(semseg_config(*argv), None, "")


def test_pretraining_and_probe_use_the_preprocessing_of_the_weights(
    data: Path, pretrained: Path, tmp_path: Path, reads: list[Path]
) -> None:
    weights = str(pretrained / "model.safetensors")
    start = ("--init_weights", weights, "--in_domains", "rgb-semseg", "--out_domains", "rgb")
    argv = tiny_run(data / "train", tmp_path, *QUICK, *start)
    run_pretraining_multimae.main(argv)
    assert reads == [Path(weights)]
    assert read_spec(tmp_path / "model.safetensors").inputs[0].mean == (0.5,)
    other = [*argv, "--imagenet_default_mean_and_std", "--output_dir", str(tmp_path / "other")]
    assert "rgb: mean: the weights' (0.5)" in message_of(run_pretraining_multimae.main, other)
    sets = ("--data_path", str(data / "train"), "--eval_data_path", str(data / "val"))
    probing = [*sets, "--weights", weights, "--in_domains", "rgb-depth", "--input_size", "32"]
    message = message_of(probe.main, [*probing, "--standardize_depth", "--device", "cpu"])
    assert "depth: normalization: the weights' mean_std, yours robust" in message


def test_depth_is_divided_as_the_weights_or_the_published_recipe_say() -> None:
    row = replace(
        default_table()["depth"], normalization="robust", robust_unit=2**16, robust_pixels="all"
    )
    spec = ModelSpec("multivit_tiny", (row,))
    options = ["--in_domains", "depth", "--decoder_main_tasks", "depth"]
    semseg, _ = with_trained_inputs(parse_config(SemsegConfig, options), spec, "published.pth")
    assert semseg.table()["depth"].robust_unit == 1  # SPEC section 6: stored values
    assert semseg.table()["depth"].robust_pixels == "valid"
    depth, _ = with_trained_inputs(
        parse_config(DepthConfig, [*options, "--depth_folder", "truth"]), spec, "published.pth"
    )
    assert depth.table()["depth"].robust_unit == 2**16
    head = HeadSpec("semseg", SemsegConfig().data.target(), 150, HeadOptions())
    tuned = replace(spec, heads=(head,))  # fine-tuned weights decide
    semseg, _ = with_trained_inputs(parse_config(SemsegConfig, options), tuned, "tuned.pth")
    assert semseg.table()["depth"].robust_pixels == "all"
    with pytest.raises(UserError, match="robust_pixels"):
        cfg = parse_config(SemsegConfig, [*options, "--depth_stats", "valid"])
        with_trained_inputs(cfg, tuned, "tuned.pth")
