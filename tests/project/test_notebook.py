"""The notebook runs from top to bottom and is committed without outputs."""

from __future__ import annotations

import time
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

REPO = Path(__file__).parents[2]
PATH = REPO / "MultiMAE_Demo.ipynb"


@pytest.mark.long
def test_it_runs_from_a_clean_kernel() -> None:
    notebook = nbformat.read(PATH, as_version=4)
    started = time.monotonic()
    client = NotebookClient(notebook, timeout=180, resources={"metadata": {"path": str(REPO)}})
    client.execute()
    assert time.monotonic() - started < 180
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) >= 10
    assert outputs[-1]["data"]["text/plain"] == "True"  # the round trip of its last cell


def test_it_is_kept_without_outputs() -> None:
    notebook = nbformat.read(PATH, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None
    assert notebook.metadata.kernelspec.name == "python3"
