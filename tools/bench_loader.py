"""Benchmark data loading: a plain Pillow pipeline against this project's loaders.

    python tools/bench_loader.py --work /tmp/bench     # renders its data first, a few minutes
    python tools/bench_loader.py --work /tmp/bench --data_path data/mine/train --samples 512

The baseline ``base`` reads the three files of a sample with Pillow, crops, resizes, flips and
normalises them in the loader workers (SPEC section 5). All other variants yield stored values,
which are normalised on the training device; --normalise includes that step, on the CPU. Variants
run interleaved in one process, over the same samples in the same order; the best round is
reported. Every variant's tensors are compared with the baseline's. The last line is JSON:
{variant: {"img_s", "ratio", "bit_identical", ...}}.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import active_children
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from multimae.images.folders import MultiModalFolder
from multimae.images.pack import AnyPath, to_path
from multimae.images.preprocess import prepare
from multimae.specs.arguments import CommandParser
from multimae.specs.commands import run_command
from multimae.specs.modalities import Modality, make_table, select
from tools.pack.packing import PackOptions, write_packs
from tools.pack.sources import list_images
from tools.rooms.generate import Job, make_rooms
from utils.data.batches import Batch
from utils.data.dataset import MultiModalDataset, build_loader
from utils.data.samplers import GlobalBatchSampler, SampleKey, sample_rng
from utils.data.transforms import TrainTransform


@dataclass
class Variant:
    """A loading pipeline and its measurements.

    Attributes:
        name: Key in the report.
        dataset: Dataset to load from.
        loader: Yields :class:`Batch`, or dicts of tensors.
        sampler: The loader's sampler.
        modalities: If set, batches are normalised for these modalities.
        rates: Samples per second of each round.
        memory: MiB used by the workers after each round.
        workers: Process ids of the workers, which live as long as the loader.
    """

    name: str
    dataset: Dataset[Any]
    loader: DataLoader[Any]
    sampler: GlobalBatchSampler
    modalities: Sequence[Modality] | None = None
    rates: tuple[float, ...] = ()
    memory: tuple[float, ...] = ()
    workers: frozenset[int] = frozenset()

    def run_epoch(self, epoch: int) -> float:
        """Load one epoch; return samples per second."""
        self.sampler.set_epoch(epoch)
        others = child_pids()
        count, start = 0, time.perf_counter()
        for batch in self.loader:
            if isinstance(batch, Batch):
                if self.modalities is not None:
                    prepare(batch.images, self.modalities)
                count += len(batch)
            else:
                count += len(next(iter(batch.values())))
        rate = count / (time.perf_counter() - start)
        self.workers |= child_pids() - others
        return rate


def child_pids() -> frozenset[int]:
    """Running processes that :mod:`multiprocessing` started here."""
    return frozenset(child.pid for child in active_children() if child.pid is not None)


def interleave(variants: Sequence[Variant], rounds: int) -> None:
    """Run the variants alternately; the first epoch is warm-up and is not recorded."""
    for epoch in range(rounds + 1):
        for variant in variants:
            rate = variant.run_epoch(epoch)
            if epoch:
                variant.rates += (rate,)
                variant.memory += (memory_of(variant.workers),)


def memory_of(pids: Iterable[int]) -> float:
    """Proportional set size of processes in MiB; 0 where /proc does not report it."""
    total = 0
    for pid in pids:
        rollup = Path(f"/proc/{pid}/smaps_rollup")
        if rollup.exists():
            lines = rollup.read_text().splitlines()
            total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


SIZE = 224
NAMES = ("rgb", "depth", "semseg")
NUM_CLASSES = 41  # NYU40 and void
MEAN, STD = (np.array(v, np.float32) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
PHOTO = (640, 480)


class BaseDataset(Dataset[dict[str, Tensor]]):
    """SPEC section 5 in Pillow, NumPy and torch, without this project's readers."""

    def __init__(self, root: Path, seed: int) -> None:
        """List the files of ``root/{rgb,depth,semseg}``, sorted."""
        self.files = [sorted((root / name).rglob("*.*")) for name in NAMES]
        self.seed = seed

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.files[0])

    def __getitem__(self, key: SampleKey) -> dict[str, Tensor]:
        """Normalised tensors."""
        rgb, depth, labels = self.stored(key)
        colours = (torch.from_numpy(rgb).permute(2, 0, 1).float() / 255).contiguous()
        mean, std = (torch.from_numpy(v).view(3, 1, 1) for v in (MEAN, STD))
        metres = depth.astype(np.float32)
        kept = np.sort(metres, axis=None)
        kept = kept[int(0.1 * kept.size) : int(0.9 * kept.size)]
        standard = (metres - kept.mean()) / np.sqrt(kept.var(ddof=1) + 1e-6)
        return {
            "rgb": (colours - mean) / std,
            "depth": torch.from_numpy(standard)[None],
            "semseg": torch.from_numpy(labels.astype(np.int64)),
        }

    def stored(self, key: SampleKey) -> list[npt.NDArray[Any]]:
        """Stored values, cropped, resized and flipped."""
        images: list[Image.Image] = [Image.open(files[key.index]) for files in self.files]
        images[0] = images[0].convert("RGB")
        width, height = images[0].size
        with sample_rng(self.seed, key):
            shape = torch.empty(0, height, width)
            top, left, h, w = v2.RandomResizedCrop.get_params(shape, [0.2, 1.0], [3 / 4, 4 / 3])
            flip = bool(torch.rand(()) < 0.5)
        box = (left, top, left + w, top + h)
        photo = images[0].crop(box).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
        small = [np.array(photo)]
        for image, side in zip(images[1:], (SIZE, SIZE // 4), strict=True):
            # Pillow's nearest accumulates rounding errors and may be a pixel off at exact halves.
            rows, columns = (((np.arange(side) + 0.5) * n / side).astype(int) for n in (h, w))
            small.append(np.array(image.crop(box))[rows[:, None], columns])
        return [np.ascontiguousarray(image[:, ::-1]) for image in small] if flip else small


@dataclass(frozen=True)
class Settings:
    """Benchmark settings."""

    batch_size: int
    workers: int
    rounds: int
    samples: int
    seed: int
    normalise: bool


def table() -> list[Modality]:
    """Modalities of the benchmark."""
    known = make_table(
        {"semseg": {"num_classes": NUM_CLASSES}, "depth": {"normalization": "robust"}}
    )
    return select(known, NAMES)


def variants(root: Path, packs: Mapping[str, AnyPath], settings: Settings) -> list[Variant]:
    """Baseline, plain folder and packs; all but the baseline also with fast decoding."""
    modalities = table()
    base = BaseDataset(root, settings.seed)
    count = min(len(base), settings.samples)
    found: list[tuple[str, Dataset[Any]]] = [("base", base)]
    for name, path in {"plain": root, **packs}.items():
        for fast in (False, True):
            dataset = MultiModalDataset(
                MultiModalFolder(path, modalities),
                TrainTransform(modalities, SIZE),
                seed=settings.seed,
                fast_decode=fast,
            )
            found.append((f"{name}_fast" if fast else name, dataset))
    return [_variant(name, dataset, count, modalities, settings) for name, dataset in found]


def _variant(
    name: str, dataset: Dataset[Any], count: int, modalities: list[Modality], settings: Settings
) -> Variant:
    sampler = GlobalBatchSampler(count, settings.batch_size, seed=settings.seed)
    loader: DataLoader[Any]
    if isinstance(dataset, MultiModalDataset):
        loader = build_loader(dataset, sampler, num_workers=settings.workers, pin_memory=False)
    else:
        workers: dict[str, Any] = {"persistent_workers": True} if settings.workers else {}
        loader = DataLoader(dataset, batch_sampler=sampler, num_workers=settings.workers, **workers)
    return Variant(name, dataset, loader, sampler, modalities if settings.normalise else None)


def compare(found: Sequence[Variant], samples: int, seed: int) -> dict[str, dict[str, Any]]:
    """Compare every variant's tensors with the baseline's on ``format_samples`` samples.

    Repeats the data set in further epochs if it has fewer samples.
    """
    base = found[0].dataset
    assert isinstance(base, BaseDataset)
    modalities = table()
    out: dict[str, dict[str, Any]] = {
        v.name: {"bit_identical": True, "max_diff": {}, "mean_diff": {}} for v in found
    }
    for i in range(samples):
        key = SampleKey(1 + i // len(base), i % len(base))
        stored = dict(zip(NAMES, base.stored(key), strict=True))
        stored["rgb"] = stored["rgb"].transpose(2, 0, 1)
        stored["depth"] = stored["depth"][None]
        normal = base[key]
        for variant in found[1:]:
            _compare_one(out[variant.name], variant.dataset[key].images, stored, normal, modalities)
    for entry in out.values():
        entry["mean_diff"] = {k: round(v / samples, 4) for k, v in entry["mean_diff"].items()}
        entry["samples"] = samples
    return out


def _compare_one(
    entry: dict[str, Any],
    images: dict[str, Tensor],
    stored: dict[str, npt.NDArray[Any]],
    normal: dict[str, Tensor],
    modalities: Sequence[Modality],
) -> None:
    prepared = prepare({k: v[None] for k, v in images.items()}, modalities)
    for name, expected in stored.items():
        diff = np.abs(images[name].numpy().astype(np.int64) - expected.astype(np.int64))
        entry["bit_identical"] &= bool(diff.max() == 0)
        entry["max_diff"][name] = max(entry["max_diff"].get(name, 0), int(diff.max()))
        entry["mean_diff"][name] = entry["mean_diff"].get(name, 0.0) + float(diff.mean())
        after = float((prepared[name][0] - normal[name]).abs().max())
        key = f"{name}_normalised"
        entry["max_diff"][key] = max(entry["max_diff"].get(key, 0.0), after)


def make_packs(root: Path, work: Path, kinds: Sequence[str]) -> dict[str, Path]:
    """Write the missing packs of a data root; return the path of each kind."""
    options = {
        "packed": PackOptions(),
        "packed_zlib": PackOptions(codec="zlib"),
        "packed_raw": PackOptions(jpeg="raw"),
    }
    listing = {name: files for name, files in list_images(root).items() if name in NAMES}
    found = {}
    for kind in kinds:
        found[kind] = work / f"{root.parent.name}-{root.name}-{kind}"
        write_packs(listing, root, found[kind], options[kind], 2)
    return found


def make_data(work: Path, count: int) -> dict[str, Path]:
    """Render rooms at 256 x 256 and a quarter as many JPEG photographs at 640 x 480."""
    rooms, large, photos = work / "rooms", work / "large", work / "photos/train"
    make_rooms(Job(rooms, count, 0, 256, 0, 2, (), "multimae"))
    make_rooms(Job(large, max(1, count // 4), 0, PHOTO[0], 1, 2, (), "multimae"))
    edge = (PHOTO[0] - PHOTO[1]) // 2
    for name in NAMES:
        for path in sorted((large / "train" / name).rglob("*.*")):
            target = photos / path.relative_to(large / "train")
            if not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                with Image.open(path) as image:
                    cropped = image.crop((0, edge, PHOTO[0], edge + PHOTO[1]))
                    cropped.save(target, quality=90)
    return {"rooms": rooms / "train", "photos": photos}


def report(found: Sequence[Variant], differences: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Print and return the results of one data root."""
    out: dict[str, Any] = {}
    base = max(found[0].rates)
    print(f"{'variant':<18}{'img/s':>9}{'ratio':>7}  {'identical':<10}worker memory (MiB)")
    for v in found:
        rate, about = max(v.rates), differences.get(v.name, {})
        # Ratio per round: other load on the machine slows both variants of a round.
        ratios = sorted(a / b for a, b in zip(v.rates, found[0].rates, strict=True))
        ratio = ratios[len(ratios) // 2]
        out[v.name] = {
            "img_s": round(rate, 1),
            "ratio": round(ratio, 2),
            "ratio_of_best": round(rate / base, 2),
            **about,
            "memory_mib": [round(m) for m in v.memory],
        }
        same = str(about.get("bit_identical", ""))
        memory = " ".join(f"{m:.0f}" for m in v.memory)
        print(f"{v.name:<18}{rate:>9.1f}{ratio:>7.2f}  {same:<10}{memory}", flush=True)
    return out


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = CommandParser(__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for data and packs")
    group = parser.add_argument_group("data")
    group.add_argument(
        "--data_path", type=Path, nargs="+", help="local data roots (default: render)"
    )
    group.add_argument("--make", type=int, default=1000, help="rooms to render")
    parser.add_argument("--samples", type=int, default=512, help="images per round")
    parser.add_argument("--rounds", type=int, default=3, help="measured epochs")
    parser.add_argument("--compared", type=int, default=1000, help="samples compared")
    parser.add_argument("--workers", type=int, default=2, help="loader processes")
    parser.add_argument("--batch_size", type=int, default=32, help="samples per batch")
    parser.add_argument("--seed", type=int, default=0, help="seed of order and crops")
    parser.add_argument("--normalise", action="store_true", help="time normalisation as well")
    group.add_argument("--urls", nargs="+", default=[], help="URLs of copies of the data's pack")
    packs = ("packed", "packed_zlib", "packed_raw")
    group.add_argument("--packs", nargs="+", choices=packs, default=packs, help="kinds of packs")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Benchmark every data root and print the results."""
    args = parse(argv)
    torch.set_num_threads(1)
    settings = Settings(
        args.batch_size, args.workers, args.rounds, args.samples, args.seed, args.normalise
    )
    roots = {"-".join(p.parts[-2:]): p for p in args.data_path or ()}
    roots = roots or make_data(args.work, args.make)
    result: dict[str, Any] = {}
    for name, root in roots.items():
        print(f"\n{name}: {root}")
        packs: dict[str, AnyPath] = {**make_packs(root, args.work, args.packs)}
        packs |= {url.partition(":")[0]: to_path(url) for url in args.urls}
        found = variants(root, packs, settings)
        interleave(found, settings.rounds)
        numbers = report(found, compare(found, args.compared, args.seed))
        result |= {f"{name}/{variant}": entry for variant, entry in numbers.items()}
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    run_command(main)
