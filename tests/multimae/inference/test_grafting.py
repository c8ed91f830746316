"""Grafting modalities onto a checkpoint, and initialising pre-training from weights."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

import run_pretraining_multimae
from multimae import MultiMAE
from multimae.inference.graft import graft, grown_spec
from multimae.specs.errors import UserError
from multimae.specs.modalities import Modality, make_table, select
from multimae.specs.spec import ModelSpec
from multimae.weights.convert import multimae_to_vit
from multimae.weights.pretrained import save_model
from tests.support.scenes import ON_CPU, tiny_run, write_scenes
from tools.graft_modality import GraftOptions, Outcome, main, read_new_modalities, run_config
from utils.checkpoint.start_weights import freeze_all_but
from utils.config.pretrain_options import PretrainConfig

NORMALS = Modality("normals", loss="l1", interpolation="nearest", plot="normals")
ROWS = "normals: {num_channels: 3, loss: l1, interpolation: nearest, std: 0.5}"


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("scenes"), 8)


@pytest.fixture(scope="module")
def checkpoint(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    more = ("--in_domains", "rgb-depth", "--out_domains", "rgb-depth")
    run_pretraining_multimae.main(tiny_run(scenes, out, *more))
    return out / "model.safetensors"


def test_graft_keeps_predictions_of_old_modalities(checkpoint: Path) -> None:
    old = MultiMAE.from_pretrained(checkpoint)
    new, report, cloned = graft(old, [NORMALS], clone="rgb")
    assert list(new.input_adapters) == ["rgb", "depth", "normals"]
    assert list(new.output_adapters) == ["rgb", "depth", "normals", "norm_rgb"]
    assert not report.mismatched and not report.unused
    x = {"rgb": torch.randn(2, 3, 32, 32), "depth": torch.randn(2, 1, 32, 32)}
    kwargs = {"num_encoded_tokens": 8}
    before, masks = old(x, generator=torch.Generator().manual_seed(0), **kwargs)
    after, _ = new(x, task_masks=masks)
    for name, value in before.items():
        torch.testing.assert_close(after[name], value)
    state, grown = old.state_dict(), new.state_dict()
    assert "input_adapters.normals.proj.weight" in cloned
    key = "input_adapters.{}.proj.weight"
    torch.testing.assert_close(grown[key.format("normals")], state[key.format("rgb")])


def test_cloned_projection_keeps_output_magnitude(checkpoint: Path) -> None:
    old = MultiMAE.from_pretrained(checkpoint)
    row = dataclasses.replace(NORMALS, name="heat", num_channels=1, plot="scalar")
    new, _, cloned = graft(old, [row], clone="rgb")
    weight = new.state_dict()["input_adapters.heat.proj.weight"]
    parent = old.state_dict()["input_adapters.rgb.proj.weight"]
    torch.testing.assert_close(weight[:, 0], parent.sum(dim=1))
    assert "output_adapters.heat.out_proj.weight" not in cloned
    assert "output_adapters.heat.proj_context.weight" in cloned
    with pytest.raises(ValueError, match="no input 'normls'"):
        graft(old, [row], clone="normls")
    with pytest.raises(ValueError, match="already has rgb"):
        grown_spec(old.spec, [dataclasses.replace(NORMALS, name="rgb")])


def test_train_only_freezes_old_parameters(checkpoint: Path) -> None:
    new, _, _ = graft(MultiMAE.from_pretrained(checkpoint), [NORMALS])
    freeze_all_but(new, new.spec.outputs, ["normals"])
    trained = {k for k, p in new.named_parameters() if p.requires_grad}
    assert trained and all("normals" in k for k in trained)
    assert "output_adapters.rgb.task_embeddings.normals" in trained
    assert "input_adapters.normals.pos_emb" not in trained


def test_command_trains_and_checks(
    scenes: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "add.yaml").write_text(ROWS)
    arguments = [
        *(str(checkpoint), "--add", str(tmp_path / "add.yaml"), "--clone", "rgb"),
        *("--data_path", str(scenes), "--eval_data_path", str(scenes)),
        *("--output_dir", str(tmp_path / "out"), "--batch_size", "4", *ON_CPU),
        *("--steps", "0", "--warmup_steps", "2"),
    ]
    # Run in this process: a subprocess does not know the size `nano`.
    import tools.graft_modality as grafting

    def run(command: list[str], **options: object) -> object:
        run_pretraining_multimae.main(command[2:])
        return dataclasses.make_dataclass("Done", [("returncode", int)])(0)

    patch = pytest.MonkeyPatch()
    patch.setattr(grafting.subprocess, "run", run)
    try:
        code = main(arguments)
        again = main(arguments)
    finally:
        patch.undo()
    assert code == again
    outcome = json.loads((tmp_path / "out/check.json").read_text())
    # With warm-up alone, losses of the old modalities do not change.
    assert outcome["after"] == pytest.approx(outcome["before"], rel=1e-4)
    assert set(outcome["new"]) == {"normals"}
    spec = MultiMAE.from_pretrained(tmp_path / "out/warmup/model.safetensors").spec
    assert [m.name for m in spec.inputs] == ["rgb", "depth", "normals"]
    assert "normals (new)" in capsys.readouterr().out


def test_outcome_reports_regressions_and_missed_baseline() -> None:
    outcome = Outcome(
        {"a": 1.0, "b": 1.0}, {"a": 1.029, "b": 1.031}, {"c": (0.5, 0.6, 0.5), "d": (0.1, 0.6, 0.5)}
    )
    problems = outcome.problems()
    assert (
        len(problems) == 2 and "'b' got worse" in problems[0] and "'c' does not beat" in problems[1]
    )
    assert "+2.9%" in outcome.table()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("modalities: {rgb: {num_channels: 3}}", "already has rgb"),
        ("normals: {kid: image}", "did you mean kind"),
        ("- normals", "expected modalities"),
        ("a: [", "not YAML"),
    ],
)
def test_invalid_added_modalities_are_rejected(tmp_path: Path, text: str, expected: str) -> None:
    spec = ModelSpec("pretrain_multimae_nano", tuple(select(make_table(), ["rgb"])))
    (tmp_path / "add.yaml").write_text(text)
    with pytest.raises(UserError, match=expected):
        read_new_modalities(tmp_path / "add.yaml", spec)


def test_fields_that_contradict_the_checkpoint_are_listed(tmp_path: Path) -> None:
    trained = make_table({"depth": {"normalization": "robust", "robust_unit": 65536}})
    depth = trained["depth"]
    spec = ModelSpec("pretrain_multimae_nano", (trained["rgb"], depth), (depth,))
    path = tmp_path / "add.yaml"
    path.write_text(
        "train_interpolation: nearest\nstandardize_depth: true\nmodalities:\n"
        "  depth: {max_value: 255, robust_unit: 65536, folder: depth2, loss: l1}\n"
        f"  {ROWS}\n  relief: {{source: depth, norm_pix: true, num_channels: 1, stride: 2}}\n"
    )
    with pytest.raises(UserError) as raised:
        read_new_modalities(path, spec)
    listed = [line for line in str(raised.value).splitlines() if line.startswith("  - ")]
    assert [line.split("weights'")[0] for line in listed] == [
        "  - rgb: interpolation: the ",
        "  - depth: max_value: the ",
        "  - depth: folder: the ",
        "  - relief (source depth): stride: the ",
    ]
    assert "65535, yours 255" in listed[1] and "None, yours depth2" in listed[2]
    path.write_text(f"{ROWS}\nrelief: {{source: depth, norm_pix: true, num_channels: 1}}\n")
    _, relief = read_new_modalities(path, spec)
    assert (relief.max_value, relief.normalization, relief.robust_unit) == (65535, "robust", 65536)


def test_run_config_reproduces_the_spec(checkpoint: Path, scenes: Path) -> None:
    from utils.config.parse import parse_config
    from utils.tasks.pretraining import model_spec, run_modalities

    spec = grown_spec(MultiMAE.from_pretrained(checkpoint).spec, [NORMALS])
    options = GraftOptions(scenes, scenes, scenes, batch_size=4)
    config = run_config(spec, options, 10, 1e-4)
    flags = [f"--{k}={json.dumps(v) if isinstance(v, dict) else v}" for k, v in config.items()
             if not isinstance(v, list | bool)]  # fmt: skip
    cfg = parse_config(PretrainConfig, [*flags, *(f"--{'' if v else 'no_'}{k}" for k, v in
                       config.items() if isinstance(v, bool))])  # fmt: skip
    assert model_spec(cfg, *run_modalities(cfg)) == spec


def test_pretraining_loads_a_vit_and_reports_every_key(
    checkpoint: Path, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vit = dict(multimae_to_vit(MultiMAE.from_pretrained(checkpoint).state_dict()).state)
    vit["head.weight"] = torch.zeros(10, 64)
    vit["decoder_blocks.0.norm1.weight"] = torch.zeros(64)
    torch.save({"teacher": {f"backbone.{k}": v for k, v in vit.items()}}, tmp_path / "dino.pth")
    out = tmp_path / "out"
    more = ("--init_weights", str(tmp_path / "dino.pth"), "--init_prefix", "backbone.")
    run_pretraining_multimae.main(tiny_run(scenes, out, *more, "--max_steps", "1"))
    assert "tensors loaded" in capsys.readouterr().out
    fates = dict(reversed(line.split()) for line in (out / "weights.txt").read_text().splitlines())
    assert fates["encoder.0.attn.qkv.weight"] == "loaded"
    assert fates["input_adapters.rgb.proj.weight"] == "loaded"
    assert fates["input_adapters.depth.proj.weight"] == "new"
    assert fates["head.weight"] == fates["decoder_blocks.0.norm1.weight"] == "unused"


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("--init_weights", "http://x/y.pth"), "https"),
        (("--train_only", "dept"), "did you mean depth"),
    ],
)
def test_invalid_initialisation_flags_are_rejected(
    scenes: Path, flags: tuple[str, str], expected: str
) -> None:
    with pytest.raises(UserError, match=expected):
        run_pretraining_multimae.main(tiny_run(scenes, "", *flags))


def test_shifted_input_statistics_give_a_warning(
    scenes: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = MultiMAE.from_pretrained(checkpoint)
    rgb = dataclasses.replace(model.spec.inputs[0], mean=(0.0,), std=(0.05,))
    spec = dataclasses.replace(model.spec, inputs=(rgb, *model.spec.inputs[1:]))
    spec = dataclasses.replace(spec, outputs=(rgb, *spec.outputs[1:]))
    save_model(model.state_dict(), spec, tmp_path / "w.safetensors")
    more = ("--init_weights", str(tmp_path / "w.safetensors"), "--max_steps", "1")
    run_pretraining_multimae.main(tiny_run(scenes, tmp_path / "out", *more))
    printed = capsys.readouterr().out
    assert "warning: modality 'rgb'" in printed and "standard deviations apart" in printed
