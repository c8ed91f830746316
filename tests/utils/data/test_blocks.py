"""Blocks of shared memory are used again, and never while somebody looks at them."""

from __future__ import annotations

import gc
import itertools

import pytest
import torch

from tests.support.image_folders import make_dataset, write_folder
from utils.data.dataset import build_train_loader
from utils.data.dense_transforms import SegEvalTransform, SegTrainTransform
from utils.data.samplers import GlobalBatchSampler, SampleKey
from utils.data.shared_memory import Block, Blocks, WithBlocks, fill
from utils.data.transforms import EvalTransform, TrainTransform

BATCH = 2
STEPS = 40  # batches of an iteration: many times the blocks


@pytest.fixture
def dataset(tmp_path):
    return make_dataset(write_folder(tmp_path), seed=7)


def loader_of(dataset, num_workers=2):
    sampler = GlobalBatchSampler(len(dataset), BATCH, seed=1)
    sampler.set_range(0, STEPS, len(sampler))
    loader = build_train_loader(dataset, sampler, num_workers=num_workers, pin_memory=False)
    return loader, loader.batch_sampler


def same(a, b):
    return a.names == b.names and all(torch.equal(a.images[k], b.images[k]) for k in b.images)


def test_blocks_are_used_again(dataset):
    loader, batches = loader_of(dataset)
    places = {batch.images["rgb"].data_ptr() for batch in loader}
    start = batches.blocks._bytes.data_ptr()
    assert len(places) <= len(batches.blocks._free) < STEPS / 2
    assert all(start <= place < start + batches.blocks._bytes.numel() for place in places)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_what_is_kept_is_not_written_to(dataset, num_workers):
    """Also a part of a tensor keeps its block; without a free one a batch is sent as torch does."""
    expected = list(loader_of(dataset, 0)[0])
    loader, batches = loader_of(dataset, num_workers)
    kept = list(loader)
    assert len(kept) == STEPS > batches.blocks._bytes.numel() // batches.blocks.size
    assert all(map(same, kept, expected))
    corners = [batch.images["rgb"][0, :, 3:5] for batch in kept]
    del kept
    other = list(loader)  # the same batches once more, in whatever is free
    for corner, batch in zip(corners, expected, strict=True):
        assert torch.equal(corner, batch.images["rgb"][0, :, 3:5])
    assert all(map(same, other, expected))


def test_all_blocks_come_back(dataset):
    loader, batches = loader_of(dataset)
    count = len(batches.blocks._free)
    list(itertools.islice(loader, 3))
    for _ in range(5):  # left in the middle, with batches under way
        for batch in itertools.islice(loader, 3):
            assert batch.images
    for batch in loader:
        assert batch.images
    del batch
    gc.collect()
    assert sorted(batches.blocks._free) == list(range(count))


def test_a_batch_that_does_not_fit_comes_all_the_same(dataset, monkeypatch):
    monkeypatch.setattr(TrainTransform, "sample_bytes", lambda self: 10)
    expected = list(loader_of(dataset, 0)[0])
    assert all(map(same, loader_of(dataset)[0], expected))


def test_a_process_without_the_memory_does_without():
    lists = {"rgb": [torch.zeros(3)]}
    assert fill(None, lists) is None and fill(Block(12345, 0), lists) is None
    blocks = Blocks(1, 12)
    assert fill(blocks.ask(), lists) is not None and blocks.ask() is None


def test_a_new_iteration_forgets_what_never_came():
    blocks = Blocks(3, 100)
    batches = WithBlocks([[SampleKey(0, i)] for i in range(5)], blocks)
    for _ in range(3):
        asked = [keys.block for keys in batches]
        assert sorted(block.number for block in asked[:3]) == [0, 1, 2]
        assert asked[3:] == [None, None]


@pytest.mark.parametrize(
    "transform", [TrainTransform, EvalTransform, SegTrainTransform, SegEvalTransform]
)
def test_transforms_know_their_bytes(tmp_path, transform):
    plain = make_dataset(write_folder(tmp_path), seed=7)
    cut = transform(plain.transform.modalities, (32, 64))
    images = make_dataset(tmp_path, cut)[SampleKey(0, 0)].images
    assert sum(tensor.nbytes for tensor in images.values()) == cut.sample_bytes()
