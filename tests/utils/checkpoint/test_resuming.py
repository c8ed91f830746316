"""Changes that a resumed run accepts, applies or refuses."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import torch
from torch.amp.grad_scaler import GradScaler

import run_finetuning_depth
from multimae.specs.errors import UserError
from run_pretraining_multimae import main
from tests.support.scenes import tiny_run, write_scene, write_scenes
from tests.utils.config.test_config_contract import SCRIPTS
from tests.utils.tasks.test_finetuning_depth import arguments
from tests.utils.training.test_stepper import LinearTask
from utils.checkpoint.resume import compare_options
from utils.config.fields import Option, options_of
from utils.distributed.world import World
from utils.logs.log_rows import cut_log
from utils.logs.logger import RunLogger
from utils.training.state import TrainState
from utils.training.stepper import Stepper

FREE = {
    # Checked by sample names, a checksum of the labels and the global batch size instead.
    *("data_path", "test_data_path", "taskonomy_splits", "batch_size", "update_freq"),
    *("label_file", "eval_label_file", "probe_freq", "probe_data_path", "probe_label_file"),
    *("num_workers", "pin_mem", "data_cache_gb", "index_cache", "eval_batch_size"),
    *("max_test_images", "device", "num_threads"),
    *("grad_checkpointing", "compile", "parallel", "find_unused_params", "model_ema_force_cpu"),
    *("world_size", "local_rank", "dist_on_itp", "dist_url", "dist_eval", "show_user_warnings"),
    *("output_dir", "resume", "auto_resume", "save_ckpt", "save_ckpt_freq", "save_ckpt_steps"),
    *("save_ckpt_minutes", "keep_ckpts", "async_save", "log_every", "eval_freq", "num_pictures"),
    *("disable_eval_during_finetuning", "log_images_wandb", "log_images_freq", "dataset_name"),
    *("log_tensorboard", "log_wandb", "wandb_project", "wandb_entity", "wandb_run_name"),
    *("wandb_group", "eval", "test", "tmp", "resplit", "override_inputs", "compile_mode"),
    "attention",
    *("profile", "peak_tflops"),
}
APPLIED = {
    *("epochs", "max_steps", "eval_data_path", "on_bad_sample", "max_bad_samples"),
    *("precision", "fp16", "deterministic", "on_nonfinite", "early_stop_patience", "device_crops"),
}
ACCEPTED_ONLY = {("run_finetuning_taskonomy", name) for name in ("decoder_dim", "decoder_depth")}


def expected(script: str, name: str) -> str:
    if name in FREE or (script, name) in ACCEPTED_ONLY:
        return "free"
    return "applied" if name in APPLIED else "refused"


def other_value(option: Option) -> Any:
    """A value of the option's type that is not its default."""
    value, hint = option.default, option.base_hint
    if get_origin(hint) is Literal:
        return next((w for w in get_args(hint) if w != value), "another")
    if option.is_bool:
        return not value
    if option.is_mapping:
        return {"thermal": {"num_channels": 1}}
    if option.is_tuple:
        return (0.25, 0.5)
    return f"{value}-other" if hint is str else (value or 0) + 1


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_option_is_free_applied_or_refused(script: str) -> None:
    """Each option of each script, changed alone."""
    options = options_of(SCRIPTS[script][0]())
    saved = {name: option.default for name, option in options.items()}
    assert not any(compare_options(saved, options).values())
    for name, option in options.items():
        changed = {**options, name: replace(option, default=other_value(option))}
        found = {kind: lines for kind, lines in compare_options(saved, changed).items() if lines}
        assert list(found) == [expected(script, name)], name
        (line,) = found[expected(script, name)]
        assert line.startswith(name) and " -> " in line


def test_values_from_files_and_flags_compare_equal() -> None:
    options = options_of(SCRIPTS["run_pretraining_multimae"][0]())
    saved = {"opt_betas": [0.9, 0.95], "modalities": {}, "an_option_of_another_version": 1}
    assert not any(compare_options(saved, options).values())


def test_nan_as_a_missing_value_compares_equal() -> None:
    options = options_of(SCRIPTS["run_pretraining_multimae"][0]())
    own = {"thermal": {"no_data": float("nan"), "mean": [float("nan"), 1.0]}}
    named = {"modalities": replace(options["modalities"], default=own)}
    saved = {"modalities": {"thermal": {"no_data": float("nan"), "mean": [float("nan"), 1.0]}}}
    assert not any(compare_options(saved, named).values())
    saved["modalities"]["thermal"]["no_data"] = 0.0
    assert compare_options(saved, named)["refused"] == ["modalities.thermal.no_data: 0.0 -> nan"]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("train"), 8)


@pytest.fixture(scope="module")
def begun(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that stopped after two of four steps."""
    folder = tmp_path_factory.mktemp("run")
    main(tiny_run(scenes, folder, "--max_steps", "2"))
    return folder


@pytest.fixture
def run(begun: Path, tmp_path: Path) -> Path:
    shutil.copytree(begun, tmp_path / "run")
    return tmp_path / "run"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    ("flags", "facts"),
    [
        (["--weight_decay", "0.3"], ["weight_decay: 0.05 -> 0.3"]),
        (["--opt_betas", "0.8", "0.9"], ["opt_betas: [0.9, 0.95] -> [0.8, 0.9]"]),
        (["--opt", "sgd"], ["opt: adamw -> sgd"]),
        (["--seed", "9"], ["seed: 0 -> 9"]),
        (["--task_balancer", "uncertainty"], ["task_balancer: none -> uncertainty"]),
        (["--in_domains", "semseg-rgb-depth"], ["in_domains", "modalities: rgb, depth, semseg"]),
        (["--batch_size", "2"], ["batch_size", "4 -> 2"]),
        (["--modalities", "{semseg: {num_classes: 6}}"], ["modalities.semseg.num_classes: 5 -> 6"]),
        (["--decoder_dim", "64", "--model", "pretrain_multimae_tiny"], ["decoder_dim: 32 -> 64"]),
    ],
)
def test_changed_options_are_refused_without_writing(
    scenes: Path, run: Path, flags: list[str], facts: list[str]
) -> None:
    before = contents(run)
    with pytest.raises(UserError) as info:
        main(tiny_run(scenes, run, "--max_steps", "4", *flags))
    for fact in (*facts, "--no_auto_resume", str(run / "previous-1"), "--output_dir"):
        assert fact in str(info.value)
    assert contents(run) == before


@pytest.mark.parametrize("count", [4, 12])
def test_a_data_set_that_grew_or_shrank_is_refused(
    scenes: Path, run: Path, tmp_path: Path, count: int
) -> None:
    write_scenes(tmp_path / "data", count)
    with pytest.raises(UserError, match=f"training samples: 8 names -> {count} names"):
        main(tiny_run(tmp_path / "data", run))


def test_other_names_of_the_same_number_are_refused(run: Path, tmp_path: Path) -> None:
    data = write_scenes(tmp_path / "data", 8)
    for path in list(data.rglob("000.*")):
        path.rename(path.with_stem("100"))
    with pytest.raises(UserError, match="training samples: 8 names -> 8 other names"):
        main(tiny_run(data, run))


def test_other_statistics_of_the_same_names_are_refused(tmp_path: Path) -> None:
    data = write_scenes(tmp_path / "data", 4)
    computed = "{semseg: {num_classes: 5}, depth: {normalization: computed}}"
    more = ("--modalities", computed, "--max_steps", "1")
    main(tiny_run(data, tmp_path / "out", *more))
    main(tiny_run(data, tmp_path / "out", *more))
    for seed, path in enumerate(sorted((data / "depth").rglob("*.png"))):
        write_scene(tmp_path / "new", f"{path.parent.name}/{path.stem}", seed + 50, side=48)
    with pytest.raises(UserError, match="modalities.depth.mean: "):
        main(tiny_run(tmp_path / "new", tmp_path / "out", *more))


def test_moved_data_set_and_more_steps_are_accepted(
    scenes: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(scenes, tmp_path / "moved")
    more = ("--max_steps", "3", "--batch_size", "2", "--update_freq", "2")
    main(tiny_run(tmp_path / "moved", run, *more))
    said = capsys.readouterr().out
    assert "resumed from" in said and "max_steps: 2 -> 3" in said and "batch_size" not in said
    assert "max_steps: 3" in (run / "config.yaml").read_text()


def test_no_auto_resume_moves_the_old_run_aside(
    scenes: Path, run: Path, begun: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("--max_steps", "2", "--seed", "9", "--no_auto_resume")
    before = contents(run)
    main(tiny_run(scenes, run, *more))
    assert str(run / "previous-1") in capsys.readouterr().out
    assert contents(run / "previous-1") == before
    main(tiny_run(scenes, tmp_path / "alone", *more))
    model = (run / "model.safetensors").read_bytes()
    assert model == (tmp_path / "alone/model.safetensors").read_bytes()
    main(tiny_run(scenes, run, *more))
    assert (run / "previous-2/config.yaml").is_file()


def test_a_checkpoint_of_another_folder_moves_the_run_of_this_one_aside(
    scenes: Path, run: Path, begun: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    used = tmp_path / "used"
    main(tiny_run(scenes, used, "--max_steps", "1", "--seed", "9"))
    before = contents(used)
    (path,) = (begun / "checkpoints").glob("checkpoint-*.pth")
    main(tiny_run(scenes, used, "--resume", str(path)))
    said = capsys.readouterr().out
    assert f"resumed from {path}" in said and str(used / "previous-1") in said
    assert contents(used / "previous-1") == before
    assert [step for _, step in rows(used)] == [3, 4]
    main(tiny_run(scenes, run))
    model = (used / "model.safetensors").read_bytes()
    assert model == (run / "model.safetensors").read_bytes()
    (own,) = (used / "checkpoints").glob("checkpoint-[0-9]*.pth")
    main(tiny_run(scenes, used, "--resume", str(own), "--epochs", "3"))  # continues this run
    assert [step for _, step in rows(used)] == [3, 4, 5, 6]
    assert not (used / "previous-2").exists()


def test_another_evaluation_set_is_said_and_its_scores_are_not_compared(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The model is better at the first set: there the later checkpoint would not be the best."""
    out, other, more = tmp_path / "out", tmp_path / "other", ("--num_pictures", "0")
    write_scenes(other, 3)
    main(tiny_run(scenes, out, *more, "--eval_data_path", str(scenes), "--max_steps", "2"))
    (path,) = (out / "checkpoints").glob("checkpoint-[0-9]*.pth")
    state = torch.load(path, weights_only=True)
    state["best"] = 1e9  # whatever follows is worse
    torch.save(state, path)
    path.with_name(f"{path.name}.json").unlink()
    best = out / "checkpoints/checkpoint-best.pth"
    first = best.read_bytes()
    shutil.copytree(out, tmp_path / "same")
    shutil.copytree(scenes, tmp_path / "moved")
    same = ("--eval_data_path", str(tmp_path / "moved"))  # the same names
    main(tiny_run(scenes, tmp_path / "same", *more, *same))
    assert "evaluation samples" not in capsys.readouterr().out
    assert (tmp_path / "same/checkpoints/checkpoint-best.pth").read_bytes() == first
    main(tiny_run(scenes, out, *more, "--eval_data_path", str(other)))
    assert "evaluation samples: 8 names -> 3 names" in capsys.readouterr().out
    assert best.read_bytes() != first
    assert torch.load(best, weights_only=True)["step"] == 4


def test_a_rollback_does_not_restore_the_best_value_of_another_evaluation_set() -> None:
    world, old, new = World(0, 1, torch.device("cpu")), {"count": 1}, {"count": 2}
    task: Any = LinearTask()
    states = [
        TrainState(task, torch.optim.SGD(task.parameters()), GradScaler("cpu", enabled=False))
        for _ in range(2)
    ]
    saved, state = states
    saved.best, saved.eval_samples = 0.5, old
    state.load_state_dict(saved.state_dict(world), world)
    assert (state.best, state.eval_samples) == (0.5, old)
    assert state.evaluate_on(new) and state.best is None
    state.load_state_dict(saved.state_dict(world), world)
    assert (state.best, state.eval_samples) == (None, new)
    assert not state.evaluate_on(new)


def test_checkpoints_of_older_versions_resume(
    scenes: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (path,) = (run / "checkpoints").glob("checkpoint-*.pth")
    state = torch.load(path, weights_only=True)
    for key in ("identity", "scored", "config"):
        del state[key]
    torch.save(state, path)
    path.with_name(f"{path.name}.json").unlink()
    main(tiny_run(scenes, run))
    said = capsys.readouterr().out
    assert f"resumed from {path}" in said and said.count("older version") == 1


@pytest.mark.parametrize("has_spec", [True, False])
def test_depth_standardized_by_an_older_version_is_not_prepared_anew(
    scenes: Path, tmp_path: Path, has_spec: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before robust_unit, depth was standardized without a division by 2^16."""
    semseg, out = "semseg: {num_classes: 5}", tmp_path / "out"
    keep = "depth: {robust_unit: 1}"
    old = ("--standardize_depth", "--modalities", f"{{{semseg}, {keep}}}")
    new = ("--standardize_depth", "--modalities", f"{{{semseg}}}")
    main(tiny_run(scenes, out, *old, "--max_steps", "1"))
    (path,) = (out / "checkpoints").glob("checkpoint-*.pth")
    state = torch.load(path, weights_only=True)
    del state["config"]["modalities"]["depth"]
    if not has_spec:
        del state["spec"]
    torch.save(state, path)
    path.with_name(f"{path.name}.json").unlink()
    before = contents(out)
    with pytest.raises(UserError) as info:
        main(tiny_run(scenes, out, *new))
    facts = ("modalities.depth.robust_unit: 1 -> 65536", f"--modalities '{{{keep}}}'")
    for fact in (*facts, "--no_auto_resume"):
        assert fact in str(info.value)
    assert contents(out) == before
    with pytest.raises(UserError, match="modalities.depth.robust_unit: 1 -> 3"):
        main(tiny_run(scenes, out, *new[:-1], f"{{{semseg}, depth: {{robust_unit: 3}}}}"))
    main(tiny_run(scenes, out, *old, "--max_steps", "2"))
    assert f"resumed from {path}" in capsys.readouterr().out


def test_nothing_is_recorded_before_the_start_has_succeeded(scenes: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError):
        main(tiny_run(scenes, tmp_path / "out", "--eval_data_path", str(tmp_path / "nowhere")))
    assert not contents(tmp_path / "out")


def test_fine_tuning_resumes_without_the_weights_it_started_from(
    scenes: Path, begun: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(scenes, data / "train")
    shutil.copytree(scenes, data / "val")
    start = tmp_path / "start.safetensors"
    shutil.copy(begun / "model.safetensors", start)
    more = ("--finetune", str(start), "--num_pictures", "0", "--save_ckpt_freq", "1")
    run_finetuning_depth.main(arguments(data, tmp_path / "out", *more, "--max_steps", "2"))
    report = (tmp_path / "out/weights.txt").read_text()
    start.unlink()
    run_finetuning_depth.main(arguments(data, tmp_path / "out", *more))
    assert (tmp_path / "out/weights.txt").read_text() == report
    assert max(step for _, step in rows(tmp_path / "out")) == 4


def rows(folder: Path) -> list[tuple[str, int]]:
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [(row["kind"], row["step"]) for row in map(json.loads, lines)]


def test_a_finished_run_keeps_its_last_evaluation(scenes: Path, tmp_path: Path) -> None:
    """It ended within an epoch, by --max_steps."""
    more = ("--max_steps", "3", "--eval_data_path", str(scenes), "--num_pictures", "0")
    main(tiny_run(scenes, tmp_path, *more))
    first = rows(tmp_path)
    assert first[-1] == ("eval", 3)
    main(tiny_run(scenes, tmp_path, *more))
    assert rows(tmp_path) == first


@pytest.mark.parametrize("ending", [b'{"kind": "train", "step": 2, "loss": 1.0}', b'{"kind": "tr'])
def test_foreign_log_lines_and_torn_lines_are_ignored(tmp_path: Path, ending: bytes) -> None:
    foreign = [b"[1, 2]\n", b"3\n", b"not JSON\n", b'{"note": "mine"}\n', b'{"kind": "gpu"}\n']
    own = [b'{"kind": "%s", "step": %d}\n' % (kind, n) for n in (1, 3) for kind in (b"train",)]
    log = tmp_path / "log.jsonl"
    log.write_bytes(b"".join([*foreign, *own, ending]))
    cut_log(log, 2, scored=True)
    complete = ending.endswith(b"}")
    assert log.read_bytes() == b"".join([*foreign, own[0], ending if complete else b""])
    options = SCRIPTS["run_pretraining_multimae"][0]().log
    with RunLogger(options, str(tmp_path), {}) as logger:
        logger.rewind(2, scored=True)
        logger.eval(2, 1.0, {})
    assert json.loads(log.read_bytes().splitlines()[-1])["kind"] == "eval"


def test_rollback_works_after_start_epoch(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    step, bad = Stepper.step, [3]

    def poisoned(self: Stepper, state: TrainState, batches: Any) -> Any:
        update = step(self, state, batches)
        if state.step in bad:
            bad.remove(state.step)
            update.logs["loss"] = update.logs["loss"] * torch.nan
        return update

    monkeypatch.setattr(Stepper, "step", poisoned)
    more = ("--epochs", "3", "--start_epoch", "1", "--on_nonfinite", "rollback")
    main(tiny_run(scenes, tmp_path, *more))
    assert "checkpoint-step2.pth" in capsys.readouterr().out and not bad
    assert [step for _, step in rows(tmp_path)][-1] == 6


def test_optimizer_state_is_read_only_for_checkpoints(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    original = torch.optim.AdamW.state_dict

    def counted(self: torch.optim.AdamW) -> Any:
        read.append(1)
        return original(self)

    monkeypatch.setattr(torch.optim.AdamW, "state_dict", counted)
    more = ("--eval_data_path", str(scenes), "--num_pictures", "0", "--epochs", "3")
    main(tiny_run(scenes, tmp_path, *more))  # evaluates three times, saves once
    assert len(read) == 1
