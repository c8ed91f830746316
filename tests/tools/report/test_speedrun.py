"""The speedrun: what belongs to the task cannot be changed, and a row says whether it counts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from tools import speedrun
from utils.config.parse import parse_config
from utils.config.pretrain_options import PretrainConfig


@pytest.mark.parametrize("name", speedrun.FORMS)
def test_recipes_are_valid_and_the_task_stays(name: str) -> None:
    form = speedrun.FORMS[name]
    changes = ("--device", "cpu", "--input_size", "32", "--model", "pretrain_multimae_large")
    changes += ("--alphas", "9", "--sample_tasks_uniformly", "--patch_size", "8")
    changes += ("--no_extra_norm_pix_loss", "--init_weights", "trained.safetensors")
    cfg = parse_config(PretrainConfig, [*form.recipe, *changes, *form.task])
    plain = parse_config(PretrainConfig, ["--device", "cpu", *form.recipe, *form.task])
    assert cfg == plain
    assert cfg.model.model == f"pretrain_multimae_{form.model}"
    assert cfg.model.input_size == form.side
    assert cfg.model.num_encoded_tokens * 6 == 3 * (form.side // 16) ** 2


@pytest.mark.parametrize(("losses", "code"), [((0.5, 0.5, 2.0, 0.9), 0), ((0.5, 0.5, 9.0, 0.9), 1)])
def test_a_row_is_added(
    losses: Sequence[float], code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[Sequence[str]] = []

    def run(command: Sequence[str]) -> None:
        commands.append(command)
        if "--output_dir" in command:
            out = Path(command[command.index("--output_dir") + 1])
            out.mkdir(parents=True)
            values = dict(zip((f"eval/{n}" for n in speedrun.OUTPUTS), losses, strict=True))
            rows = [{"kind": "eval", **values}, {"kind": "train"}]
            (out / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    monkeypatch.setattr(speedrun, "_run", run)
    table = tmp_path / "table.md"
    where = ("--work", str(tmp_path), "--table", str(table))
    assert speedrun.main(["short", *where, "--note", "busy", "--", "--epochs", "1"]) == code
    render, train = commands
    assert render[0] == "tools/make_rooms.py" and train[-1] != "--epochs"
    assert list(train).index("1") < list(train).index("--model")
    row = table.read_text()
    assert ("missed" in row) == bool(code)
    assert f"{sum(losses):.3f}" in row and "busy" in row and "--epochs 1" in row
