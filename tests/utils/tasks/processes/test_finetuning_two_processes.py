"""Training on two processes matches one process at the same global batch size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.processes import run_on_two_processes
from tests.support.scenes import ON_CPU, write_scenes
from tests.utils.tasks.processes.test_finetuning_ranks import TASKS
from tests.utils.tasks.test_finetuning_taskonomy import write_taskonomy

REPO = Path(__file__).parents[4]

# No randomness but that of the samples: Mixup and drop path draw per process.
OPTIONS = {
    "cls": ["--mixup", "0", "--cutmix", "0", "--drop_path", "0", "--layer_decay", "1"],
    "semseg": ["--drop_path_encoder", "0"],
    "depth": ["--drop_path_encoder", "0"],
    "taskonomy": ["--drop_path_encoder", "0"],
}


def losses(folder: Path) -> list[float]:
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if row["kind"] == "train"]


@pytest.mark.parametrize("name", TASKS)
def test_two_processes_match_one(tmp_path: Path, name: str) -> None:
    main, _, _, options = TASKS[name]
    if name == "taskonomy":
        data = ["--data_path", str(write_taskonomy(tmp_path / "views", buildings=5, views=16))]
    else:
        write_scenes(tmp_path / "train", 16)
        data = ["--data_path", str(tmp_path / "train")]
    arguments = [
        *data, *options, *OPTIONS[name], "--eval_data_path", data[1],
        *("--model", "multivit_tiny", "--input_size", "32", "--patch_size", "8"),
        *("--lr", "1e-3", "--warmup_epochs", "0", "--batch_size", "2", "--max_steps", "4"),
        *("--epochs", "4", "--log_every", "1", "--eval_freq", "4", "--max_val_images", "1"),
        *("--num_workers", "0", *ON_CPU, "--num_threads", "1", "--num_pictures", "0"),
        *("--no_save_ckpt", "--seed", "3"),
    ]  # fmt: skip
    # Two accumulated batches of one process are the batches of two processes: losses that are
    # means over valid pixels weight them alike.
    main([*arguments, "--update_freq", "2", "--output_dir", str(tmp_path / "one")])
    two_dir = str(tmp_path / "two")
    run_on_two_processes(f"run_finetuning_{name}.py", *arguments, "--output_dir", two_dir)
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert len(one) == 4 and len(set(one)) == 4
    # Float32 sums of gradients in another order, through four steps of AdamW.
    assert two == pytest.approx(one, rel=1e-5)
