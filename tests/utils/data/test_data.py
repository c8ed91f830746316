import itertools
import multiprocessing
import traceback

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from multimae.specs.commands import exit_on_user_error
from tests.support.image_folders import (
    MODALITIES,
    SIZE,
    make_dataset,
    message_of,
    save,
    write_folder,
)
from utils.data.batches import BatchStream
from utils.data.dataset import (
    MultiModalDataset,
    build_loader,
    check_samples,
)
from utils.data.samplers import EvalBatchSampler, GlobalBatchSampler, SampleKey, sample_rng
from utils.data.transforms import EvalTransform
from utils.training.seeding import mix_seed


@pytest.fixture
def root(tmp_path):
    return write_folder(tmp_path)


sampler_cases = st.tuples(
    st.integers(1, 97), st.integers(1, 7), st.integers(1, 5), st.integers(0, 9), st.booleans()
)


@given(case=sampler_cases, drop_last=st.booleans())
def test_ranks_shard_the_global_batches(case, drop_last):
    n, batch, world, epoch, shuffle = case
    options = {"seed": 3, "shuffle": shuffle, "drop_last": drop_last}
    if drop_last and n < batch * world:
        message = message_of(GlobalBatchSampler, n, batch, world_size=world, **options)
        assert f"{n} samples" in message and "--batch_size" in message
        return
    single = GlobalBatchSampler(n, batch * world, **options)
    ranks = [
        GlobalBatchSampler(n, batch, rank=r, world_size=world, **options) for r in range(world)
    ]
    for sampler in (single, *ranks):
        sampler.set_epoch(epoch)
    whole = list(single)
    assert whole == [sum(parts, []) for parts in zip(*ranks, strict=True)]
    assert len(single) == len(ranks[0]) == len(whole)
    keys = [key for part in whole for key in part]
    assert {key.epoch for key in keys} == {epoch}
    indices = [key.index for key in keys]
    assert len(set(indices[:n])) == len(indices[:n])
    if not drop_last:
        assert set(indices) == set(range(n)) and len(indices) % (batch * world) == 0
    if not shuffle:
        assert indices == [i % n for i in range(len(indices))]


def test_epochs_and_seeds_change_the_order():
    def order(seed, epoch):
        sampler = GlobalBatchSampler(50, 50, seed=seed)
        sampler.set_epoch(epoch)
        return [key.index for key in next(iter(sampler))]

    orders = [order(seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert all(sorted(o) == list(range(50)) for o in orders)
    assert len({tuple(o) for o in orders}) == 4
    assert order(1, 1) == orders[3]


def test_ranges_of_the_batches_of_all_epochs():
    sampler = GlobalBatchSampler(30, 4, seed=5)
    epochs = []
    for epoch in range(4):
        sampler.set_epoch(epoch)
        epochs.append(list(sampler))
    sampler.set_range(2 * 7 + 5, 4 * 7, 7)
    assert list(sampler) == epochs[2][5:] + epochs[3] and len(sampler) == 7
    sampler.set_range(1 * 6 + 4, 3 * 6, 6)  # the last batch of every epoch is not used
    assert list(sampler) == epochs[1][4:6] + epochs[2][:6]
    with pytest.raises(ValueError, match="an epoch has 7"):
        sampler.set_range(0, 8, 8)
    for start, stop in ((-1, 7), (8, 7)):
        with pytest.raises(ValueError, match="cannot start"):
            sampler.set_range(start, stop, 7)


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_stream_continues_across_epochs(root, num_workers):
    dataset = make_dataset(root, seed=7)
    sampler = GlobalBatchSampler(len(dataset), 2, seed=1)
    loader = build_loader(dataset, sampler, num_workers=num_workers, pin_memory=False)
    expected = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        expected += [batch.names for batch in loader]
    per_epoch = len(sampler)
    stream = BatchStream(loader, sampler, per_epoch, 3 * per_epoch)
    first = [batch.names for batch in itertools.islice(stream.seek(0), per_epoch)]
    iterator = stream._batches
    rest = [batch.names for batch in stream.seek(per_epoch)]
    assert first + rest == expected and stream._batches is iterator
    back = [batch.names for batch in itertools.islice(stream.seek(1), per_epoch)]
    assert back == expected[1 : per_epoch + 1] and stream._batches is not None
    again = [batch.names for batch in stream.seek(1)]  # thrown away: it had gone on
    assert again == expected[1:]


def test_workers_continue_with_the_next_epoch(root):
    """Prefetching starts during the evaluation of the previous epoch."""
    seen = multiprocessing.get_context("fork").Queue()

    class Watched(MultiModalDataset):
        def __getitem__(self, key):
            seen.put(key.epoch)
            return super().__getitem__(key)

    plain = make_dataset(root, seed=7)
    dataset = Watched(plain.folder, plain.transform, seed=7)
    sampler = GlobalBatchSampler(len(dataset), 2, seed=1)
    loader = build_loader(dataset, sampler, num_workers=1, pin_memory=False)
    stream = BatchStream(loader, sampler, len(sampler), 2 * len(sampler))
    list(itertools.islice(stream.seek(0), len(sampler)))
    epochs = [seen.get(timeout=20) for _ in range(2 * len(sampler) + 1)]
    assert epochs[-1] == 1


@given(n=st.integers(0, 60), batch=st.integers(1, 9), world=st.integers(1, 6))
def test_every_sample_is_evaluated_once(n, batch, world):
    samplers = [EvalBatchSampler(n, batch, rank=r, world_size=world) for r in range(world)]
    batches = [list(s) for s in samplers]
    assert [len(s) for s in samplers] == [len(b) for b in batches]
    seen = [key.index for rank in batches for part in rank for key in part]
    assert sorted(seen) == list(range(n))
    assert all(0 < len(part) <= batch for rank in batches for part in rank)


def test_sample_rng_depends_on_the_key_and_restores_the_generator():
    def draw(seed, epoch, index):
        with sample_rng(seed, SampleKey(epoch, index)):
            return torch.rand(()).item()

    torch.manual_seed(0)
    before = torch.get_rng_state()
    values = [draw(s, e, i) for s in range(3) for e in range(3) for i in range(3)]
    assert torch.equal(torch.get_rng_state(), before)
    assert len(set(values)) == 27 and draw(2, 2, 2) == values[-1]
    assert mix_seed(1, 2) != mix_seed(2, 1)


def collect(root, num_workers, epoch=3):
    dataset = make_dataset(root, seed=7)
    sampler = GlobalBatchSampler(len(dataset), 4, seed=1)
    loader = build_loader(dataset, sampler, num_workers=num_workers, pin_memory=False)
    list(loader)  # persistent workers must follow the epoch too
    sampler.set_epoch(epoch)
    return list(loader)


def test_batches_do_not_depend_on_the_workers(root):
    torch.manual_seed(0)
    state = torch.get_rng_state()
    runs = [collect(root, num_workers) for num_workers in (0, 1, 2)]
    assert torch.equal(torch.get_rng_state(), state)
    for batches in runs:
        assert [b.names for b in batches] == [b.names for b in runs[0]]
        for batch, expected in zip(batches, runs[0], strict=True):
            assert batch.images.keys() == {"rgb", "depth", "semseg"} and len(batch) == 4
            assert all(torch.equal(batch.images[k], expected.images[k]) for k in batch.images)
    other = collect(root, 0, epoch=4)
    assert not torch.equal(other[0].images["rgb"], runs[0][0].images["rgb"])


def test_batch_holds_storage_types_and_moves(root):
    batch = collect(root, 0)[0].to("cpu")
    assert {k: (tuple(v.shape), v.dtype) for k, v in batch.images.items()} == {
        "rgb": ((4, 3, 32, 32), torch.uint8),
        "depth": ((4, 1, 32, 32), torch.uint16),
        "semseg": ((4, 8, 8), torch.uint8),
    }


def test_evaluation_loader_is_deterministic_and_complete(root):
    dataset = make_dataset(root, EvalTransform(MODALITIES, 32))
    sampler = EvalBatchSampler(len(dataset), 5)
    loader = build_loader(dataset, sampler, num_workers=0, pin_memory=False)
    first, second = list(loader), list(loader)
    assert [name for b in first for name in b.names] == [dataset.folder.name(i) for i in range(12)]
    assert all(
        torch.equal(a.images[k], b.images[k])
        for a, b in zip(first, second, strict=True)
        for k in a.images
    )


@pytest.mark.parametrize("num_workers", [0, 2])
def test_bad_file_in_a_worker_is_one_clean_message(root, num_workers, capsys):
    path = save(root / "semseg/bath/004.png", np.full(SIZE, 77, np.uint8))
    with pytest.raises(SystemExit) as exited, exit_on_user_error():
        collect(root, num_workers)
    err = capsys.readouterr().err
    assert exited.value.code == 2
    # The traceback keeps the workers alive for 10 s.
    traceback.clear_frames(exited.value.__context__.__traceback__)
    assert err.startswith(f"error: {path}: class id 77") and "Traceback" not in err


def test_check_samples_lists_every_bad_file(root):
    dataset = make_dataset(root, patch_size=16)
    check_samples(dataset, 1000)
    label = save(root / "semseg/bath/004.png", np.full(SIZE, 200, np.uint8))
    broken = root / "rgb/bath/004.jpg"
    broken.write_bytes(b"")
    small = save(root / "depth/kitchen/011.png", np.zeros((4, 5), np.uint16))
    message = message_of(check_samples, dataset, 1000)
    assert message.startswith("3 bad files among 12 of 12 samples")
    assert all(str(path) in message for path in (label, broken, small))
    check_samples(dataset, 1)  # sample 0 is good


def test_check_samples_spreads_over_the_set(root):
    for i in (8, 10):  # samples 4 and 5; checking 2 reads 0 and 6, checking 3 reads 0, 4 and 8
        (root / f"rgb/bath/{i:03d}.jpg").write_bytes(b"")
    dataset = make_dataset(root)
    assert dataset.folder.name(4) == "bath/008"
    check_samples(dataset, 2)
    assert "1 bad files among 3 of 12" in message_of(check_samples, dataset, 3)
