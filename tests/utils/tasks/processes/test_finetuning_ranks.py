"""Metrics do not depend on the world size."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import run_finetuning_cls
import run_finetuning_depth
import run_finetuning_semseg
import run_finetuning_taskonomy
from tests.support.processes import run_on_two_processes
from tests.support.scenes import ON_CPU, write_scenes
from tests.utils.tasks.test_finetuning_taskonomy import write_taskonomy
from utils.config.cls_options import ClsConfig
from utils.config.depth_options import DepthConfig
from utils.config.parse import parse_config
from utils.config.semseg_options import SemsegConfig
from utils.config.taskonomy_options import TaskonomyConfig
from utils.data.batches import Sample, collate
from utils.data.samplers import EvalBatchSampler, SampleKey
from utils.distributed.world import World
from utils.tasks.classification import ClassificationFinetuning
from utils.tasks.depth_estimation import DepthFinetuning
from utils.tasks.finetuning import SplitEvaluator
from utils.tasks.segmentation import SegmentationFinetuning
from utils.tasks.taskonomy import TaskonomyFinetuning
from utils.training.stepper import choose_precision

REPO = Path(__file__).parents[4]
Task = tuple[Callable[[list[str]], None], type[Any], type[Any], list[str]]

# 7 images by 3 are 3 + 3 + 1 for one process, 3 + 1 and 3 for two.
TASKS: dict[str, Task] = {
    "cls": (
        run_finetuning_cls.main, ClsConfig, ClassificationFinetuning,
        ["--in_domains", "rgb-depth", "--nb_classes", "2"],
    ),
    "semseg": (
        run_finetuning_semseg.main, SemsegConfig, SegmentationFinetuning,
        ["--in_domains", "rgb-depth", "--num_classes", "4", "--seg_reduce_zero_label",
         "--decoder_dim", "64", "--decoder_depth", "1"],
    ),
    "depth": (run_finetuning_depth.main, DepthConfig, DepthFinetuning, []),
    "taskonomy": (
        run_finetuning_taskonomy.main, TaskonomyConfig, TaskonomyFinetuning,
        ["--out_domains", "normal-reshading-depth_euclidean"],
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "batch"), [("cls", 16), ("semseg", 3), ("depth", 3), ("taskonomy", 1)]
)
def test_two_processes_evaluate_seven_images_like_one(
    tmp_path: Path, name: str, batch: int
) -> None:
    main, config, kind, options = TASKS[name]
    if name == "taskonomy":
        data = ["--data_path", str(write_taskonomy(tmp_path / "views", buildings=5, views=7))]
    else:
        write_scenes(tmp_path / "val", 7)
        data = [f"--{key}={tmp_path / 'val'}" for key in ("data_path", "eval_data_path")]
    weights = tmp_path / "weights.pth"
    arguments = [
        *data, *options, "--eval_batch_size", str(batch),
        *("--model", "multivit_tiny", "--input_size", "32", "--patch_size", "8"),
        *("--num_workers", "0", *ON_CPU, "--num_threads", "1", "--num_pictures", "0"),
    ]  # fmt: skip
    torch.manual_seed(0)
    model = kind(parse_config(config, arguments), World(0, 1, torch.device("cpu"))).build_task()
    state = {k: v + 0.02 * torch.randn_like(v) for k, v in model.model.state_dict().items()}
    torch.save({"model": state, "epoch": 5, "step": 15}, weights)

    arguments += ["--eval", "--finetune", str(weights)]
    main([*arguments, "--output_dir", str(tmp_path / "one")])
    two_dir = str(tmp_path / "two")
    run_on_two_processes(f"run_finetuning_{name}.py", *arguments, "--output_dir", two_dir)
    one, two = (
        json.loads((tmp_path / out / "log.jsonl").read_text().splitlines()[-1])
        for out in ("one", "two")
    )
    assert one.pop("kind") == two.pop("kind") == "eval"
    assert two == pytest.approx(one, rel=1e-12)
    assert (one["epoch"], one["step"]) == (5.0, 15)


class Passive(SplitEvaluator[Any]):
    def run(self, model: torch.nn.Module, step: int) -> dict[str, float]:
        return {}


def test_short_batches_are_padded_to_the_size_of_the_others() -> None:
    sizes: list[int] = []

    def predict(x: dict[str, torch.Tensor], model: Any) -> dict[str, torch.Tensor]:
        sizes.append(len(x["rgb"]))
        return {"head": 2 * x["rgb"]}

    task = SimpleNamespace(prepare=lambda batch: batch.images, predict=predict)
    samples = {
        SampleKey(0, i): Sample({"rgb": torch.full((1, 2, 2), float(i))}, f"a/{i}")
        for i in range(7)
    }
    loader: Any = torch.utils.data.DataLoader(
        samples,  # type: ignore[arg-type]
        batch_sampler=EvalBatchSampler(7, 3),
        collate_fn=collate,
    )
    world = World(0, 1, torch.device("cpu"))
    precision = choose_precision("fp32", world.device)
    logger: Any = None
    evaluator = Passive(task, loader, world, precision, "eval", logger)
    outputs = [out["head"][:, 0, 0, 0] for _, out in evaluator.predictions(torch.nn.Identity())]
    assert sizes == [3, 3, 3] and [len(out) for out in outputs] == [3, 3, 1]
    assert torch.cat(outputs).tolist() == [0.0, 2.0, 4.0, 6.0, 8.0, 10.0, 12.0]
