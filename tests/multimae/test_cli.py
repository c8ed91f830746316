"""The ``multimae`` command: info, convert, export."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import torch

import multimae
from multimae import MultiMAE
from multimae.cli import FUNCTIONS, POOLS, main
from multimae.inference.encode import Pool
from multimae.inference.export import What
from multimae.weights.files import extract_state_dict, read_checkpoint, save_state_dict
from multimae.weights.pretrained import spec_entry
from tests.support.golden import golden
from tests.support.states import assert_same

WEIGHTS = Path(__file__).parents[2] / "weights"
PRETRAINED = str(WEIGHTS / "multimae-tiny_rooms.safetensors")
FINETUNED = str(WEIGHTS / "multimae-tiny_rooms-semseg.safetensors")


def test_info_of_pretrained_and_finetuned_weights(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", PRETRAINED]) == 0
    shown = capsys.readouterr().out
    for fact in ("pretrain_multimae_tiny", "128", "semseg: labels, 41", "0.485, 0.456, 0.406"):
        assert fact in shown
    assert main(["info", FINETUNED]) == 0
    assert "head         semseg: 40" in capsys.readouterr().out


def test_info_of_a_vit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_state_dict(golden("convert")["vit"], tmp_path / "vit.pth")
    assert main(["info", str(tmp_path / "vit.pth")]) == 0
    assert "ViT of width 24" in capsys.readouterr().out


def test_convert_round_trip(tmp_path: Path) -> None:
    data = golden("convert")
    source, vit, back = (str(tmp_path / name) for name in ("m.pth", "v.safetensors", "b.pth"))
    save_state_dict(data["multimae"], source)
    assert main(["convert", source, vit, "--to", "vit"]) == 0
    assert_same(extract_state_dict(read_checkpoint(vit)), data["vit"])
    assert main(["convert", vit, back, "--to", "multimae"]) == 0
    state = extract_state_dict(read_checkpoint(back))
    assert_same(state, {key: data["multimae"][key] for key in state})


def test_export_of_a_checkpoint(tmp_path: Path) -> None:
    model = MultiMAE.from_pretrained(PRETRAINED)
    source, target = tmp_path / "checkpoint-best.pth", tmp_path / "half.safetensors"
    torch.save({"model": model.state_dict(), **spec_entry(model)}, source)
    assert main(["export", str(source), str(target)]) == 0
    assert MultiMAE.from_pretrained(target).spec == model.spec


def test_export_in_half_precision(tmp_path: Path) -> None:
    target = tmp_path / "new" / "half.safetensors"
    assert main(["export", PRETRAINED, str(target)]) == 0
    state = extract_state_dict(read_checkpoint(target))
    assert state["global_tokens"].dtype == torch.float16
    assert MultiMAE.from_pretrained(target).spec == MultiMAE.from_pretrained(PRETRAINED).spec


def test_errors_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = str(tmp_path / "none.pth")
    for command in (
        ["info", missing],
        ["convert", missing, "out.pth", "--to", "vit"],
        ["export", missing, "out.safetensors"],
        ["export", missing, "out.onnx"],
    ):
        assert main(command) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ") and missing in line
    for command in (["export", PRETRAINED, "out.bin"], ["convert", "a", "b"], []):
        with pytest.raises(SystemExit, match="2"):
            main(command)


def test_choices_match_the_library() -> None:
    assert get_args(What) == FUNCTIONS
    assert get_args(Pool) == POOLS


def test_version_does_not_import_torch() -> None:
    code = "import sys, multimae.cli as c; c._parser(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    done = subprocess.run(
        [sys.executable, "-m", "multimae", "--version"], capture_output=True, text=True
    )
    assert done.stdout.strip() == f"multimae {multimae.__version__}"
