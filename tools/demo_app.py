"""Try models in the browser: reveal and edit patches, see predictions, attention and features.

    python tools/demo_app.py
    python tools/demo_app.py --weights output/mine/model.safetensors --examples /data/mine/val
    python tools/demo_app.py --depth_model depth-anything/Depth-Anything-V2-Small-hf

Serves on the loopback interface only; the network is used only for models that are not on this
machine. Uploads stay in memory. Ctrl+C or SIGTERM stops the server.
"""

from __future__ import annotations

import argparse
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from multimae.specs.arguments import CommandParser
from multimae.specs.commands import run_command
from multimae.specs.errors import UserError, print_error

if TYPE_CHECKING:
    from tools.app.api import Api

REPO = Path(__file__).resolve().parents[1]
WEIGHTS = ("multimae-tiny_rooms.safetensors", "multimae-tiny_rooms-semseg.safetensors")
ROOMS = REPO / "examples" / "rooms"


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = CommandParser(__doc__)
    parser.add_argument(
        "--weights",
        type=Path,
        nargs="+",
        default=[REPO / "weights" / name for name in WEIGHTS],
        help="a pre-trained model, a fine-tuned one, or both (the shipped ones)",
    )
    parser.add_argument(
        "--examples",
        type=Path,
        default=ROOMS,
        help="example images, a sub-folder per modality (the shipped rooms)",
    )
    parser.add_argument(
        "--millimetres",
        nargs="*",
        metavar="MODALITY",
        help="modalities of the examples in millimetres, shown in metres (depth of the rooms)",
    )
    models = parser.add_argument_group("models of the transformers library, names or folders")
    models.add_argument("--depth_model", default="", help="predicts depth of uploaded photos")
    models.add_argument(
        "--seg_model",
        "--semseg_model",
        default="",
        help="predicts their labels (Mask2Former, MaskFormer)",
    )
    parser.add_argument("--port", type=int, help="port on 127.0.0.1 (the first free one from 7860)")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until Ctrl+C; return 2 on an error."""
    args = parse(argv)
    print(f"Loading {', '.join(path.name for path in args.weights)} ...", flush=True)
    try:
        from tools.app.server import serve

        with serve(load(args), args.port) as address:
            print(f"Open {address} in a browser. Ctrl+C stops.", flush=True)
            threading.Event().wait()
    except KeyboardInterrupt:
        print()
    except UserError as err:
        print_error(err)
        return 2
    return 0


def load(args: argparse.Namespace) -> Api:
    """Load the models and list the examples.

    Raises:
        UserError: Weights or examples are invalid.
    """
    from PIL import Image

    from tools.app.api import Api
    from tools.app.engine import Engine
    from tools.app.photo_labels import PhotoLabeller
    from tools.app.scenes import Scenes
    from tools.app.uploads import MAX_PIXELS

    Image.MAX_IMAGE_PIXELS = MAX_PIXELS
    engines = [Engine(path) for path in args.weights]
    engines.sort(key=lambda engine: not engine.spec.outputs)
    spec = engines[0].spec if engines[0].spec.outputs else None
    inputs = {m.name: m for engine in reversed(engines) for m in engine.inputs}
    ordered = dict.fromkeys(m.name for engine in engines for m in engine.inputs)
    own = ["depth"] if args.examples == ROOMS else []
    metric = frozenset(own if args.millimetres is None else args.millimetres)
    unknown = metric - set(ordered) if args.millimetres else set()
    if unknown:
        raise UserError(
            f"--millimetres {' '.join(sorted(unknown))}: not an input of these weights, which are "
            f"{', '.join(ordered)}."
        )
    patch_size = max(engine.spec.patch_size for engine in engines)
    scenes = Scenes(args.examples, [inputs[name] for name in ordered], spec, patch_size, metric)
    return Api(engines, scenes, PhotoLabeller(args.depth_model, args.seg_model))


if __name__ == "__main__":
    run_command(main)
