"""Measure what the number of samples costs at the start of a run: seconds and memory.

    python tools/bench_index.py --samples 1280000
    python tools/bench_index.py --samples 10000000 --synthetic

Makes a data set of three modalities in ``--work_dir`` (hard links to tiny images; the same as a
pack), starts a small pre-training run on two processes, and reports the time to the first step and
the peak memory of all processes (proportional set size: shared pages count once), next to those of
a run on eight samples. ``--synthetic`` measures the index alone, without files, and the first
listing of a pack, without its images. The folder is deleted afterwards.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from multiprocessing import get_context
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from PIL import Image

from multimae.images.folders import MultiModalFolder
from multimae.images.index import index_cache
from multimae.images.index.listing import Listing, Names, merge, paired
from multimae.images.pack import PACK_FILE
from multimae.images.pack.layout import (
    INDEX_FILE,
    NAMES_FILE,
    RECORD,
    SHARD,
    Contents,
    Kind,
    Shard,
    file_name,
    record_checksum,
)
from multimae.specs.arguments import CommandParser
from multimae.specs.commands import run_command
from multimae.specs.modalities import default_table
from multimae.weights.atomic import DIGEST_BYTES, checksum
from tools.house import REPO, TINY_RUN

PER_FOLDER = 1280
MAX_LINKS = 60_000  # ext4 allows 65,000 links to a file
SUFFIX = {"rgb": ".jpg", "depth": ".png", "semseg": ".png"}
SIDE = 32


def tiny_image(modality: str) -> bytes:
    """A small image file."""
    stream = io.BytesIO()
    m = default_table()[modality]
    if m.is_photo:
        Image.new("RGB", (SIDE, SIDE), (90, 120, 40)).save(stream, "JPEG")
    else:
        values = np.arange(SIDE * SIDE, dtype=np.uint16).reshape(SIDE, SIDE)
        values = (values % 41).astype(np.uint8) if m.is_labels else values + 1000
        Image.fromarray(values).save(stream, "PNG")
    return stream.getvalue()


def key(i: int) -> str:
    """``sub-folder/name`` of a sample, as in ImageNet."""
    return f"n{i // PER_FOLDER:08d}/n{i // PER_FOLDER:08d}_{i % PER_FOLDER:06d}"


def make_links(root: Path, count: int) -> None:
    """Write ``count`` samples as hard links."""
    for modality, suffix in SUFFIX.items():
        for i in range(count):
            if i % PER_FOLDER == 0:
                (root / modality / key(i)).parent.mkdir(parents=True)
            if i % MAX_LINKS == 0:
                source = root / f"{modality}-{i}{suffix}"
                source.write_bytes(tiny_image(modality))
            os.link(source, f"{root}/{modality}/{key(i)}{suffix}")


def make_pack(root: Path, count: int, *, sparse: bool = False) -> None:
    """Write the same samples as a pack: one image, repeated; ``sparse``: zeros instead of it."""
    for modality, suffix in SUFFIX.items():
        folder, data = root / modality, tiny_image(modality)
        folder.mkdir(parents=True)
        with (folder / file_name(0, SHARD)).open("wb") as stream:
            stream.truncate(count * len(data))
            for first in () if sparse else range(0, count, PER_FOLDER):
                stream.write(data * min(PER_FOLDER, count - first))
        records = np.zeros(count, RECORD)
        records["kind"], records["size"] = Kind.FILE, len(data)
        records["offset"] = np.arange(count, dtype=np.uint64) * len(data)
        records["crc"] = record_checksum(np.frombuffer(data, np.uint8))
        digest = blake2b(data, digest_size=DIGEST_BYTES).digest()
        records["digest"] = np.frombuffer(digest, f"V{DIGEST_BYTES}")
        np.save(folder / INDEX_FILE, records)
        np.save(folder / NAMES_FILE, np.array([key(i) + suffix for i in range(count)], np.bytes_))
        names = (file_name(0, SHARD), INDEX_FILE, NAMES_FILE)
        files = tuple(Shard(name, *checksum(folder / name)) for name in names)
        (folder / PACK_FILE).write_bytes(Contents({}, count, ("",), files).to_json())


def measure_run(root: Path, work_dir: Path, processes: int, steps: int) -> tuple[float, float]:
    """Seconds to the last step, and peak MB of all processes, of a run of ``steps`` steps."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
    command = [*launcher, "run_pretraining_multimae.py", *TINY_RUN]
    command += ["--data_path", str(root), "--index_cache", str(work_dir / "cache")]
    command += ["--output_dir", str(work_dir / f"out-{root.name}"), "--max_steps", str(steps)]
    command += ["--num_workers", "2", "--log_every", "1"]
    start, finished, output = time.monotonic(), 0.0, []
    env = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, cwd=REPO, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as run:
        peak = [0.0]
        watch = threading.Thread(target=_watch, args=(run, peak), daemon=True)
        watch.start()
        for line in run.stdout or ():
            output.append(line)
            if line.startswith(f"step {steps}/"):
                finished = time.monotonic() - start
    watch.join()
    if run.returncode or not finished:
        raise SystemExit(f"the run on {root} failed:\n{''.join(output[:40])}")
    return finished, peak[0]


def _watch(run: subprocess.Popen[str], peak: list[float]) -> None:
    while run.poll() is None:
        peak[0] = max(peak[0], sum(_pss_mb(pid) for pid in _tree(run.pid)))
        time.sleep(0.1)


def _tree(pid: int) -> Iterator[int]:
    yield pid
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return
    for child in children:
        yield from _tree(int(child))


def _pss_mb(pid: int) -> float:
    try:
        found = re.search(r"^Pss:\s+(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.M)
    except OSError:
        return 0.0
    return int(found[1]) / 1024 if found else 0.0


def report_runs(samples: int, work_dir: Path, processes: int) -> None:
    """Print a table of starts."""
    make_links(work_dir / "few", 8)
    print(f"making {samples:,} x {len(SUFFIX)} files in {work_dir} ...", flush=True)
    make_links(work_dir / "plain", samples)
    make_pack(work_dir / "packed", samples)
    time.sleep(index_cache.SETTLED_NS / 1e9)  # else folders count as still changing
    base_s, base_mb = measure_run(work_dir / "few", work_dir, processes, 1)
    print(f"{'start':<24}{'to the step':>12}{'above few':>12}{'peak':>10}{'above few':>12}")
    print(f"{'8 samples':<24}{base_s:>10.1f} s{'':>12}{base_mb:>7.0f} MB", flush=True)
    base = {1: (base_s, base_mb), 2: measure_run(work_dir / "few", work_dir, processes, 2)}
    print(
        f"{'8 samples, resumed':<24}{base[2][0]:>10.1f} s{'':>12}{base[2][1]:>7.0f} MB", flush=True
    )
    for name in ("plain", "packed"):
        for step, label in ((1, "first"), (2, "resumed")):
            seconds, mb = measure_run(work_dir / name, work_dir, processes, step)
            base_s, base_mb = base[step]
            print(
                f"{f'{name}, {label}':<24}{seconds:>10.1f} s{seconds - base_s:>10.1f} s"
                f"{mb:>7.0f} MB{mb - base_mb:>9.0f} MB",
                flush=True,
            )


def report_synthetic(samples: int, work_dir: Path) -> None:
    """Print seconds and sizes of an index without files."""
    timings: dict[str, float] = {}
    start = time.monotonic()

    def lap(name: str) -> None:
        nonlocal start
        timings[name] = time.monotonic() - start
        start = time.monotonic()

    text = bytearray()
    for first in range(0, samples, PER_FOLDER):
        keys = map(key, range(first, min(first + PER_FOLDER, samples)))
        text += "\0".join(keys).encode() + b"\0"
    lap("make the names")
    names = Names.from_text(text)
    kinds = np.zeros(samples, np.uint8)
    listings = {m: Listing(names, [s], kinds) for m, s in SUFFIX.items()}
    for listing in listings.values():
        listing.stamps = [(os.fsencode(work_dir), 1, 1, 1)]
    lap("split them")
    union, positions = merge([listing.names for listing in listings.values()])
    index = paired(listings, (), union, positions, np.ones(samples, bool), [])
    lap("pair the modalities")
    entry = index_cache.store(work_dir / "cache", "key", index, time.time_ns())
    size = sum(path.stat().st_size for path in entry.iterdir())
    lap("write the index")
    loaded = index_cache.load(entry)
    lap("map the index")
    assert loaded.names[samples // 2] == key(samples // 2).encode()
    order = torch.randperm(samples)
    lap("order of an epoch, per process")
    for name, seconds in timings.items():
        print(f"{name:<32}{seconds:>8.2f} s")
    print(f"index on disk, mapped by all    {size / 1e6:>8.0f} MB, {size / samples:.1f} B a sample")
    print(f"order of an epoch, per process  {order.nbytes / 1e6:>8.0f} MB")
    print(f"peak memory of this process     {_peak_mb():>8.0f} MB", flush=True)
    make_pack(work_dir / "packed", samples, sparse=True)
    worker = get_context("spawn").Process(target=_list_pack, args=(work_dir / "packed",))
    worker.start()
    worker.join()


def _list_pack(root: Path) -> None:
    """Print seconds and memory that checking and listing a pack cost."""
    table = default_table()
    before, start = _peak_mb(), time.monotonic()
    folder = MultiModalFolder(root, [table[name] for name in SUFFIX])
    seconds = time.monotonic() - start
    print(f"{f'list a pack of {len(folder):,} x {len(SUFFIX)}':<32}{seconds:>8.2f} s")
    print(f"peak memory above the libraries {_peak_mb() - before:>8.0f} MB", flush=True)


def _peak_mb() -> float:
    """Largest memory that this process has held."""
    return int(re.findall(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[0]) / 1024


def main(argv: Sequence[str] | None = None) -> None:
    """Make the data, measure, delete the data."""
    parser = CommandParser(__doc__)
    parser.add_argument("--samples", type=int, default=1_280_000, help="samples of three files")
    parser.add_argument("--processes", type=int, default=2, help="training processes")
    parser.add_argument("--synthetic", action="store_true", help="measure the index, without files")
    parser.add_argument("--work_dir", default=tempfile.gettempdir(), help="where to make the data")
    args = parser.parse_args(argv)
    work_dir = Path(tempfile.mkdtemp(prefix="bench_index-", dir=args.work_dir))
    try:
        if args.synthetic:
            report_synthetic(args.samples, work_dir)
        else:
            report_runs(args.samples, work_dir, args.processes)
    finally:
        shutil.rmtree(work_dir)


if __name__ == "__main__":
    run_command(main)
