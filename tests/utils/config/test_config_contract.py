"""Published flags, defaults and YAML files are supported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import yaml

from utils.config.cls_options import ClsConfig
from utils.config.depth_options import DepthConfig
from utils.config.fields import Option, options_of
from utils.config.options import default_device, default_num_workers
from utils.config.parse import parse_config, to_flat_dict
from utils.config.pretrain_options import PretrainConfig
from utils.config.semseg_options import SemsegConfig
from utils.config.taskonomy_options import TaskonomyConfig

ROOT = Path(__file__).parents[3]
CONTRACT = Path(__file__).parents[2] / "data" / "contract"
CLI = json.loads((CONTRACT / "cli.json").read_text())
CFGS = json.loads((CONTRACT / "cfgs.json").read_text())

# Script -> its configuration and the folder of its published YAML files.
SCRIPTS: dict[str, tuple[type[Any], str]] = {
    "run_pretraining_multimae": (PretrainConfig, "cfgs/pretrain/"),
    "run_finetuning_cls": (ClsConfig, "cfgs/finetune/cls/"),
    "run_finetuning_semseg": (SemsegConfig, "cfgs/finetune/semseg/"),
    "run_finetuning_depth": (DepthConfig, "cfgs/finetune/depth/"),
    "run_finetuning_taskonomy": (TaskonomyConfig, "cfgs/finetune/taskonomy/"),
}

TASKS = ("cls", "semseg", "depth", "taskonomy")
YAMLS = sorted(
    str(path.relative_to(ROOT))
    for kind in ("pretrain", "finetune", "own")
    for path in (ROOT / "cfgs" / kind).rglob("*.yaml")
)


def script_of(path: str) -> type[Any]:
    """Configuration of the script that a YAML file is for."""
    _, kind, folder, *_ = Path(path).parts
    if "pretrain" in (kind, Path(path).stem):
        return SCRIPTS["run_pretraining_multimae"][0]
    return SCRIPTS[
        f"run_finetuning_{folder if folder in TASKS else Path(path).stem.split('_')[0]}"
    ][0]


# A valid value other than the default, for the flags where one does not follow from the type.
SAMPLES: dict[str, list[str]] = {
    "out_domains": ["depth"],
    "fp32_output_adapters": ["semseg"],
    "model": ["pretrain_multimae_tiny"],
    "batch_size": ["18"],
    "cutmix_minmax": ["0.2", "0.8"],
    "smoothing": ["0.2"],
    "run_finetuning_taskonomyout_domains": ["reshading-edge_texture"],
    "run_finetuning_depthin_domains": ["rgb-semseg"],
    "run_finetuning_depthdecoder_main_tasks": ["rgb-semseg"],
    **{f"run_finetuning_{task}model": ["multivit_tiny"] for task in TASKS},
    "input_size": ["192"],
    "patch_size": ["8"],
    "opt": ["sgd"],
    "opt_betas": ["0.8", "0.99"],
    "task_balancer": ["uncertainty"],
    "train_interpolation": ["nearest"],
    "hflip": ["0.25"],
    "momentum": ["0.5"],
    "drop_path": ["0.3"],
    "decoder_dim": ["512"],
    "decoder_num_heads": ["4"],
    "device": ["cuda:3"],
    "epochs": ["640"],
    "in_domains": ["rgb-depth"],
    "decoder_main_tasks": ["rgb-depth"],
    "mixup_mode": ["pair"],
}
# Published as text, here a number.
NUMBERS = {"num_classes"}
# Values that only a second option makes possible.
NEEDS = {
    "decoder_main_tasks": ["--in_domains", "rgb-depth-semseg"],
    "run_finetuning_semsegdecoder_main_tasks": ["--in_domains", "rgb-depth"],
    "run_finetuning_depthdecoder_main_tasks": ["--in_domains", "rgb-semseg"],
    "test": ["--test_data_path", "x"],
    "freeze_encoder": ["--finetune", "x"],
}
BY_TYPE = {"int": ["7"], "float": ["0.125"], "str": ["some_text"]}


def _kind(known: Option) -> str:
    """The contract's name of an option's type."""
    hint = known.base_hint
    if get_origin(hint) is tuple:
        hint = get_args(hint)[0]
    return "str" if get_origin(hint) is Literal else hint.__name__


def _other_choice(known: Option) -> list[str] | None:
    """Another allowed value, if there are several."""
    if get_origin(known.base_hint) is not Literal:
        return None
    words = get_args(known.base_hint)
    return [str(next((w for w in words if w != known.default), words[0]))]


@pytest.mark.parametrize("script", SCRIPTS)
def test_published_flags(script: str) -> None:
    for flag in CLI[script]["flags"]:
        check_flag(script, flag)


def check_flag(script: str, flag: dict[str, Any]) -> None:
    """A published flag exists with its type and accepts a non-default value."""
    config, _ = SCRIPTS[script]
    name, kind = flag["dest"], flag["kind"]
    known = options_of(config())[name]
    switch = kind in ("storetrue", "storefalse")
    kind_of_value = "int" if name in NUMBERS else flag.get("type") or "str"
    assert _kind(known) == ("bool" if switch else kind_of_value)
    assert known.is_tuple == (flag.get("nargs") == "+") or name == "input_size"
    for spelling in flag["flags"]:
        words = (
            []
            if switch
            else (
                _other_choice(known)
                or SAMPLES.get(script + name)
                or SAMPLES.get(name)
                or BY_TYPE[kind_of_value]
            )
        )
        more = [] if kind == "storefalse" else NEEDS.get(script + name, NEEDS.get(name, []))
        value = to_flat_dict(parse_config(config, [spelling, *words, *more]))[name]
        if switch:
            assert value is (kind == "storetrue")
        else:
            if len(get_args(known.base_hint)) != 1:
                assert value != known.default
            assert [str(v) for v in (value if isinstance(value, tuple) else [value])] == words


# Published: 10 or 16 loader processes.
OF_MACHINE = {"device": default_device(), "num_workers": default_num_workers()}


@pytest.mark.parametrize("script", SCRIPTS)
def test_published_defaults(script: str) -> None:
    ours = to_flat_dict(parse_config(SCRIPTS[script][0], []))
    for name, default in {**CLI[script]["defaults"], **OF_MACHINE}.items():
        value = ours[name]
        assert (list(value) if isinstance(value, tuple) else value) == (
            int(default) if name in NUMBERS else default
        ), name


@pytest.mark.parametrize("script", SCRIPTS)
def test_both_spellings_of_every_switch(script: str) -> None:
    config, _ = SCRIPTS[script]
    for name, known in options_of(config()).items():
        for flag, expected in ((f"--{name}", True), (f"--no_{name}", False)):
            if known.is_bool:
                more = NEEDS.get(name, [])
                assert to_flat_dict(parse_config(config, [flag, *more]))[name] is expected


def test_published_files() -> None:
    for path, values in CFGS.items():
        assert yaml.safe_load((ROOT / path).read_text()) == values, path


@pytest.mark.parametrize("script", SCRIPTS)
def test_published_files_print_every_value(script: str, capsys: pytest.CaptureFixture[str]) -> None:
    config, folder = SCRIPTS[script]
    for path in (path for path in CFGS if path.startswith(folder)):
        with pytest.raises(SystemExit) as info:
            parse_config(config, ["--config", str(ROOT / path), "--print_config"])
        assert info.value.code == 0
        printed = yaml.safe_load(capsys.readouterr().out)
        assert {key: printed[key] for key in CFGS[path]} == CFGS[path], path
        assert list(printed) == list(options_of(config()))


def test_every_script_is_covered() -> None:
    assert set(SCRIPTS) == set(CLI)
    assert all(path.startswith(tuple(folder for _, folder in SCRIPTS.values())) for path in CFGS)


def test_printed_config_round_trip(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in YAMLS:
        config = script_of(path)
        with pytest.raises(SystemExit) as info:
            parse_config(config, ["--config", str(ROOT / path), "--print_config"])
        assert info.value.code == 0
        printed = capsys.readouterr().out
        (tmp_path / "printed.yaml").write_text(printed)
        again = parse_config(config, ["--config", str(tmp_path / "printed.yaml")])
        assert again == parse_config(config, ["--config", str(ROOT / path)]), path
        assert yaml.safe_load((ROOT / path).read_text()).keys() <= yaml.safe_load(printed).keys()


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_option_has_help_and_a_valid_default(
    script: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config, _ = SCRIPTS[script]
    options = options_of(config())
    for known in options.values():
        assert known.help, known.name
        assert known.coerce(known.default) == known.default
    with pytest.raises(SystemExit) as info:
        parse_config(config, ["--help"])
    assert info.value.code == 0
    text = capsys.readouterr().out
    assert all(known.name in text for known in options.values())
    assert "--[no_]pin_mem " in text and "--opt_betas X ... " in text
    assert "--[no_]grad_checkpointing [selective]" in text
    assert max(map(len, text.splitlines())) <= 100
