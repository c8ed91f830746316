"""Compare crops and resizing in the loader with ``--device_crops``.

    python tools/bench_crops.py --device cuda --batch 256

Packs random photographs, depth and labels as pixels, and measures alternately, for each size of
file: images/s of one loader process, by CPU time, and milliseconds in which a batch reaches the
device and is resized there. The last line printed is JSON.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from PIL import Image

from multimae.images.folders import MultiModalFolder
from multimae.specs.arguments import CommandParser
from multimae.specs.commands import run_command
from multimae.specs.modalities import make_table, select
from tools.bench.timing import seconds
from tools.pack.packing import PackOptions, write_packs
from tools.pack.sources import list_images
from utils.data.batches import Batch
from utils.data.dataset import MultiModalDataset
from utils.data.device_crops import DeviceCrops
from utils.data.samplers import SampleKey
from utils.data.shared_memory import SharedMemoryPool
from utils.data.transforms import TrainTransform

NAMES, CLASSES = ("rgb", "depth", "semseg"), 41
SIZES = ((256, 256), (480, 640))
COUNT = 64
"""Distinct samples of a size."""


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = CommandParser(__doc__)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--side", type=int, default=224, help="of the input")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--output_json", type=Path, help="also write the result to this file")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    found = {}
    for h, w in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            sets = datasets(make_pack(Path(folder), (h, w)), args.side)
            found[f"{w}x{h}"] = compare(sets, args.batch, args.rounds, torch.device(args.device))
    if args.output_json:
        args.output_json.write_text(json.dumps(found) + "\n", encoding="utf-8")
    print(json.dumps(found))


def make_pack(folder: Path, size: tuple[int, int]) -> Path:
    """Pack random images, photographs as pixels."""
    rng, (h, w) = np.random.default_rng(0), size
    kinds: dict[str, tuple[tuple[int, ...], Any, int, str]] = {
        "rgb": ((h, w, 3), np.uint8, 256, "jpg"),
        "depth": ((h, w), np.uint16, 65536, "png"),
        "semseg": ((h, w), np.uint8, CLASSES, "png"),
    }
    for name, (shape, dtype, top, suffix) in kinds.items():
        (folder / "files" / name / "a").mkdir(parents=True)
        for i in range(COUNT):
            image = Image.fromarray(rng.integers(0, top, shape, dtype))
            image.save(folder / "files" / name / f"a/{i:03d}.{suffix}")
    options = PackOptions(jpeg="raw")
    write_packs(list_images(folder / "files"), folder / "files", folder / "pack", options, 1)
    return folder / "pack"


def datasets(pack: Path, side: int) -> dict[str, MultiModalDataset]:
    """The same samples, cut by the loader and by the device."""
    modalities = select(make_table({"semseg": {"num_classes": CLASSES}}), NAMES)
    folder, transform = MultiModalFolder(pack, modalities), TrainTransform(modalities, side)
    return {
        "loader": MultiModalDataset(folder, transform),
        "device": MultiModalDataset(folder, DeviceCrops(transform)),
    }


def compare(
    sets: dict[str, MultiModalDataset], batch: int, rounds: int, device: torch.device
) -> dict[str, Any]:
    """Median rate of a loader process, time and bytes of a batch, by where it is cut."""
    rates: dict[str, list[float]] = {name: [] for name in sets}
    times: dict[str, list[float]] = {name: [] for name in sets}
    sizes: dict[str, int] = {}
    pools = {
        name: SharedMemoryPool(1, batch * dataset.transform.sample_bytes())
        for name, dataset in sets.items()
    }
    for epoch in range(rounds + 1):  # the first is warm-up
        for name, dataset in sets.items():
            begin = time.process_time()  # other load does not count
            loaded = load(dataset, pools[name], epoch, batch)
            rates[name].append(batch / (time.process_time() - begin))
            sizes[name] = sum(x.nbytes for x in loaded.images.values())
            if device.type == "cuda":
                loaded = loaded.pin_memory()
            times[name].append(1e3 * seconds(partial(loaded.to, device), device, repeats=1).wall)
            del loaded  # frees the block
    return {
        name: {
            "images_per_s_of_a_process": round(median(rates[name][1:]), 1),
            "batch_to_device_ms": round(median(times[name][1:]), 2),
            "batch_mb": round(sizes[name] / 1e6, 1),
        }
        for name in sets
    }


def load(dataset: MultiModalDataset, pool: SharedMemoryPool, epoch: int, batch: int) -> Batch:
    """A batch, as a loader process makes it and training receives it."""
    samples = dataset.__getitems__([SampleKey(epoch, i % COUNT) for i in range(batch)])
    samples.block = pool.acquire()
    loaded = dataset.transform.collate(samples)
    assert loaded.shared is not None
    return replace(loaded, images=loaded.shared.attach(), shared=None)


if __name__ == "__main__":
    run_command(main)
