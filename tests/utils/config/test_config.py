"""Configurations from defaults, YAML files and arguments, and their error messages."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multimae.specs.coercion import coerce
from multimae.specs.commands import exit_on_user_error
from multimae.specs.errors import UserError
from utils.config.options import OptimOptions
from utils.config.parse import ConfigError, option, parse_config, save_config, to_flat_dict, to_yaml
from utils.config.pretrain_options import PretrainConfig
from utils.config.semseg_options import SemsegConfig


def problems_of(argv: list[str], cls: type[Any] = PretrainConfig) -> list[str]:
    with pytest.raises(ConfigError) as info:
        parse_config(cls, argv)
    head, *lines = str(info.value).split("\n  - ")
    assert head.startswith(f"{len(lines)} problem")
    return lines


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


# --- Resolution --------------------------------------------------------------------------------


def test_default_then_files_then_command_line(tmp_path: Path) -> None:
    first = write(tmp_path / "a.yaml", "blr: 1e-3\nepochs: 50\npatch_size: 8\n")
    second = write(tmp_path / "b.yaml", "epochs: 60\npatch_size: 32\n")
    argv = ["--patch_size", "16", "--config", str(first), "--config", str(second)]
    cfg = parse_config(PretrainConfig, argv)
    assert (cfg.optim.blr, cfg.runtime.epochs, cfg.model.patch_size) == (1e-3, 60, 16)
    assert cfg.runtime.batch_size == 256
    assert parse_config(PretrainConfig, ["--seed", "1", "--seed=2"]).runtime.seed == 2


def test_values_that_look_like_flags_or_are_empty() -> None:
    cfg = parse_config(PretrainConfig, ["--warmup_steps", "-1", "--resume=", "--data_path=--x=y"])
    assert (cfg.optim.warmup_steps, cfg.checkpoint.resume) == (-1, "")
    assert cfg.data.data_path == "--x=y"


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        ("1e-4", float, 1e-4),
        (1, float, 1.0),
        ("1e3", int, 1000),
        (3.0, int, 3),
        (2**63 + 1, int, 2**63 + 1),
        ("off", bool, False),
        (5, str, "5"),
        ("none", float | None, None),
        ("NULL", str | None, None),
        (None, int | None, None),
        ("3", int | None, 3),
        ([1, "2"], tuple[float, ...], (1.0, 2.0)),
        (0.5, tuple[float, ...], (0.5,)),
        ("b", Literal["a", "b"], "b"),
        ("a", bool | Literal["a"], "a"),
        ("off", bool | Literal["a"], False),
        (True, bool | Literal["a"], True),
        ({"a": 1}, Mapping[str, Any], {"a": 1}),
    ],
)
def test_coercion(value: object, hint: Any, expected: object) -> None:
    got = coerce(value, hint)
    assert got == expected and type(got) is type(expected)


@pytest.mark.parametrize(
    ("value", "hint", "expects"),
    [
        ("1.5", int, "whole number"),
        (1.5, int, "whole number"),
        (True, int, "whole number"),
        (float("inf"), int, "whole number"),
        ("1e400", int, "whole number"),
        (True, float, "number"),
        (None, float, "number, got null"),
        ("abc", float | None, "number"),
        (1, bool, "true or false"),
        ("maybe", bool, "true or false"),
        (False, str, "text"),
        ([1, 2, 3], tuple[float, float], "list of 2 numbers"),
        (["x"], tuple[float, ...], "number, got 'x'"),
        ("c", Literal["a", "b"], "one of a, b"),
        ("c", bool | Literal["a"], "true or false or one of a, got 'c'"),
        (3, Mapping[str, Any], "mapping"),
    ],
)
def test_coercion_refuses(value: object, hint: Any, expects: str) -> None:
    with pytest.raises(ValueError, match=f"expected .*{expects}"):
        coerce(value, hint)


def test_saved_config_reads_back_equal(tmp_path: Path) -> None:
    argv = ["--opt_betas", "0.5", "0.75", "--clip_grad", "3", "--no_pin_mem", "--data_path", "1e3"]
    argv += ["--modalities", "{normals: {loss: l1, mean: [0.5, 0.5, 0.5]}}", "--max_steps=none"]
    argv += ["--out_domains", "rgb-normals"]
    cfg = parse_config(PretrainConfig, argv)
    assert cfg.data.data_path == "1e3"
    save_config(cfg, tmp_path / "run" / "config.yaml")
    again = parse_config(PretrainConfig, ["--config", str(tmp_path / "run" / "config.yaml")])
    assert again == cfg != parse_config(PretrainConfig, [])


# PyYAML writes the control character NEL (85) unescaped and reads it back as a space.
CHARACTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\x85")


@settings(deadline=None)
@given(
    text=st.text(CHARACTERS),
    rate=st.floats(0, 1, exclude_max=True),
    limit=st.none() | st.integers(1, 2**70),
)
def test_round_trip(
    tmp_path_factory: pytest.TempPathFactory, text: str, rate: float, limit: int | None
) -> None:
    base = PretrainConfig()
    cfg = dataclasses.replace(
        base,
        data=dataclasses.replace(base.data, data_path=text, max_val_images=limit),
        model=dataclasses.replace(base.model, drop_path=rate),
    )
    path = write(tmp_path_factory.getbasetemp() / "round_trip.yaml", to_yaml(cfg))
    assert parse_config(PretrainConfig, ["--config", str(path)]) == cfg


# --- Mistakes ----------------------------------------------------------------------------------


def test_all_errors_are_reported_at_once(tmp_path: Path) -> None:
    path = write(
        tmp_path / "run.yaml",
        "blrr: 1\nhflip: 2\nblr: 1e-4\nblr: 1e-5\nnum_workers: many\ninput_size: 225\n",
    )
    argv = ["--epoch", "3", "--batch-size", "8", "--seed", "--opt_eps", "tiny", "--eval", "stray"]
    argv += ["--opt", "adamx", "--no_pin_mem", "7", "--alphas", "1", "2", "--config", str(path)]
    assert set(problems_of(argv)) == {
        "--epoch: unknown flag; did you mean --epochs?",
        "--batch-size: unknown flag; did you mean --batch_size?",
        "--seed: needs a value (whole number)",
        "--opt_eps: expected number, got 'tiny'",
        "--eval: unknown flag; did you mean --eval_freq?",
        "--opt: unknown optimiser 'adamx'; did you mean adamax?",
        "--no_pin_mem: takes no value, got '7'",
        "--alphas: takes one value, got 2: 1 2",
        f"{path}: blrr: unknown key; did you mean blr?",
        f"{path}: line 4: key 'blr' is already on line 3",
        f"{path}: hflip: 2.0 is not in [0, 1]",
        f"{path}: num_workers: expected whole number, got 'many'",
        f"{path}: input_size: 225 is not divisible by patch_size 16; nearest: 224 or 240",
    }


def test_errors_exit_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as info, exit_on_user_error():
        parse_config(PretrainConfig, ["--data", "x"])
    assert info.value.code == 2
    assert capsys.readouterr().err == (
        "error: 1 problem in the configuration (--help lists all options):\n"
        "  - --data: unknown flag; did you mean --data_path?\n"
    )


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: [1\nb: 2", "line 2: while parsing a flow sequence"),
        ("- 1", "expected `option: value` lines, got a list"),
        ("data_path: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ("modalities: {rgb: {loss: l1, loss: mse}}", "line 1: key 'loss' is already on line 1"),
        ("wandb_run_name: no", "wandb_run_name: expected text, got False"),
        ("output_dir:", "output_dir: expected text, got null"),
        ("optim: {blr: 1}", "optim: unknown key"),
        ("1: 2", "1: unknown key"),
        ("a: \x01", "special characters are not allowed"),
    ],
)
def test_bad_file(tmp_path: Path, text: str, problem: str) -> None:
    path = write(tmp_path / "bad.yaml", text)
    (line,) = problems_of(["--config", str(path)])
    assert line.startswith(str(path)) and problem in line and "\n" not in line


def test_empty_file_changes_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "empty.yaml", "# nothing yet\n")
    assert parse_config(PretrainConfig, ["--config", str(path)]) == PretrainConfig()


@pytest.mark.parametrize(
    ("argv", "problem"),
    [
        (["stray"], "'stray': expected a flag"),
        (["--print_config", "x"], "--print_config: takes no value"),
        (["--config"], "--config: needs the path"),
        (["--config", "no/such.yaml"], "--config no/such.yaml: No such file"),
    ],
)
def test_misused_argument(argv: list[str], problem: str) -> None:
    (line,) = problems_of(argv)
    assert line.startswith(problem)


# --- Declaring options -------------------------------------------------------------------------


@dataclass(frozen=True)
class Head:
    """Head."""

    use_mean_pooling: bool = option(True, "Pool by the mean", off="no_mean_pooling")
    use_mask_valid: bool = option(True, "Read mask_valid", off="no_mask_valid")
    no_lr_scale_list: str = option("", "Names, joined by '-'")
    low: int = option(0, "Low")


@dataclass(frozen=True)
class Small:
    """A script."""

    head: Head = field(default_factory=lambda: Head(low=3))
    high: int = option(5, "High")

    def problems(self) -> Iterator[str]:
        if self.head.low > self.high:
            yield f"low: {self.head.low} exceeds high {self.high}"


@pytest.mark.parametrize("name", ["mean_pooling", "mask_valid"])
def test_historical_spellings(name: str) -> None:
    for flag in (f"--no_{name}", f"--no_use_{name}"):
        assert to_flat_dict(parse_config(Small, [flag]))[f"use_{name}"] is False
    assert problems_of([f"--{name}"], Small)


def test_string_that_looks_like_a_switch() -> None:
    cfg = parse_config(Small, ["--no_lr_scale_list", "a-b"])
    assert cfg.head.no_lr_scale_list == "a-b"
    assert problems_of(["--lr_scale_list"], Small)


def test_defaults_come_from_the_instance_and_top_options_work() -> None:
    assert to_flat_dict(parse_config(Small, []))["low"] == 3
    assert problems_of(["--high", "2"], Small) == ["low: 3 exceeds high 2"]
    assert problems_of(["--low", "9"], Small) == ["--low: 9 exceeds high 5"]
    assert parse_config(Small, ["--high", "4"]).high == 4


@dataclass(frozen=True)
class SameName:
    first: OptimOptions = field(default_factory=OptimOptions)
    opt_eps: float = option(0.0, "Clash")


@dataclass(frozen=True)
class Negation:
    first: Head = field(default_factory=Head)
    no_mean_pooling: bool = option(False, "Clash with a historical spelling")


@dataclass(frozen=True)
class ReservedName:
    config: str = option("", "Clash with the parser")


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (SameName, "--opt_eps belongs to both first.opt_eps and opt_eps"),
        (Negation, "--no_mean_pooling belongs to both first.use_mean_pooling and no_mean_pooling"),
        (ReservedName, "--config belongs to both the parser and config"),
    ],
)
def test_option_name_collision_is_an_error(cls: type[Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        parse_config(cls, [])


@pytest.mark.parametrize("config", [PretrainConfig, SemsegConfig])
def test_a_modality_that_no_domain_uses_is_refused(
    config: type, capsys: pytest.CaptureFixture[str]
) -> None:
    domains = ["--in_domains", "rgb-depth"]
    with pytest.raises((SystemExit, UserError)) as raised:
        parse_config(config, [*domains, "--modalities", "{detph: {num_channels: 1}}"])
    text = capsys.readouterr().err + str(raised.value)
    assert "'detph'" in text and "did you mean depth?" in text
    parse_config(config, [*domains, "--modalities", "{semseg: {num_classes: 41}}"])
