"""Paths and links in the documents exist."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]
FOLDERS = "multimae|utils|tools|tests|docs|cfgs|weights|examples"
FILES = [
    path.relative_to(REPO).as_posix()
    for pattern in ("*.md", "docs/**/*.md", "weights/*.md", "examples/*.md")
    for path in sorted(REPO.glob(pattern))
]
PAGES = [name for name in FILES if not name.startswith("docs/notes/")]  # notes name old modules
CODE = re.compile(rf"`((?:(?:{FOLDERS})/|run_\w+\.py)[^\s`]*)[^`]*`")
LINK = re.compile(r"\]\((?!https?://|mailto:)([^)#\s]*)(#[^)\s]*)?\)")


def expand(path: str) -> Iterator[str]:
    """``a/{b,c}.py`` as ``a/b.py`` and ``a/c.py``."""
    match = re.search(r"\{([^{}]*)\}", path)
    if match is None:
        yield path
        return
    for choice in match[1].split(","):
        yield from expand(path[: match.start()] + choice + path[match.end() :])


def anchors(page: Path) -> set[str]:
    """GitHub's anchors of a page's headings."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    titles = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {"#" + re.sub(r"[^\w\- ]", "", t.lower()).replace(" ", "-") for t in titles}


@pytest.mark.parametrize("page", PAGES)
def test_paths_exist(page: str) -> None:
    text = re.sub(r"```.*?```", "", (REPO / page).read_text(), flags=re.DOTALL)
    for code in CODE.findall(text):
        for path in expand(code):
            if "TASK" not in path and "<" not in path:  # placeholders
                assert any(REPO.glob(path.rstrip("/"))), f"{page}: {path}"


@pytest.mark.parametrize("page", FILES)
def test_links_resolve(page: str) -> None:
    for target, anchor in LINK.findall((REPO / page).read_text()):
        path = (REPO / page).parent / target if target else REPO / page
        assert path.exists(), f"{page}: {target}"
        if anchor:
            assert anchor in anchors(path), f"{page}: {target}{anchor}"
