"""Configurations and arrays never execute code; sources contain no unsafe calls."""

from __future__ import annotations

import ast
import io
import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import run_finetuning_cls
import run_finetuning_depth
import run_finetuning_semseg
import run_finetuning_taskonomy
import run_pretraining_multimae
from multimae.images.folders import MultiModalFolder
from multimae.images.pixels import ImageError
from multimae.images.readers import to_pixels
from multimae.specs.commands import exit_on_user_error
from multimae.specs.modalities import default_table
from tests.project.test_layering import SOURCES, name_of
from tests.support.image_folders import MODALITIES, make_dataset, message_of, write_folder
from tests.support.malicious import Runs
from tools import probe, results
from tools.compare.comparison import read_comparison

FORBIDDEN_MODULES = {
    *("pickle", "_pickle", "cPickle", "pickletools", "dill", "cloudpickle", "joblib"),
    *("shelve", "marshal", "pandas", "code", "codeop", "runpy", "imp"),
}
FORBIDDEN_CALLS = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "os.execv", "os.spawnv"),
    *("subprocess.getoutput", "subprocess.getstatusoutput", "importlib.import_module"),
    *("yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load", "yaml.unsafe_load_all"),
    *("torch.jit.load", "torch.hub.load", "torch.export.load", "torch.package.PackageImporter"),
    *("torch.hub.load_state_dict_from_url", "torch.hub.download_url_to_file", "urlretrieve"),
    *("torch.serialization.add_safe_globals", "add_safe_globals", "urlopen"),
}
EXEMPT = {
    "multimae/__init__.py": ["importlib.import_module"],  # of names that the sources hold
    "multimae/output_adapters/__init__.py": ["importlib.import_module"],
    "multimae/plotting/__init__.py": ["importlib.import_module"],
}
SAFE_LOADERS = {"SafeLoader", "CSafeLoader"}


def dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def violations(tree: ast.AST) -> Iterator[str]:
    """Calls that could execute code from a file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names]
            modules = names if isinstance(node, ast.Import) else [node.module or ""]
            yield from (m for m in modules if m.split(".")[0] in FORBIDDEN_MODULES)
            if isinstance(node, ast.ImportFrom):
                full = {f"{node.module}.{name}" for name in names}
                yield from full & FORBIDDEN_CALLS
                yield from full & {"torch.load", "numpy.load"}  # called by their full name only
        elif isinstance(node, ast.Attribute):
            if node.attr.endswith("Loader") and dotted(node).startswith("yaml."):
                yield from {node.attr} - SAFE_LOADERS
        elif isinstance(node, ast.Call):
            name = dotted(node.func)
            given = {k.arg: getattr(k.value, "value", None) for k in node.keywords}
            if name in FORBIDDEN_CALLS or name.rpartition(".")[2] == "urlopen":
                yield name
            if name == "torch.load" and given.get("weights_only") is not True:
                yield "torch.load without weights_only=True"
            if given.get("weights_only", True) is not True:
                yield f"{name} with weights_only"
            yield from (f"{key}=" for key in ("allow_pickle", "shell", "trust_remote_code")
                        if given.get(key, False) is not False)  # fmt: skip


def test_sources_contain_no_unsafe_calls() -> None:
    found = {name_of(p): list(violations(ast.parse(p.read_text()))) for p in SOURCES}
    assert {name: calls for name, calls in found.items() if calls} == EXEMPT


def test_only_one_module_unpickles() -> None:
    places = [name_of(p) for p in SOURCES if "torch.load(" in p.read_text()]
    assert places.count("multimae/weights/files.py") == 1
    code = [p for p in places if any(
        isinstance(n, ast.Call) and dotted(n.func) == "torch.load"
        for n in ast.walk(ast.parse((Path(__file__).parents[2] / p).read_text()))
    )]  # fmt: skip
    assert code == ["multimae/weights/files.py"]


FORBIDDEN = [
    *("import pickle", "from pickle import loads", "import dill as d", "import marshal, os"),
    *("import torch.nn, shelve", "from torch import load", "from os import system"),
    *("eval(x)", "exec(x)", "__import__(x)", "os.system(x)", "os.popen(x)"),
    *("yaml.load(x, yaml.SafeLoader)", "yaml.unsafe_load(x)", "f(x, Loader=yaml.Loader)"),
    *("torch.load(x)", "torch.load(x, weights_only=False)", "torch.load(x, weights_only=w)"),
    *("np.load(x, allow_pickle=True)", "np.load(x, allow_pickle=a)", "torch.jit.load(x)"),
    *("subprocess.run(x, shell=True)", "subprocess.Popen(x, shell=s)"),
    *("request.urlopen(x)", "timm.load(x, weights_only=False)"),
]


def test_violations_are_detected() -> None:
    for text in FORBIDDEN:
        assert list(violations(ast.parse(text))), text
    assert not list(violations(ast.parse("torch.load(x, weights_only=True); np.load(y)")))


TAGS = {
    "apply": "!!python/object/apply:os.mkdir ['{marker}']",
    "system": "!!python/object/apply:os.system ['mkdir {marker}']",
    "Popen": "!!python/object/apply:subprocess.Popen [[mkdir, '{marker}']]",
    "new": "!!python/object/new:os.mkdir ['{marker}']",
    "eval": "!!python/object/apply:eval [\"__import__('os').mkdir('{marker}')\"]",
    "object": "!!python/object:argparse.Namespace {{lr: 1}}",
    "name": "!!python/name:os.system",
    "module": "!!python/module:this",
    "tuple": "!!python/tuple [1, 2]",
    "long form": "!<tag:yaml.org,2002:python/object/apply:os.mkdir> ['{marker}']",
    "handle": "%TAG ! tag:yaml.org,2002:python/\n---\n{key}: !object/apply:os.mkdir ['{marker}']",
    "other": "!Anything {{a: 1}}",
}
SCRIPTS: dict[str, Callable[[list[str]], Any]] = {
    "pretraining": run_pretraining_multimae.main,
    "cls": run_finetuning_cls.main,
    "semseg": run_finetuning_semseg.main,
    "depth": run_finetuning_depth.main,
    "taskonomy": run_finetuning_taskonomy.main,
    "probe": probe.main,
}


def tagged(tag: str, key: str, marker: Path) -> str:
    text = TAGS[tag].format(marker=marker, key=key)
    return text if text.startswith("%") else f"{key}: {text}\n"


def error_of(run: Callable[[], Any], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as caught, exit_on_user_error():
        raise SystemExit(run())
    assert caught.value.code == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and "Traceback" not in captured.err
    return captured.err


def test_malicious_tags_run_code_in_an_unsafe_loader(tmp_path: Path) -> None:
    for tag in ("apply", "system", "eval", "new", "long form", "handle"):
        marker = tmp_path / tag.replace(" ", "-")
        yaml.load(tagged(tag, "lr", marker), yaml.UnsafeLoader)  # noqa: S506
        assert marker.exists()


def check_script(script: str, tag: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A script rejects a tag in a config and in an inline mapping."""
    path, marker = folder / "config.yaml", folder / "ran"
    for key in ("batch_size", "modalities"):
        path.write_text(tagged(tag, key, marker))
        message = error_of(lambda: SCRIPTS[script](["--config", str(path)]), capsys)
        assert str(path) in message and "tag" in message, tag
    if not TAGS[tag].startswith("%"):
        inline = "{rgb: " + TAGS[tag].format(marker=marker) + "}"
        message = error_of(lambda: SCRIPTS[script](["--modalities", inline]), capsys)
        assert "--modalities" in message and "tag" in message, tag
    assert not marker.exists(), tag


def test_every_yaml_tag_is_rejected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for tag in TAGS:
        check_script("pretraining", tag, tmp_path, capsys)


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_rejects_yaml_tags(
    script: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check_script(script, "apply", tmp_path, capsys)


def test_plans_reject_yaml_tags(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, marker = tmp_path / "plan.yaml", tmp_path / "ran"
    for tag in ("apply", "handle"):
        path.write_text(tagged(tag, "size", marker))
        for command in ("run", "report"):
            message = error_of(lambda: results.main([command, str(path)]), capsys)  # noqa: B023
            assert str(path) in message and "tag" in message and len(message.splitlines()) == 1
    plan = Path(__file__).parents[2] / "cfgs/results/rooms.yaml"
    change = "lr=" + TAGS["apply"].format(marker=marker)
    assert "--set lr=" in message_of(read_comparison, plan, changes=[change])
    assert not marker.exists()


def test_invalid_yaml_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "config.yaml"
    for text in ("lr: 2020-13-45\n", "lr: " + "[" * 1500 + "\n", "lr: \x00\n"):
        path.write_text(text)
        message = error_of(lambda: run_pretraining_multimae.main(["--config", str(path)]), capsys)
        assert str(path) in message
        assert str(path) in message_of(read_comparison, path)


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".png", ".pkl", ".tiff"])
def test_object_arrays_are_rejected(suffix: str, tmp_path: Path) -> None:
    """Files with pickled arrays, and the arrays themselves, are not images."""
    marker, depth = tmp_path / "ran", default_table()["depth"]
    evil = np.array([[Runs(os.mkdir, str(marker))]], object)
    path, stream = tmp_path / f"evil{suffix}", io.BytesIO()
    if suffix == ".npz":
        np.savez(stream, evil)
    elif suffix == ".pkl":
        pickle.dump(evil, stream)
    else:
        np.save(stream, evil, allow_pickle=True)
    path.write_bytes(stream.getvalue())
    with pytest.raises(ImageError, match=f"evil{suffix}"):
        to_pixels(path, depth)
    with pytest.raises(ImageError):
        to_pixels(evil, depth)
    assert not marker.exists()
    with pytest.raises((ValueError, pickle.UnpicklingError)):  # NumPy's default
        dict(np.load(path))
    assert not marker.exists()


def test_object_arrays_in_a_data_set_are_rejected(tmp_path: Path) -> None:
    root = write_folder(tmp_path)
    for path in (root / "depth").rglob("*.png"):
        np.save(path.with_suffix(".npy"), np.array([Runs(os.mkdir, str(tmp_path / "ran"))], object))
        path.unlink()
    folder = MultiModalFolder(root, MODALITIES)
    problems = make_dataset(root).check(0).problems
    assert len(folder) and len(problems) == 1 and str(root / "depth") in problems[0]
    assert not (tmp_path / "ran").exists()
