"""The notebooks run from top to bottom and are committed with small outputs."""

from __future__ import annotations

import base64
import time
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

REPO = Path(__file__).parents[2]
DEMO, OWN = REPO / "MultiMAE_Demo.ipynb", REPO / "MultiMAE_OwnData.ipynb"


def run(path: Path, folder: Path, *changes: tuple[str, str]) -> list[nbformat.NotebookNode]:
    """Outputs of a notebook that runs in ``folder``, with a few texts replaced."""
    notebook = nbformat.read(path, as_version=4)
    for old, new in changes:
        assert any(old in cell.source for cell in notebook.cells), old
        for cell in notebook.cells:
            cell.source = cell.source.replace(old, new)
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=300, resources=resources).execute()
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def pictures(outputs: list[nbformat.NotebookNode]) -> list[bytes]:
    found = [
        output.data["image/jpeg"] for output in outputs if "image/jpeg" in output.get("data", {})
    ]
    return [base64.b64decode(text) for text in found]


@pytest.mark.long
def test_the_demo_runs_from_a_clean_kernel() -> None:
    started = time.monotonic()
    outputs = run(DEMO, REPO)
    assert time.monotonic() - started < 180
    assert len(pictures(outputs)) == 12
    assert outputs[-1]["data"]["text/plain"] == "True"  # the round trip of its last cell


@pytest.mark.long
def test_own_data_from_folders_to_predictions(tmp_path: Path) -> None:
    for name in ("tools", "multimae", "utils", "weights", "run_pretraining_multimae.py"):
        (tmp_path / name).symlink_to(REPO / name)
    few = (("--train 240 --val 48", "--train 32 --val 16"), ("EPOCHS = 40", "EPOCHS = 2"))
    outputs = run(OWN, tmp_path, *few)
    assert len(pictures(outputs)) == 2
    assert outputs[-1]["data"]["text/plain"].count("rgb") == 1
    assert (tmp_path / "output/own/predicted/thermal").is_dir()


@pytest.mark.parametrize("path", [DEMO, OWN], ids=lambda path: path.stem)
def test_stored_outputs_are_complete_and_small(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert path.stat().st_size < 1_000_000 and notebook.metadata.kernelspec.name == "python3"
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert all(len(picture) < 250_000 for picture in pictures(outputs))
    assert len(pictures(outputs)) == {DEMO: 12, OWN: 2}[path]
    printed = "".join(o.get("text", "") + o.get("data", {}).get("text/plain", "") for o in outputs)
    for word in ("/root/", "/home/", "/tmp/", "Traceback", "Warning:", "%|"):
        assert word not in printed
