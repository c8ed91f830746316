"""Kill training runs at random moments and compare them with uninterrupted runs.

    python tools/torture_resume.py --kills 50 --in_save 20

Runs on 1 and 2 processes with 0 and 2 loader workers are killed by SIGKILL, some in the middle of a
save (verified by the half-written file), and restarted with the same command until they finish.
Every result must be bit-identical to that of an uninterrupted run: model, optimizer, balancer,
generators, position, logged losses, and sample names of every step in order. The last line is JSON.
Needs Linux (/proc).
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import run_pretraining_multimae
from multimae.images.pack import to_path
from multimae.specs.arguments import CommandParser
from multimae.specs.commands import run_command
from multimae.specs.registry import SIZES
from tools.torture.kills import Chain, chains_of, torture
from tools.torture.small_runs import SIZE, Layout, RunFactory
from utils.data.batches import Batch
from utils.distributed.script import run_script
from utils.training.state import TrainState
from utils.training.stepper import Stepper, Update

CHILD = "child"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the kills; return 1 if a result differs from the uninterrupted run's."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == [CHILD]:
        train_child(arguments[1:])
        return 0
    parser = CommandParser(__doc__)
    group = parser.add_argument_group("kills")
    group.add_argument("--kills", type=int, default=50, help="number of SIGKILLs")
    group.add_argument("--in_save", type=int, default=20, help="kills inside a save")
    group.add_argument("--per_chain", type=int, default=5, help="kills per run")
    group = parser.add_argument_group("runs")
    group.add_argument("--steps", type=int, default=48, help="steps per run")
    group.add_argument("--seed", type=int, default=0, help="seed of the kills")
    group.add_argument("--layouts", nargs="+", default=["1x0", "2x2", "1x2", "2x0"],
                        help="processes x loader workers")  # fmt: skip
    group.add_argument("--data_path", type=to_path, default=Path("examples/rooms"), help="samples")
    group.add_argument("--work", type=Path, help="folder of the runs (a temporary one)")
    options = parser.parse_args(arguments)
    layouts = [Layout.parse(text) for text in options.layouts]
    chains: list[Chain] = chains_of(
        layouts, options.kills, options.in_save, options.per_chain, options.seed
    )
    child = [str(Path(__file__).resolve()), CHILD]
    runs = RunFactory(child, options.data_path, options.steps)
    with tempfile.TemporaryDirectory() as folder:
        report = torture(chains, runs, options.work or Path(folder))
    print(json.dumps(report))
    return 0 if report["equal"] == report["chains"] else 1


def train_child(argv: Sequence[str]) -> None:
    """Pre-train, recording the samples of every step."""
    SIZES["nano"] = SIZE
    output_dir = Path(argv[list(argv).index("--output_dir") + 1])
    output_dir.mkdir(parents=True, exist_ok=True)
    path = output_dir / f"samples-{os.environ.get('RANK', '0')}.jsonl"
    step = Stepper.step

    def recorded(self: Stepper, state: TrainState, batches: Sequence[Batch]) -> Update:
        names = [name for batch in batches for name in batch.names]
        with path.open("a") as file:
            file.write("\n" + json.dumps([state.step, *names]))
        return step(self, state, batches)

    Stepper.step = recorded  # type: ignore[method-assign]
    run_script(lambda: run_pretraining_multimae.main(argv))


if __name__ == "__main__":
    run_command(main)
