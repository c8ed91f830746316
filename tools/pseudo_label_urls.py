r"""List the published pseudo labels of ImageNet-1K that a data set needs, for aria2c.

    python tools/pseudo_label_urls.py data/imagenet > list
    aria2c --input-file list --continue --dir pseudo

ROOT holds {train,val}/{class}/ or {train,val}/rgb/{class}/, classes named by WordNet ids
(n01440764). The list has one tar per split, kind (depth, semseg) and class.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from multimae.specs.arguments import CommandParser
from multimae.specs.commands import run_command

URL = "https://datasets.epfl.ch/vilab/imagenet_multitask"
SPLITS = ("train", "val")
KINDS = ("depth", "semseg")


def entries(root: Path) -> Iterator[str]:
    """URL and output path of every tar, as aria2c reads them."""
    for split in SPLITS:
        folder = root / split
        folder = folder / "rgb" if (folder / "rgb").is_dir() else folder
        names = sorted(p.name for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []
        for kind in KINDS:
            for name in names:
                if re.fullmatch(r"n\d{8}", name):
                    path = f"{split}/{kind}_tar/{name}.tar"
                    yield f"{URL}/{path}\n  out={path}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code."""
    parser = CommandParser(__doc__)
    parser.add_argument("root", type=Path, help="folder of train/ and val/")
    args = parser.parse_args(argv)
    lines = list(entries(args.root))
    if not lines:
        print(f"{args.root}: no folder like train/n01440764 or val/n01440764.", file=sys.stderr)
        return 2
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    run_command(main)
