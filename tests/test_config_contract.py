"""Every published flag, default and YAML file of pre-training is still there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import yaml

from utils.config import parse_config, to_flat_dict
from utils.fields import Option, options_of
from utils.options import default_device
from utils.pretrain_options import PretrainConfig

ROOT = Path(__file__).parents[1]
CONTRACT = Path(__file__).parent / "data" / "contract"
CLI = json.loads((CONTRACT / "cli.json").read_text())["run_pretraining_multimae"]
CFGS = json.loads((CONTRACT / "cfgs.json").read_text())
PRETRAIN_CFGS = [path for path in CFGS if path.startswith("cfgs/pretrain/")]
OPTIONS = options_of(PretrainConfig())

# A valid value other than the default, for the flags where one does not follow from the type.
SAMPLES: dict[str, list[str]] = {
    "in_domains": ["rgb-depth"],
    "out_domains": ["depth"],
    "fp32_output_adapters": ["semseg"],
    "model": ["pretrain_multimae_tiny"],
    "input_size": ["192"],
    "patch_size": ["8"],
    "opt": ["sgd"],
    "opt_betas": ["0.8", "0.99"],
    "task_balancer": ["uncertainty"],
    "train_interpolation": ["nearest"],
    "hflip": ["0.25"],
    "momentum": ["0.5"],
    "drop_path": ["0.1"],
    "decoder_dim": ["512"],
    "decoder_num_heads": ["4"],
    "device": ["cuda:3"],
    "epochs": ["64"],
}
BY_TYPE = {"int": ["7"], "float": ["0.125"], "str": ["some_text"]}


def _kind(known: Option) -> str:
    """The contract's name of an option's type."""
    hint = known.base_hint
    if get_origin(hint) is tuple:
        hint = get_args(hint)[0]
    return "str" if get_origin(hint) is Literal else hint.__name__


@pytest.mark.parametrize("flag", CLI["flags"], ids=lambda flag: flag["flags"][0])
def test_published_flag(flag: dict[str, Any]) -> None:
    name, kind = flag["dest"], flag["kind"]
    known = OPTIONS[name]
    switch = kind in ("storetrue", "storefalse")
    assert _kind(known) == ("bool" if switch else flag.get("type", "str"))
    assert known.is_tuple == (flag.get("nargs") == "+")
    for spelling in flag["flags"]:
        words = [] if switch else SAMPLES.get(name, BY_TYPE[flag.get("type", "str")])
        value = to_flat_dict(parse_config(PretrainConfig, [spelling, *words]))[name]
        if switch:
            assert value is (kind == "storetrue")
        else:
            assert value != known.default
            assert [str(v) for v in (value if isinstance(value, tuple) else [value])] == words


def test_published_defaults() -> None:
    ours = to_flat_dict(parse_config(PretrainConfig, []))
    for name, default in {**CLI["defaults"], "device": default_device()}.items():
        value = ours[name]
        assert (list(value) if isinstance(value, tuple) else value) == default, name


@pytest.mark.parametrize("name", [name for name, known in OPTIONS.items() if known.is_bool])
def test_both_spellings_of_every_switch(name: str) -> None:
    for flag, expected in ((f"--{name}", True), (f"--no_{name}", False)):
        assert to_flat_dict(parse_config(PretrainConfig, [flag]))[name] is expected


@pytest.mark.parametrize("path", CFGS)
def test_published_file(path: str) -> None:
    assert yaml.safe_load((ROOT / path).read_text()) == CFGS[path]


@pytest.mark.parametrize("path", PRETRAIN_CFGS)
def test_published_pretraining_prints_every_value(
    path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as info:
        parse_config(PretrainConfig, ["--config", str(ROOT / path), "--print_config"])
    assert info.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert {key: printed[key] for key in CFGS[path]} == CFGS[path]
    assert list(printed) == list(OPTIONS)


def test_every_option_has_help_and_a_valid_default(capsys: pytest.CaptureFixture[str]) -> None:
    for known in OPTIONS.values():
        assert known.help, known.name
        assert known.coerce(known.default) == known.default
    with pytest.raises(SystemExit) as info:
        parse_config(PretrainConfig, ["--help"])
    assert info.value.code == 0
    text = capsys.readouterr().out
    assert all(known.name in text for known in OPTIONS.values())
    assert (
        "--[no_]pin_mem " in text and "--opt_betas X ... " in text and "(default: 0.9 0.95)" in text
    )
    assert max(map(len, text.splitlines())) <= 100
