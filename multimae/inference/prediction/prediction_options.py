"""Options of ``multimae predict``; needs no PyTorch."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

DESCRIPTION = """\
Run a fine-tuned model over images, or let a pre-trained one reconstruct them.

INPUT: image files, globs (in quotes), folders of any depth, a data root with a folder per
modality (files are matched by name), or packed folders. Files and plain folders feed the model's
first image input. Outputs lie in DIR/HEAD/NAME, at the size of the image:
  labels   PNG of class ids in the colours of all pictures, and DIR/classes.json
  values   16-bit PNG (depth in mm), float TIFF or npy
  classes  DIR/HEAD.csv and DIR/HEAD.jsonl
Existing outputs are kept: the same command continues a stopped run. See docs/PREDICTION.md.

Exit code: 0 all predicted, 1 some files are bad (named on stderr), 2 wrong usage."""


@dataclass(frozen=True)
class PredictionOptions:
    """See :func:`add_arguments`."""

    model: str
    input: list[str]
    out: Path
    inputs: str = ""
    only: str = ""
    format: Literal["png", "tiff", "npy"] = "png"
    overlay: bool = False
    confidence: bool = False
    topk: int = 5
    overwrite: bool = False
    truth: Path | None = None
    seg_reduce_zero_label: bool | None = None
    use_mask_valid: bool | None = None
    tile: tuple[int, int] | bool = False
    overlap: float = 0.25
    tta: str = ""
    visible: str = "1/6"
    seed: int = 0
    batch_size: int = 8
    num_workers: int = min(8, os.cpu_count() or 1)
    device: str = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"

    @classmethod
    def of(cls, args: argparse.Namespace) -> PredictionOptions:
        """Options of parsed arguments."""
        values = {f.name: getattr(args, f.name) for f in fields(cls)}
        sides = args.tile
        values["tile"] = sides is not None and (tuple(sides * 2)[:2] or True)
        return cls(**values)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options, in groups, with their defaults."""
    default = PredictionOptions("", [], Path())
    parser.add_argument(
        "model", metavar="MODEL", help="weight file, its URL, model folder or hub repository"
    )
    parser.add_argument("input", metavar="INPUT", nargs="+", help="images; see above")
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="folder to write")

    group = parser.add_argument_group("inputs")
    group.add_argument(
        "--inputs", default="", help="modalities to feed, such as rgb-depth (all found)"
    )
    group.add_argument(
        "--only", metavar="GLOB", default="", help="predict matching names only (all)"
    )

    group = parser.add_argument_group("outputs")
    group.add_argument(
        "--format", choices=("png", "tiff", "npy"), default=default.format,
        help="files of values",
    )  # fmt: skip
    group.add_argument(
        "--overlay", action="store_true", help="also draw predictions over the photo, with a legend"
    )
    group.add_argument(
        "--confidence", action="store_true", help="also write the softmax of labels, 8-bit PNG"
    )
    group.add_argument("--topk", type=_positive, default=default.topk, help="classes per image")
    group.add_argument("--overwrite", action="store_true", help="replace the outputs in DIR")
    _add_tiles(parser, default)
    _add_scores(parser)
    _add_computation(parser, default)


def _add_tiles(parser: argparse.ArgumentParser, default: PredictionOptions) -> None:
    group = parser.add_argument_group("large images")
    group.add_argument(
        "--tile", metavar="N", type=_positive, nargs="*", default=None, action=_Tile,
        help="predict by tiles of H W pixels, or N by N (the model's input size), at the "
        "resolution of the image",
    )  # fmt: skip
    group.add_argument(
        "--overlap", type=float, default=default.overlap,
        help="share of a tile that the next one covers, too",
    )  # fmt: skip
    group.add_argument(
        "--tta", default=default.tta,
        help="average over flip, scales (0.75,1,1.25) or given ones: flip,scales or flip,0.5,1,2",
    )  # fmt: skip


class _Tile(argparse.Action):
    """At most two sides."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any,
        option: str | None = None,
    ) -> None:  # fmt: skip
        if len(values) > 2:
            parser.error(f"--tile takes H W, one side, or nothing; got {len(values)} numbers")
        setattr(namespace, self.dest, values)


def _add_scores(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("scores")
    group.add_argument(
        "--truth", metavar="PATH", type=Path,
        help="print the metrics of --eval, and write DIR/metrics.json: a data root, a folder of "
        "truths with the names of the images, class folders, or a CSV file as --label_file",
    )  # fmt: skip
    _add_switch(
        group.add_argument, "seg_reduce_zero_label", "no_seg_reduce_zero_label",
        "stored label 0 is void and classes count from 1 (as the weights say)",
    )  # fmt: skip
    _add_switch(
        group.add_argument, "use_mask_valid", "no_mask_valid",
        "read mask_valid from the data root (as the weights say, where it exists)",
    )  # fmt: skip


def _add_switch(add: Callable[..., object], on: str, off: str, text: str) -> None:
    """Add a flag and its opposite; ``None`` if neither is given."""
    add(f"--{on}", action="store_true", default=None, help=text)
    add(f"--{off}", dest=on, action="store_false", default=None, help=f"the opposite of --{on}")


def _add_computation(parser: argparse.ArgumentParser, default: PredictionOptions) -> None:
    group = parser.add_argument_group("reconstruction (pre-trained models)")
    group.add_argument(
        "--visible", default=default.visible,
        help="visible patches: a number, a share such as 1/6 or 0.2, or all",
    )  # fmt: skip
    group.add_argument("--seed", type=int, default=default.seed, help="of the patches")

    group = parser.add_argument_group("computation")
    group.add_argument(
        "--batch_size",
        type=_positive,
        default=default.batch_size,
        help="images at a time",
    )
    group.add_argument(
        "--num_workers", type=_count, default=default.num_workers,
        help="processes that decode images",
    )  # fmt: skip
    group.add_argument(
        "--device",
        default=default.device,
        help="cpu, cuda, cuda:N or mps; auto: cuda if there is one",
    )
    group.add_argument(
        "--precision", choices=("auto", "fp32", "bf16", "fp16"), default=default.precision,
        help="autocast type; auto: the best of the device",
    )  # fmt: skip


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError("must not be negative")
    return value
