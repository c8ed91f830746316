"""Every format, column and way of reading is right or refused, and the document says which."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tools import format_table
from tools.formats import verdicts
from tools.formats.format_samples import GREY, IDS, Sample, samples
from tools.formats.verdicts import COLUMNS, WAYS, Row, build_table, judge, modality_of

REPO = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Row]:
    return build_table(list(samples()), tmp_path_factory.mktemp("formats"))


def test_every_cell_is_right_or_refused(table: dict[str, Row]) -> None:
    bad = {
        (name, *key): cell.detail
        for name, row in table.items()
        for key, cell in row.items()
        if cell.verdict not in format_table.GOOD
    }
    assert bad == {}
    assert all(set(row) == {(c, w) for c in COLUMNS for w in WAYS} for row in table.values())


def test_the_document_has_the_table(table: dict[str, Row]) -> None:
    text = (REPO / "docs/FORMATS.md").read_text(encoding="utf-8")
    assert format_table.markdown(table) in text, "run tools/format_table.py --markdown"


@pytest.mark.parametrize(
    ("pixels", "word"),
    [
        (IDS, "right"),
        (IDS + 1, "WRONG"),
        (IDS.astype(np.uint16), "WRONG"),
        (IDS.T, "WRONG"),
        (KeyError("x"), "crash"),
        (ValueError("x"), "crash"),
        (verdicts.Refusal("somewhere"), "crash"),
        (verdicts.Refusal("x.png: no"), "refused"),
    ],
)
def test_verdicts(pixels: object, word: str) -> None:
    sample = Sample("x", "png", lambda path: None, IDS)

    def read() -> object:
        if isinstance(pixels, Exception):
            raise pixels
        return pixels

    assert judge(read, sample, "labels", modality_of("labels", sample)).verdict == word  # type: ignore


def test_lossy_files_may_be_right_as_colours_only() -> None:
    sample = Sample("x", "jpg", lambda path: None, GREY, tolerance=4)
    near = np.repeat(GREY[..., None] + np.uint8(3), 3, -1)
    for column, pixels in (
        ("rgb", near),
        ("labels", GREY),
        ("depth", GREY.astype(np.uint16)),
        ("float", GREY.astype(np.float32)),
    ):
        cell = judge(lambda pixels=pixels: pixels, sample, column, modality_of(column, sample))
        assert cell.verdict == ("right" if column == "rgb" else "WRONG")


def test_a_wrong_cell_makes_the_command_fail(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for word, code in (("right", 0), ("refused", 0), ("WRONG", 1), ("crash", 1)):
        cells = {(c, w): verdicts.Cell("right") for c in COLUMNS for w in WAYS}
        cells["depth", "packed"] = verdicts.Cell(word, "why")  # type: ignore[arg-type]
        monkeypatch.setattr(format_table, "build_table", lambda *_, c=cells: {"PNG": c})
        assert format_table.main([]) == code
        captured = capsys.readouterr()
        assert word in captured.out and (code == 0 or "PNG, depth, packed" in captured.err)
