"""What the README shows is run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

REPO = Path(__file__).parents[1]
BLOCKS = re.findall(r"```python\n(.*?)```", (REPO / "README.md").read_text(), flags=re.DOTALL)


@pytest.mark.parametrize("code", BLOCKS)
def test_python_blocks_run(code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPO)
    exec(compile(code, "README.md", "exec"), {})


def test_there_are_blocks_and_the_links_lead_somewhere() -> None:
    assert BLOCKS
    pages = (
        "README.md",
        "SETUP.md",
        "PRETRAINING.md",
        "FINETUNING.md",
        "docs/RESULTS.md",
        "weights/README.md",
    )
    for page in pages:
        for target in re.findall(r"\]\((?!https?://)([^)#]+)[^)]*\)", (REPO / page).read_text()):
            assert ((REPO / page).parent / target).exists(), f"{page}: {target}"
