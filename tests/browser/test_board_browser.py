"""The run board in a real browser: `make test-browser`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect, sync_playwright

from tests.browser.test_app_browser import CHROMIUM, FLAGS
from tests.tools.report.test_run_board import make_run
from tools.run_board import main

pytestmark = pytest.mark.browser


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    make_run(tmp_path / "runs/low", [10.0, 9.0], lr=0.1)
    make_run(tmp_path / "runs/high", [5.0, 12.5], lr=0.2)
    main([str(tmp_path / "runs"), "--out", str(tmp_path / "board.html")])
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        opened = browser.new_page()
        problems: list[str] = []
        opened.on("console", lambda message: problems.append(message.text))
        opened.on("pageerror", lambda error: problems.append(str(error)))
        opened.goto((tmp_path / "board.html").as_uri())
        yield opened
        browser.close()
    assert problems == []


def test_curves_filter_and_sorting(page: Page) -> None:
    curves = page.locator("figure[data-panel]").first.locator("polyline")
    expect(curves).to_have_count(4)  # training and validation loss of two runs
    page.locator("svg").first.hover()
    expect(page.locator("output").first).to_contain_text("at step")
    page.get_by_role("button", name="run").first.click()
    rows = page.locator("tr[data-of]")
    expect(rows.first).to_contain_text("low")
    page.get_by_label("Filter").fill("lr=0.2")
    expect(rows.filter(visible=True)).to_have_count(1)
    expect(curves).to_have_count(2)
    page.get_by_label("Draw high").uncheck()
    expect(curves).to_have_count(0)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(page: Page, scheme: str) -> None:
    page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    assert Axe().run(page).violations_count == 0
