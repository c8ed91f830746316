"""Try a pre-trained model in the browser: reveal and edit patches, see the predictions.

    python tools/demo_app.py
    python tools/demo_app.py --weights output/mine/model.safetensors --examples /data/mine/val

Serves on the loopback interface only and makes no network requests. Uploads go to a temporary
folder that is removed on exit. Ctrl+C stops the server.
"""

from __future__ import annotations

import argparse
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from PIL import Image

from multimae.specs.errors import UserError, run_command
from tools.app.serve import serve
from tools.app.uploads import MAX_PIXELS

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
        help="weights with an embedded model spec (the shipped ones)",
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
    """Serve until Ctrl+C; return 2 on an error."""
    args = parse(argv)
    try:
        with serve(args.weights, args.examples, args.port) as address:
            Image.MAX_IMAGE_PIXELS = MAX_PIXELS  # also of uploads that Pillow does not open
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
    run_command(main)
