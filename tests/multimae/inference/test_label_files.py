"""CSV files with a class, several labels or numbers per image."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from multimae.inference.label_files import LabelFile, read_label_file
from multimae.specs.heads import LabelKind
from tests.support.image_folders import message_of


def read(tmp_path: Path, text: str, kind: LabelKind, names: list[str] | None = None) -> LabelFile:
    path = tmp_path / "labels.csv"
    path.write_text(text)
    return read_label_file(path, kind, names)


def test_one_class(tmp_path: Path) -> None:
    labels = read(tmp_path, "\ufeffname,label\na/1.jpg,dog\n./b/2,cat\n", "class")
    assert labels.names == ("cat", "dog")
    assert labels.targets(["b/2", "a/1"]).tolist() == [0, 1]


def test_several_labels_in_a_cell_or_a_column_each(tmp_path: Path) -> None:
    cell = read(tmp_path, 'name,labels\n1.png,"red; big"\n2.png,\n3.png,big\n', "multi")
    assert cell.names == ("big", "red")
    assert cell.targets(["1", "2", "3"]).tolist() == [[1, 1], [0, 0], [1, 0]]
    columns = read(tmp_path, "name,red,big\n1,1,0\n2,,1\n", "multi", ["big", "red"])
    expected = torch.tensor([[0.0, 1.0], [1.0, math.nan]])
    torch.testing.assert_close(columns.targets(["1", "2"]), expected, equal_nan=True)


def test_numbers(tmp_path: Path) -> None:
    labels = read(tmp_path, "name,age,size\n1,4,0.5\n2,,-1e3\n", "number")
    assert labels.names == ("age", "size")
    expected = torch.tensor([[math.nan, -1000.0]])
    torch.testing.assert_close(labels.targets(["2"]), expected, equal_nan=True)


@pytest.mark.parametrize(
    "text, kind, facts",
    [
        ("name,label\n1,a\n1.jpg,b\n2,a,c\n", "class", ["line 3", "'1'", "line 4", "3 columns"]),
        ("name,a,b\n1,1,yes\n", "multi", ["'1'", "'yes'"]),
        ("name,age\n1,inf\n2,old\n", "number", ["'inf'", "'old'"]),
        ("name;label\n1;a\n", "class", ["name,label"]),
        ("", "number", ["name,value"]),
    ],
)
def test_wrong_rows(tmp_path: Path, text: str, kind: LabelKind, facts: list[str]) -> None:
    message = message_of(read, tmp_path, text, kind)
    assert all(fact in message for fact in (*facts, "labels.csv"))


def test_classes_of_evaluation_are_those_of_training(tmp_path: Path) -> None:
    message = message_of(read, tmp_path, "name,label\n1,dgo\n", "class", ["cat", "dog"])
    assert "'dgo'" in message and "dog" in message
    assert "size" in message_of(read, tmp_path, "name,size\n1,2\n", "number", ["age"])
