r"""Pack image folders into a few large files that load several times faster.

    python tools/pack_dataset.py --data_path data/rooms/train --out data/packed/train --workers 8
    python tools/pack_dataset.py --data_path data/packed/train --out data/again --unpack
    python tools/pack_dataset.py --data_path data/packed/train --verify

JPEG files are stored unchanged, other images as raw pixels (plus their files, for --unpack). Pass
the packed folder, or its URL, to any script as --data_path: it reads the same samples. To resume an
interrupted run, repeat the command. See docs/PERFORMANCE.md. Data in other layouts:

    python tools/pack_dataset.py --out data/packed/train \
        --from 'shards/{000..127}.tar' --columns rgb=jpg depth=depth.png
    python tools/pack_dataset.py --out data/packed/train \
        --from 'train-*.parquet' --columns rgb=image --class_column label
    python tools/pack_dataset.py --out data/packed/rooms --from s3://bucket/rooms
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from multimae.specs.arguments import CommandParser
from multimae.specs.commands import run_command
from multimae.specs.errors import UserError, print_error

if TYPE_CHECKING:
    from tools.common.jobs import Tally
    from tools.pack.packing import PackOptions


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = CommandParser(__doc__)
    parser.add_argument("--data_path", type=Path, help="data root, or packed data root")
    group = parser.add_argument_group("other formats")
    group.add_argument(
        "--from",
        dest="sources",
        nargs="+",
        default=[],
        metavar="SOURCE",
        help="instead of --data_path: WebDataset tars, zip, Parquet or Arrow files, folders that "
        "save_to_disk wrote, URLs with modality folders; globs, {a,b} and {000..127} are expanded",
    )
    group.add_argument(
        "--columns",
        nargs="+",
        default=[],
        metavar="MODALITY=COLUMN",
        help="extension in tars, column in tables, or folder, of every modality",
    )
    group.add_argument("--class_column", help="column or extension with the class: sub-folders")
    group.add_argument("--name_column", help="column of a table with the samples' names")
    parser.add_argument("--out", type=Path, help="folder to write")
    group = parser.add_argument_group("what to do with a pack")
    group.add_argument("--unpack", action="store_true", help="restore the original files")
    group.add_argument("--verify", action="store_true", help="verify the checksums of a pack")
    group = parser.add_argument_group("images")
    group.add_argument("--max_size", type=int, help="longest side; larger images are downscaled")
    group.add_argument(
        "--jpeg",
        choices=("keep", "raw"),
        default="keep",
        help="store JPEGs as files or as pixels",
    )
    group.add_argument(
        "--codec", choices=("none", "zlib"), default="none", help="compression of pixels"
    )
    group.add_argument(
        "--no_files", action="store_true", help="do not store the files of images stored as pixels"
    )
    group.add_argument("--images_per_shard", type=int, default=1000, help="images per shard")
    group.add_argument("--workers", type=int, default=1, help="processes")
    args = parser.parse_args(argv)
    if (args.data_path is None) == (not args.sources):
        parser.error("one of --data_path and --from is needed")
    if args.sources and (args.unpack or args.verify):
        parser.error("--from is for packing: --unpack and --verify need --data_path")
    wrong = [text for text in args.columns if not re.fullmatch(r"[^=/\\]+=[^=]+", text)]
    if wrong:
        parser.error(f"--columns {wrong[0]}: write MODALITY=COLUMN")
    if args.out is None and not args.verify:
        parser.error("--out is missing")
    if args.unpack and args.verify:
        parser.error("--unpack and --verify exclude each other")
    if min(args.workers, args.images_per_shard) < 1 or not (args.max_size or 16) >= 16:
        parser.error("--workers and --images_per_shard must be at least 1, --max_size at least 16")
    return args


def main(argv: list[str] | None = None) -> int:
    """Run the tool.

    Returns:
        0 on success, 1 when a file cannot be written, 2 for invalid input, 130 when interrupted.
    """
    args = parse(argv)

    try:
        print(_run(args))
    except UserError as err:
        print_error(err)
        return err.exit_code
    except OSError as err:
        print_error(UserError(str(err)))
        return 1
    except KeyboardInterrupt:
        print("interrupted; run the same command again to resume", file=sys.stderr)
        return 130
    return 0


def _run(args: argparse.Namespace) -> str:
    from tools.pack import packing
    from tools.pack.sources import list_images
    from tools.pack.unpacking import unpack, verify

    if args.verify:
        return f"{verify(args.data_path)} files verified: {args.data_path}"
    options = packing.PackOptions(
        args.max_size, args.jpeg, args.codec, args.images_per_shard, not args.no_files
    )
    if args.sources:
        return _import(args, options)
    out, data = args.out.resolve(), args.data_path.resolve()
    if data in (out, *out.parents):
        raise UserError(f"--out {args.out} is inside --data_path {args.data_path}: choose another.")
    if args.unpack:
        counts = unpack(args.data_path, args.out)
        packing.copy_loose_files(args.data_path, args.out, links=False)
        return ", ".join(f"{n} {name}" for name, n in counts.items()) + f" -> {args.out}"
    listing = list_images(args.data_path)
    args.out.mkdir(parents=True, exist_ok=True)
    tally = packing.write_packs(listing, args.data_path, args.out, options, args.workers)
    packing.copy_loose_files(args.data_path, args.out)
    return _summary(tally, args.out)


def _import(args: argparse.Namespace, options: PackOptions) -> str:
    """Pack the files of other data sets, and open the packs."""
    from multimae.images.pack.reading import PackedFolder
    from tools.pack.importing import ImportOptions, collect
    from tools.pack.packing import write_packs

    columns = dict(text.split("=", 1) for text in args.columns)
    what = ImportOptions(tuple(args.sources), columns, args.class_column, args.name_column)
    spool = args.out / ".import"
    shutil.rmtree(spool, ignore_errors=True)  # of an interrupted run
    spool.mkdir(parents=True)
    try:
        members, lines = collect(what, spool)
        print(*lines, sep="\n", end="\n" * bool(lines))
        listing = {folder: list(files.entries) for folder, files in members.items()}
        tally = write_packs(listing, members, args.out, options, args.workers)
    finally:
        shutil.rmtree(spool)
    for folder in members:
        PackedFolder(args.out / folder)
    return _summary(tally, args.out)


def _summary(tally: Tally, out: Path) -> str:
    parts = [f"{n} {name} {what}" for (name, what), n in sorted(tally.items())]
    return f"{', '.join(parts)} -> {out}"


if __name__ == "__main__":
    run_command(main)
