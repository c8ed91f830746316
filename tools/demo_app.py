"""Try a pre-trained model in the browser: reveal patches, edit them, see what becomes of it.

    python tools/demo_app.py
    python tools/demo_app.py --weights output/mine/model.safetensors --examples /data/mine/val

Serves on loopback only and calls nobody. Uploads live in a temporary folder, which is removed when
the page is closed with Ctrl+C.
"""

from __future__ import annotations

import argparse
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools.app.serve import serve
from utils.logs.errors import UserError

REPO = Path(__file__).resolve().parents[1]


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--weights",
        type=Path,
        default=REPO / "weights" / "multimae-tiny_rooms.safetensors",
        help="weight file that describes its model (the shipped one)",
    )
    parser.add_argument(
        "--examples",
        type=Path,
        default=REPO / "examples" / "rooms",
        help="example images, a sub-folder per modality (the shipped rooms)",
    )
    parser.add_argument("--port", type=int, help="port on 127.0.0.1 (the first free one from 7860)")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until Ctrl+C; 2 if that is not possible."""
    args = parse(argv)
    try:
        with serve(args.weights, args.examples, args.port) as address:
            print(f"Open {address} in a browser. Ctrl+C stops.", flush=True)
            try:
                threading.Event().wait()
            except KeyboardInterrupt:
                print()
    except UserError as err:
        print(f"error: {err}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
