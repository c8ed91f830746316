"""``multimae init DATA``: look at a data folder and write a start config for it."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from multimae.specs.errors import UserError

TASKS = ("pretrain", "semseg", "depth", "cls")
INIT_DESCRIPTION = """Look at a data folder and write a commented config for training on it.

    multimae init data/rooms --task semseg
    multimae init photos                      # class folders: classification

DATA holds a folder per modality with files of equal names, plain or packed; or a folder per class;
or images. It may be divided into train/ and val/. A few files of every folder are read.
"""


def add_init_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``multimae init``."""
    parser.add_argument("data", metavar="DATA", help="data root, or the folder above train/")
    parser.add_argument(
        "--task", choices=TASKS, help="default: cls for class folders, else pretrain"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: DATA's name-TASK.yaml")


def init(
    data: str,
    task: str | None = None,
    out: Path | None = None,
) -> int:
    """Survey ``data``, print a table, write the config and print the command that runs it.

    Raises:
        UserError: No images, no data for the task, or ``out`` exists.
    """
    from multimae.specs.survey.data_survey import DataSurvey, survey_data
    from multimae.specs.survey.start_config import command, write_start_config

    survey: DataSurvey = survey_data(data)
    chosen = task or ("cls" if survey.layout == "classes" else "pretrain")
    target = out or Path(f"{Path(data).resolve().name}-{chosen}.yaml")
    if target.exists():
        raise UserError(f"{target} exists. Give another file with --out, or remove it.")
    text = write_start_config(survey, chosen, target)
    for line in _table(survey):
        print(line)
    for note in survey.notes:
        print(f"check: {note}")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, encoding="utf-8")
    print(f"wrote {target}: read its comments, then\n  {command(chosen, target)}")
    return 0


def _table(survey: object) -> Iterator[str]:
    from multimae.specs.survey.data_survey import DataSurvey

    assert isinstance(survey, DataSurvey)
    header = ("modality", "folder", "files", "H x W", "stored", "range", "mean", "std")
    rows = [header]
    for g in survey.guesses:
        f = g.files
        heights, widths = zip(*f.sizes, strict=True)
        stored = f"{f.channels} x {f.dtype}" + ", packed" * f.packed
        size = f"{_span(heights)} x {_span(widths)}"
        mean, std = (
            (f"{len(f.found_ids)} ids", "")
            if g.role != "image"
            else (" ".join(f"{v:.4g}" for v in values[:4]) for values in g.valid)
        )
        rows.append(
            (g.name, f.folder, str(f.count), size, stored, f"{f.low:g}..{f.high:g}", mean, std)
        )
    widths_of = [max(len(row[i]) for row in rows) for i in range(len(header))]
    for row in rows:
        yield "  ".join(text.ljust(n) for text, n in zip(row, widths_of, strict=True)).rstrip()
    yield f"{survey.complete} of {survey.samples} samples have a file of every modality"


def _span(values: tuple[int, ...]) -> str:
    low, high = min(values), max(values)
    return f"{low}" if low == high else f"{low}-{high}"
