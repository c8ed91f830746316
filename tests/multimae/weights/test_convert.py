"""Conversion to and from timm: published numbers, timm as oracle, the converter commands."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from multimae.specs.registry import SIZES
from multimae.weights.convert import multimae_to_vit, vit_to_multimae
from multimae.weights.files import extract_state_dict, read_checkpoint, save_state_dict
from multimae.weights.load import is_vit_state_dict, load_weights
from tests.support.golden import assert_close, golden
from tests.support.states import assert_same, multivit, random_timm
from tools import multimae2vit_converter, vit2multimae_converter

ROOT = Path(__file__).parents[3]


def test_golden_multimae_to_vit() -> None:
    data = golden("convert")
    state, unused = multimae_to_vit(data["multimae"])
    assert_same(state, data["vit"])
    assert len(unused) == len(data["multimae"]) - len(data["vit"])
    assert all(k.startswith(("output_adapters.", "input_adapters.")) for k in unused)


def test_golden_keeping_global_tokens() -> None:
    data = golden("convert")
    state, _ = multimae_to_vit(data["multimae"], keep_global_tokens=True)
    assert_same(state, data["vitmultimae"])


def test_golden_vit_to_multimae() -> None:
    data = golden("convert")
    state, unused = vit_to_multimae(data["vit_in"])
    assert_same(state, data["multimae_back"])
    assert set(unused) == {"norm.weight", "norm.bias", "head.weight"}


@pytest.mark.parametrize("variant", ["vit", "vitmultimae"])
def test_golden_round_trip_is_bit_identical(variant: str) -> None:
    data = golden("convert")
    state, unused = vit_to_multimae(data[variant])
    assert_same(state, {k: data["multimae"][k] for k in state})
    assert unused == ()


def test_is_vit_state_dict() -> None:
    data = golden("convert")
    groups = ("multimae", "multimae_back", "vit", "vit_in", "vitmultimae")
    assert [is_vit_state_dict(data[g]) for g in groups] == [False, False, True, True, True]


@pytest.mark.parametrize("size", ["tiny", "base"])
def test_timm_gives_the_same_features(size: str) -> None:
    vit = random_timm(f"vit_{size}_patch16_224")
    state, unused = vit_to_multimae(vit.state_dict())
    model = multivit(224, **SIZES[size])
    report = load_weights(model, state, source="timm", strict=True)
    assert unused == ()
    assert not report.resized

    image = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        theirs, ours = vit(image), model(image)
    assert isinstance(ours, Tensor)
    assert_close(ours, torch.cat([theirs[:, 1:], theirs[:, :1]], dim=1))

    back, _ = multimae_to_vit(model.state_dict())
    original = vit.state_dict()
    cls_row = original["pos_embed"][:, :1].clone()
    original["cls_token"] += cls_row  # folded into the token by the conversion
    original["pos_embed"][:, :1] = 0
    assert_same(back, original)


@settings(max_examples=25, deadline=None)
@given(h=st.integers(1, 5), w=st.integers(1, 5), globals_=st.integers(0, 3), keep=st.booleans())
def test_round_trip_with_any_grid(h: int, w: int, globals_: int, keep: bool) -> None:
    state = {
        "global_tokens": torch.randn(1, globals_ if keep else 1, 8),
        "input_adapters.rgb.pos_emb": torch.randn(1, 8, h, w),
        "input_adapters.rgb.proj.weight": torch.randn(8, 3, 4, 4),
        "encoder.0.norm1.weight": torch.randn(8),
    }
    vit, _ = multimae_to_vit(state, keep_global_tokens=keep)
    assert vit["pos_embed"].shape == (1, h * w + (not keep), 8)
    assert_same(vit_to_multimae(vit, grid=(h, w)).state, state)


def test_mae_decoder_keys_are_unused(tmp_path: Path) -> None:
    vit = golden("convert")["vit"]
    decoder = {
        "mask_token": torch.zeros(1, 1, 16),
        "decoder_pos_embed": torch.zeros(1, 10, 16),
        "decoder_blocks.0.norm1.weight": torch.zeros(16),
        "decoder_pred.bias": torch.zeros(768),
        "norm.weight": torch.ones(24),
    }
    torch.save({"model": {**vit, **decoder}}, tmp_path / "mae.pth")
    state, unused = vit_to_multimae(extract_state_dict(read_checkpoint(tmp_path / "mae.pth")))
    assert set(unused) == set(decoder)
    load_weights(multivit(), state, source="mae", strict=True)


def test_class_token_without_a_position() -> None:
    """timm's ``no_embed_class``: the position table covers patches only."""
    vit = dict(golden("convert")["vit"])
    vit["pos_embed"] = vit["pos_embed"][:, 1:]
    assert torch.equal(vit_to_multimae(vit).state["global_tokens"], vit["cls_token"])


@pytest.mark.parametrize(
    "key", ["blocks.0.ls1.gamma", "blocks.1.attn.q_norm.weight", "reg_token", "norm_pre.weight"]
)
def test_parts_that_change_features_are_refused(key: str) -> None:
    with pytest.raises(ValueError, match=f"parts that MultiMAE's encoder lacks: {key}"):
        vit_to_multimae({**golden("convert")["vit"], key: torch.ones(24)})


def test_conversion_refuses_other_weights() -> None:
    data = golden("convert")
    with pytest.raises(ValueError, match="not the weights of a ViT"):
        vit_to_multimae(data["multimae"])
    with pytest.raises(ValueError, match="not the weights of a MultiMAE"):
        multimae_to_vit(data["vit"])
    with pytest.raises(ValueError, match="no image input 'semseg'.*it has rgb, depth"):
        multimae_to_vit(dict(sorted(data["multimae"].items(), reverse=True)), modality="semseg")
    with pytest.raises(ValueError, match="3 global tokens but a ViT has one cls_token"):
        multimae_to_vit({**data["multimae"], "global_tokens": torch.zeros(1, 3, 24)})
    with pytest.raises(ValueError, match="grid 2x3 does not match 10 rows"):
        vit_to_multimae(data["vit"], grid=(2, 3))
    with pytest.raises(ValueError, match="not a square grid for 8 rows"):
        vit_to_multimae({**data["vit"], "pos_embed": torch.zeros(1, 8, 24)})


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_converter_commands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], suffix: str
) -> None:
    data = golden("convert")
    multimae, vit, back = (str(tmp_path / f"{n}{suffix}") for n in ("multimae", "vit", "back"))
    save_state_dict(data["multimae"], multimae)
    flags = ["--multimae_ckpt_path", multimae, "--vit_ckpt_path", vit]
    assert multimae2vit_converter.main(flags) == 0
    assert "unused: output_adapters.rgb.mask_token" in capsys.readouterr().out
    assert_same(extract_state_dict(read_checkpoint(vit)), data["vit"])

    flags = ["--vit_ckpt_path", vit, "--multimae_ckpt_path", back]
    assert vit2multimae_converter.main(flags) == 0
    assert "28 tensors converted, 0 unused" in capsys.readouterr().out
    state = extract_state_dict(read_checkpoint(back))
    assert_same(state, {k: data["multimae"][k] for k in state})

    flags = ["--multimae_ckpt_path", multimae, "--vit_ckpt_path", vit, "--keep_global_tokens"]
    assert multimae2vit_converter.main(flags) == 0
    assert_same(extract_state_dict(read_checkpoint(vit)), data["vitmultimae"])


@pytest.mark.parametrize("direction", ["vit2multimae", "multimae2vit"])
@pytest.mark.parametrize("problem", ["missing", "wrong kind", "no folder"])
def test_converter_commands_on_bad_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], direction: str, problem: str
) -> None:
    data = golden("convert")
    kinds = ("vit", "multimae") if direction == "vit2multimae" else ("multimae", "vit")
    main = (
        vit2multimae_converter.main if direction == "vit2multimae" else multimae2vit_converter.main
    )
    source, out = tmp_path / "in.safetensors", tmp_path / "out.pth"
    if problem != "missing":
        save_state_dict(data[kinds[problem == "wrong kind"]], source)
    if problem == "no folder":
        out = tmp_path / "none" / "out.pth"
    flags = [f"--{kinds[0]}_ckpt_path", str(source), f"--{kinds[1]}_ckpt_path", str(out)]
    assert main(flags) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert not out.exists()


def test_converter_runs_as_a_script(tmp_path: Path) -> None:
    script = ROOT / "tools" / "vit2multimae_converter.py"
    flags = ["--vit_ckpt_path", "none.pth", "--multimae_ckpt_path", "out.pth"]
    done = subprocess.run(
        [sys.executable, str(script), *flags], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.strip() == "error: checkpoint none.pth is not a file: check the path"
