"""Benchmark predictions of a large scene: memory, speed beside plain batching, seams.

    python tools/bench_tiles.py --work /tmp/tiles --size 20000 20000 --tile 512

Writes a float32 GeoTIFF of smooth fields with noise (removed at the end), and predicts it with an
untrained model as ``multimae predict --tile --format tiff`` does. Memory is the largest resident
size during that, less the size after a first batch of plain tiles. Plain batching runs the model
alone on batches of the same size. Seams compare the largest difference of neighbouring values
across the first and last rows of tiles with that of all other rows. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import rasterio
import torch

from multimae import ModelSpec, MultiViT
from multimae.inference.predict import forward_of
from multimae.inference.prediction.outputs import Levels, ValueOutput
from multimae.inference.tiling.tiles import TileOptions, Tiler
from multimae.inference.tiling.windows import Scene
from multimae.specs.arguments import CommandParser
from multimae.specs.commands import run_command
from multimae.specs.heads import HeadOptions, HeadSpec
from multimae.specs.modalities import Modality

BANDS = Modality("bands", num_channels=4, storage="float", max_value=1.0, mean=(0.4,), std=(0.3,))
TARGET = Modality("value", num_channels=1, max_value=1.0, storage="float", plot="scalar")
ROWS = 256
SAMPLING_S = 0.02


class PeakMemory:
    """Largest resident size of this process, in bytes, while the context is entered."""

    def __enter__(self) -> PeakMemory:
        """Start to measure."""
        self.peak, self._stop = resident(), threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Stop."""
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._stop.wait(SAMPLING_S):
            self.peak = max(self.peak, resident())


def resident() -> int:
    """Resident size of this process in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def write_scene(path: Path, height: int, width: int) -> None:
    """Write the scene by bands of rows; values from 0 to 1."""
    x = np.arange(width, dtype=np.float32)
    generator = np.random.default_rng(0)
    with rasterio.open(
        path, "w", driver="GTiff", height=height, width=width, count=4, dtype="float32",
        crs="EPSG:32632", transform=rasterio.transform.from_origin(5e5, 5.2e6, 10, 10),
        tiled=True, blockxsize=ROWS, blockysize=ROWS, BIGTIFF="IF_SAFER", interleave="pixel",
    ) as file:  # fmt: skip
        for top in range(0, height, ROWS):
            y = np.arange(top, min(height, top + ROWS), dtype=np.float32)[:, None]
            bands = [0.45 + 0.35 * np.sin(x / (97 + 31 * b) + y / (113 - 17 * b)) for b in range(4)]
            noise = generator.random((4, len(y), width), np.float32)
            values = np.stack(bands) + np.float32(0.1) * noise
            window = rasterio.windows.Window(0, top, width, len(y))
            file.write(values.astype(np.float32), window=window)


def build(args: argparse.Namespace) -> MultiViT:
    """An untrained model with a head of one value per pixel."""
    options = HeadOptions("convnext", ("bands",), dim=256, depth=2)
    torch.manual_seed(0)
    spec = ModelSpec(
        args.model, (replace(BANDS, patch_size=args.patch),), patch_size=args.patch,
        image_size=args.tile, heads=(HeadSpec("value", TARGET, 1, options),), resize_mode="pad",
    )  # fmt: skip
    return MultiViT.from_spec(spec).eval()


@torch.inference_mode()
def plain_speed(tiler: Tiler, seconds: float) -> float:
    """Tiles per second of the model alone."""
    x = {"bands": torch.randn(tiler.batch_size, 4, *tiler.size)}
    tiler.forward(x)
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        next(iter(tiler.forward(x).values()))[0, 0, 0, 0].item()
        count += tiler.batch_size
    return count / (time.perf_counter() - start)


def predict(tiler: Tiler, source: Path, out: Path) -> tuple[int, float, dict[str, float]]:
    """Number of tiles, seconds, and the largest differences at and off the edges of tiles."""
    output = ValueOutput(out, "value", "tiff", Levels(1.0, 1.0), 1)
    start = time.perf_counter()
    with Scene({"bands": source}, tiler.modalities) as scene:
        grid, where = tiler.grid(scene.size), scene.georeference
        (file,) = output.open_rows("scene", scene.size, where).values()
        starts = np.array(grid.rows.starts[1:])
        edges = {*(starts - 1).tolist(), *(np.array(grid.rows.starts) + grid.rows.tile - 1)}
        largest, last, top = {True: 0.0, False: 0.0}, None, 0
        for band in tiler.bands(scene):
            values: Any = band["value"].values  # type: ignore[union-attr]
            for row in values:
                if last is not None:
                    at_edge = top - 1 in edges
                    largest[at_edge] = max(largest[at_edge], float(np.abs(row - last).max()))
                last, top = row, top + 1
            file.write(values)
        file.close()
    seconds = time.perf_counter() - start
    return len(grid), seconds, {"edges": largest[True], "inside": largest[False]}


def main() -> None:
    """Run the benchmark."""
    parser = CommandParser(__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for the scene")
    parser.add_argument(
        "--size", type=int, nargs=2, default=(20000, 20000), metavar=("H", "W"), help="of the scene"
    )
    parser.add_argument("--model", default="multivit_tiny", help="registered name")
    parser.add_argument("--patch", type=int, default=16, help="patch size")
    parser.add_argument("--tile", type=int, default=512, help="side of a tile")
    parser.add_argument("--overlap", type=float, default=0.25, help="share of two tiles")
    parser.add_argument("--batch_size", type=int, default=4, help="tiles")
    parser.add_argument("--device", default="cpu", help="where to run")
    parser.add_argument("--seconds", type=float, default=10, help="of plain batching")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    source, (height, width) = args.work / "scene.tif", args.size
    try:
        write_scene(source, height, width)
        gigabytes = source.stat().st_size / 1e9
        print(f"{source}: {height} x {width}, 4 bands float32, {gigabytes:.2f} GB", flush=True)
        device = torch.device(args.device)
        model = build(args).to(device)
        options = TileOptions(None, args.overlap)
        forward = forward_of(model)
        tiler = Tiler(forward, model.spec, model.spec.inputs, options, batch_size=args.batch_size)
        plain = plain_speed(tiler, args.seconds)
        before = resident()
        with PeakMemory() as memory:
            count, seconds, seams = predict(tiler, source, args.work)
        with rasterio.open(args.work / "value/scene.tiff") as file:
            kept = str(file.crs)
    finally:
        source.unlink(missing_ok=True)
        (args.work / "value/scene.tiff").unlink(missing_ok=True)
    result = {
        "size": [height, width],
        "input_gb": round(gigabytes, 2),
        "tiles": count,
        "seconds": round(seconds, 1),
        "tiles_s": round(count / seconds, 2),
        "plain_tiles_s": round(plain, 2),
        "peak_mb_above_model": round((memory.peak - before) / 2**20),
        "crs": kept,
        "largest_difference": {name: round(value, 5) for name, value in seams.items()},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    run_command(main)
