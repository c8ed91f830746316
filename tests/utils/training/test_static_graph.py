"""All trained parameters are part of the graph in every step, for all masks.

So DDP need not search for unused parameters in every step (``static_graph``, utils/stepper.py).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.support.scenes import tiny_run, write_scenes
from utils.config.parse import parse_config
from utils.config.pretrain_options import PretrainConfig
from utils.data.batches import Batch, collate
from utils.data.samplers import SampleKey
from utils.tasks.base import StepPosition
from utils.tasks.pretraining import PretrainTask, build_task, build_train_set, run_modalities

EVERYTHING = 16 + 16 + 16  # tokens of the three inputs


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("scenes"), 4)


def setup(scenes: Path, *more: str) -> tuple[PretrainTask, Batch]:
    arguments = tiny_run(scenes, "", "--task_balancer", "uncertainty", *more)
    cfg = parse_config(PretrainConfig, arguments)
    task = build_task(cfg, *run_modalities(cfg))
    dataset = build_train_set(cfg, task.modalities)
    return task, collate([dataset[SampleKey(0, i)] for i in range(4)])


def without_gradient(task: PretrainTask, batch: Batch, step: int) -> set[str]:
    task.zero_grad(set_to_none=True)
    task(batch, StepPosition(step, 0, len(batch))).loss.backward()
    trained = ((n, p) for n, p in task.named_parameters() if p.requires_grad)
    return {name for name, param in trained if param.grad is None}


@pytest.mark.parametrize("queries", ["--decoder_use_task_queries", "--no_decoder_use_task_queries"])
def test_modalities_without_visible_tokens_get_gradients(scenes: Path, queries: str) -> None:
    task, batch = setup(scenes, queries)
    # One modality per sample gets all tokens; it changes between samples.
    for step, alphas in enumerate([1.0, 1e-4, 1e-4, 1e-4]):
        task.masks = replace(task.masks, alphas=alphas, sample_tasks_uniformly=step == 3)
        assert without_gradient(task, batch, step) == set()
    # A single sample with one modality: no token of the two others in this step.
    alone = collate_one(scenes, task)
    assert {len(without_gradient(task, alone, step)) for step in range(12)} == {0}


def collate_one(scenes: Path, task: PretrainTask) -> Batch:
    cfg = parse_config(PretrainConfig, tiny_run(scenes, ""))
    return collate([build_train_set(cfg, task.modalities)[SampleKey(0, 0)]])


def test_losses_without_masked_tokens_have_a_graph(scenes: Path) -> None:
    task, batch = setup(scenes)
    task.masks = replace(
        task.masks, num_encoded_tokens=EVERYTHING
    )  # nothing is masked: losses are 0
    assert without_gradient(task, batch, 0) == set()
    assert task(batch, StepPosition(0, 0, 4)).loss.item() == 0.0


def test_decoders_that_see_nothing_are_the_exception_and_always_the_same(scenes: Path) -> None:
    """Without cross-attention and task queries, a decoder does not use the encoder."""
    task, batch = setup(scenes, "--no_decoder_use_xattn", "--no_decoder_use_task_queries")
    found = [without_gradient(task, batch, step) for step in range(3)]
    assert any("proj_context" in name for name in found[0])
    assert found[0] == found[1] == found[2]
    assert torch.isfinite(task(batch, StepPosition(0, 0, 4)).loss)
