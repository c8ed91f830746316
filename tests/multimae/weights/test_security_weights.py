"""Weight files never execute code, at any entry point."""

from __future__ import annotations

import argparse
import json
import pickle
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

import hubconf
import run_finetuning_cls
import run_finetuning_depth
import run_finetuning_semseg
import run_finetuning_taskonomy
import run_pretraining_multimae
from multimae import MultiMAE, read_spec
from multimae.multimae import MultiViT
from multimae.specs.commands import exit_on_user_error
from multimae.specs.errors import UserError
from multimae.weights.atomic import checksum
from multimae.weights.files import CheckpointError, read_checkpoint
from multimae.weights.timm_models import from_multimae
from tests.support.malicious import MALICIOUS, NAMES, state
from tests.support.scenes import ON_CPU, tiny_run, write_scenes
from tests.utils.tasks.test_bad_finetuning import OWN
from tests.utils.tasks.test_finetuning_taskonomy import write_taskonomy
from tools import (
    demo_app,
    export_onnx,
    export_weights,
    multimae2vit_converter,
    probe,
    vit2multimae_converter,
)
from tools.app.engine import Engine
from tools.torture.fingerprint import fingerprint
from utils.checkpoint.checkpoint_files import Record, read_records
from utils.checkpoint.find import latest_checkpoint
from utils.checkpoint.resume import restore
from utils.checkpoint.scored_weights import load_finetuned
from utils.checkpoint.start_weights import StartWeights
from utils.config.options import StartOptions

pytestmark = [
    pytest.mark.filterwarnings("ignore:Detected pickle protocol"),
    pytest.mark.filterwarnings("ignore:.*looks like a TorchScript archive"),
]
EntryPoint = Callable[[Path], object]
MODEL = torch.nn.Linear(1, 1)

FUNCTIONS: dict[str, EntryPoint] = {
    "read_checkpoint": read_checkpoint,
    "from_pretrained": MultiMAE.from_pretrained,
    "MultiViT": MultiViT.from_pretrained,
    "torch.hub": lambda path: hubconf.multimae(str(path)),
    "timm": from_multimae,
    "resume": lambda path: restore(None, path, None),  # type: ignore[arg-type]
    "finetune": lambda path: StartWeights(StartOptions(finetune=str(path))).state_dict(),
    "score": lambda path: load_finetuned(MODEL, path),
    "app": Engine,
}
TOOLS: dict[str, Callable[[str, str], int]] = {
    "export_onnx": lambda path, out: export_onnx.main([path, f"{out}.onnx"]),
    "export_weights": lambda path, out: export_weights.main([path, f"{out}.safetensors"]),
    "vit2multimae": lambda path, out: vit2multimae_converter.main(
        ["--vit_ckpt_path", path, "--multimae_ckpt_path", out]
    ),
    "multimae2vit": lambda path, out: multimae2vit_converter.main(
        ["--multimae_ckpt_path", path, "--vit_ckpt_path", out]
    ),
    "demo_app": lambda path, out: demo_app.main(["--weights", path]),
}
SCRIPTS = {
    "cls": run_finetuning_cls.main,
    "semseg": run_finetuning_semseg.main,
    "depth": run_finetuning_depth.main,
    "taskonomy": run_finetuning_taskonomy.main,
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The malicious files; what they run makes ``ran``."""
    folder = tmp_path_factory.mktemp("malicious")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        for name, make in MALICIOUS.items():
            make(folder / f"{name}.pth", folder / "ran")
    return folder


@pytest.fixture(autouse=True)
def nothing_ran(files: Path) -> Iterator[None]:
    assert not (files / "ran").exists()
    yield
    assert not (files / "ran").exists()


def test_malicious_files_run_code_in_an_unrestricted_load(files: Path, tmp_path: Path) -> None:
    dangerous = 0
    for name in ("reduce", "system", "open", "legacy", "among the weights", "another class",
                 "in a Namespace", "subclass of Namespace", "os.system", "posix.system",
                 "builtins.eval", "builtins.exec", "subprocess.getoutput", "os.mkdir"):  # fmt: skip
        marker = tmp_path / name.replace(" ", "-")
        MALICIOUS[name](tmp_path / "evil.pth", marker)
        torch.load(tmp_path / "evil.pth", weights_only=False)
        dangerous += marker.exists()
    assert dangerous == 14
    pickle.loads((files / "pickle 4.pth").read_bytes())
    (files / "ran").rmdir()


def test_every_malicious_file_is_rejected(files: Path) -> None:
    named = {name for module, function, _ in NAMES for name in (f"{module}.{function}",)}
    for name in MALICIOUS:
        message, remedy = rejection("read_checkpoint", files / f"{name}.pth")
        assert not remedy, name
        assert name not in named or name.removeprefix("__builtin__.") in message, name


@pytest.mark.parametrize("entry", FUNCTIONS)
def test_every_function_rejects_a_malicious_file(entry: str, files: Path) -> None:
    _, remedy = rejection(entry, files / "reduce.pth")
    assert not remedy or (entry == "resume" and "--no_auto_resume" in remedy)


def rejection(entry: str, path: Path) -> tuple[str, str]:
    """Error message of an entry point, and the lines after the first."""
    try:
        FUNCTIONS[entry](path)
    except (UserError, CheckpointError) as err:
        message, _, remedy = str(err).partition("\n")
    else:
        pytest.fail(f"{entry} accepted {path.name}")
    assert str(path) in message and len(message) < 450, path.name
    return message, remedy


@pytest.mark.parametrize("tool", TOOLS)
def test_every_tool_rejects_a_malicious_file(
    tool: str, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = files / "reduce.pth"
    assert TOOLS[tool](str(path), str(tmp_path / "out")) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and str(path) in line
    assert not list(tmp_path.iterdir())


def test_malicious_model_folders_are_rejected(files: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    (tmp_path / "config.json").write_text("{}")
    for name in ("reduce", "polyglot"):
        path.write_bytes((files / f"{name}.pth").read_bytes())
        for entry, where in ((MultiMAE.from_pretrained, tmp_path), (read_spec, path)):
            with pytest.raises(CheckpointError) as caught:
                entry(where)
            assert str(path) in str(caught.value)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_scenes(root / "val", 4, first_seed=100)
    write_scenes(root / "train", 8)
    write_taskonomy(root / "views", buildings=5, views=2)
    return root


def script_error(
    run: Callable[[list[str]], Any], arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught, exit_on_user_error():
        run(arguments)
    captured = capsys.readouterr()
    assert caught.value.code == 2 and captured.err.startswith("error: ")
    assert "Traceback" not in captured.err and "step 1/" not in captured.out
    return captured.out + captured.err


def arguments_of(script: str, data: Path, output_dir: Path) -> list[str]:
    if script == "pretraining":
        return tiny_run(data / "train", output_dir)
    where = ["--data_path", str(data / "views")]
    if script != "taskonomy":
        where = ["--data_path", str(data / "train"), "--eval_data_path", str(data / "val")]
    return [
        *where, *OWN[script], *("--output_dir", str(output_dir), "--model", "multivit_nano"),
        *("--input_size", "32", "--patch_size", "8", "--batch_size", "4", "--num_workers", "0"),
        *("--warmup_epochs", "0", *ON_CPU),
    ]  # fmt: skip


PLANTED = {
    "--auto_resume": "checkpoint-1.pth",
    "with a record": "checkpoint-1.pth",
    "best": "checkpoint-best.pth",
}
ARRIVALS = [("pretraining", entry) for entry in ("--resume", "--auto_resume", "with a record")]
ARRIVALS += [("cls", entry) for entry in ("--resume", "--finetune", "--eval", *PLANTED)]
ARRIVALS += [("semseg", "--eval"), ("depth", "--finetune"), ("taskonomy", "--resume")]


@pytest.mark.parametrize(("script", "entry"), ARRIVALS)
def test_every_script_rejects_a_malicious_file(
    script: str,
    entry: str,
    files: Path,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = files / "reduce.pth"
    if entry in PLANTED:
        folder = tmp_path / "checkpoints"
        folder.mkdir()
        path = folder / PLANTED[entry]
        path.write_bytes((files / "reduce.pth").read_bytes())
        more = ["--eval"] if entry == "best" else []
        if entry == "with a record":
            written = checksum(path)
            record = Record(path.name, 2, 1, written.size, written.digest, at_epoch_end=True)
            path.with_name(f"{path.name}.json").write_text(json.dumps([asdict(record)]))
    else:
        more = ["--eval", "--resume"] if entry == "--eval" else [entry]
        more.append(str(path))
    run = run_pretraining_multimae.main if script == "pretraining" else SCRIPTS[script]
    message = script_error(run, [*arguments_of(script, data, tmp_path), *more], capsys)
    assert str(path) in message


def test_probe_rejects_a_malicious_file(
    files: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = files / "reduce.pth"
    where = ["--data_path", str(data / "train"), "--eval_data_path", str(data / "val")]
    more = ["--weights", str(path), "--in_domains", "rgb", *ON_CPU]
    assert "--weights: " in (message := script_error(probe.main, [*where, *more], capsys))
    assert str(path) in message


def test_latest_checkpoint_skips_malicious_files(files: Path, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    path = folder / "checkpoint-1.pth"
    for name in ("reduce", "legacy", "TorchScript", "header too long"):
        path.write_bytes((files / f"{name}.pth").read_bytes())
        messages: list[str] = []
        assert latest_checkpoint(tmp_path, messages.append) is None
        assert str(path) in messages[0] and "checksum" not in messages[0], name
        with pytest.raises(CheckpointError, match="checkpoint-1.pth"):
            fingerprint(tmp_path)


def test_records_outside_the_folder_are_ignored(tmp_path: Path) -> None:
    names = ["checkpoint-1.pth", "../mine.pth", "/etc/passwd", "a/b.pth", "..", ""]
    records = [asdict(Record(name, 1, 1, 0, "", at_epoch_end=True)) for name in names]
    (tmp_path / "checkpoint-1.pth.json").write_text(json.dumps(records))
    assert [record.file for record in read_records(tmp_path)] == ["checkpoint-1.pth"]


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_published_checkpoints_may_contain_a_namespace(zipped: bool, tmp_path: Path) -> None:
    """No other class is allowed, and this one only while reading."""
    path = tmp_path / "published.pth"
    args = argparse.Namespace(lr=1e-4, in_domains=["rgb", "depth"], betas=(0.9, 0.95), model=None)
    weights = state()
    contents = {"model": weights, "optimizer": {"state": {}}, "epoch": 1599, "args": args}
    torch.save(contents, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(pickle.UnpicklingError, match="argparse.Namespace"):
        torch.load(path, weights_only=True)
    read = read_checkpoint(path)
    assert type(read["args"]) is argparse.Namespace and read["args"] == args
    state_dict, unused = StartWeights(StartOptions(finetune=str(path))).state_dict()
    assert unused == () and all(torch.equal(state_dict[k], v) for k, v in weights.items())
    assert argparse.Namespace not in torch.serialization.get_safe_globals()
    with pytest.raises(pickle.UnpicklingError, match="argparse.Namespace"):
        torch.load(path, weights_only=True)
