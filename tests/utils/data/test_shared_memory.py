"""Shared-memory blocks are reused, but not while a tensor refers to them."""

from __future__ import annotations

import gc
import itertools

import pytest
import torch

from tests.support.image_folders import make_dataset, write_folder
from utils.data.dataset import build_loader
from utils.data.dense_transforms import SegEvalTransform, SegTrainTransform
from utils.data.samplers import GlobalBatchSampler, SampleKey
from utils.data.shared_memory import Block, PooledBatchSampler, SharedMemoryPool, stack_into
from utils.data.transforms import EvalTransform, TrainTransform

BATCH = 2
STEPS = 40  # batches of an iteration: many times the blocks


@pytest.fixture
def dataset(tmp_path):
    return make_dataset(write_folder(tmp_path), seed=7)


def loader_of(dataset, num_workers=2):
    sampler = GlobalBatchSampler(len(dataset), BATCH, seed=1)
    sampler.set_range(0, STEPS, len(sampler))
    loader = build_loader(dataset, sampler, num_workers=num_workers, pin_memory=False)
    return loader, loader.batch_sampler


def same(a, b):
    return a.names == b.names and all(torch.equal(a.images[k], b.images[k]) for k in b.images)


def test_blocks_are_reused(dataset):
    loader, batches = loader_of(dataset)
    places = {batch.images["rgb"].data_ptr() for batch in loader}
    start = batches.pool._bytes.data_ptr()
    assert len(places) <= len(batches.pool._free) < STEPS / 2
    assert all(start <= place < start + batches.pool._bytes.numel() for place in places)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_kept_tensors_are_not_overwritten(dataset, num_workers):
    """A slice keeps its block, too; without a free block a batch is sent as PyTorch does."""
    expected = list(loader_of(dataset, 0)[0])
    loader, batches = loader_of(dataset, num_workers)
    kept = list(loader)
    assert len(kept) == STEPS > batches.pool._bytes.numel() // batches.pool.block_size
    assert all(map(same, kept, expected))
    corners = [batch.images["rgb"][0, :, 3:5] for batch in kept]
    del kept
    other = list(loader)  # the same batches once more, in whatever is free
    for corner, batch in zip(corners, expected, strict=True):
        assert torch.equal(corner, batch.images["rgb"][0, :, 3:5])
    assert all(map(same, other, expected))


def test_all_blocks_are_freed(dataset):
    loader, batches = loader_of(dataset)
    count = len(batches.pool._free)
    list(itertools.islice(loader, 3))
    for _ in range(5):  # left in the middle, with batches under way
        for batch in itertools.islice(loader, 3):
            assert batch.images
    for batch in loader:
        assert batch.images
    del batch
    gc.collect()
    assert sorted(batches.pool._free) == list(range(count))


def test_batch_larger_than_a_block(dataset, monkeypatch):
    monkeypatch.setattr(TrainTransform, "sample_bytes", lambda self: 10)
    expected = list(loader_of(dataset, 0)[0])
    assert all(map(same, loader_of(dataset)[0], expected))


def test_process_without_the_pool():
    lists = {"rgb": [torch.zeros(3)]}
    assert stack_into(Block(12345, 0), lists) is None
    pool = SharedMemoryPool(1, 12)
    assert stack_into(pool.acquire(), lists) is not None and pool.acquire() is None


def test_new_iteration_reclaims_blocks_of_lost_batches():
    pool = SharedMemoryPool(3, 100)
    batches = PooledBatchSampler([[SampleKey(0, i)] for i in range(5)], pool)
    for _ in range(3):
        blocks = [keys.block for keys in batches]
        assert sorted(block.index for block in blocks[:3]) == [0, 1, 2]
        assert blocks[3:] == [None, None]


@pytest.mark.parametrize(
    "transform", [TrainTransform, EvalTransform, SegTrainTransform, SegEvalTransform]
)
def test_sample_bytes(tmp_path, transform):
    plain = make_dataset(write_folder(tmp_path), seed=7)
    cut = transform(plain.transform.modalities, (32, 64))
    images = make_dataset(tmp_path, cut)[SampleKey(0, 0)].images
    assert sum(tensor.nbytes for tensor in images.values()) == cut.sample_bytes()
