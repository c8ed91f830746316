"""``torch.hub`` from a clone, whatever the working directory."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).parents[2]
SHIPPED = REPO / "weights"

USE = """
import sys, torch
repo, weights = sys.argv[1:]
model = torch.hub.load(repo, "multimae_tiny_rooms", source="local")
again = torch.hub.load(repo, "multimae", weights, source="local")
assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters()))
print(model.spec.name, model.training, model.encode(torch.zeros(1, 3, 128, 128), pool="mean").shape)
"""


def test_from_another_folder(tmp_path: Path) -> None:
    weights = SHIPPED / "multimae-tiny_rooms.safetensors"
    done = subprocess.run(
        [sys.executable, "-c", USE, str(REPO), str(weights)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "pretrain_multimae_tiny False torch.Size([1, 192])" in done.stdout


def test_every_weight_file_has_an_entry_point() -> None:
    shipped = {path.stem.replace("-", "_") for path in SHIPPED.glob("*.safetensors")}
    module = runpy.run_path(str(REPO / "hubconf.py"))
    entries = {name for name, v in module.items() if callable(v) and not name.startswith("_")}
    assert entries == {"multimae", *shipped}
    assert all("weights/README.md" in module[name].__doc__ for name in shipped)
