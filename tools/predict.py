"""Run a model over images: ``multimae predict`` in a checkout that is not installed.

python tools/predict.py weights/multimae-tiny_rooms-semseg.safetensors photos --out predicted
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from multimae.cli import main as multimae
from multimae.specs.commands import run_command


def main(argv: Sequence[str] | None = None) -> int:
    """Predict; returns the exit code of ``multimae predict``."""
    return multimae(["predict", *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    run_command(main)
