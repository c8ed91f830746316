"""The demo page in a real browser: `make test-browser`.

With ``MULTIMAE_SCREENSHOTS=FOLDER`` it leaves pictures of the page there.
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import pytest
from PIL import Image
from playwright.sync_api import Page, sync_playwright

REPO = Path(__file__).parents[2]
NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)  # else playwright's own
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run")

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    command = [sys.executable, str(REPO / "tools/demo_app.py")]
    env = {**os.environ, "PYTHONUNBUFFERED": "1", "TMPDIR": str(tmp_path_factory.mktemp("tmp"))}
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        yield run.stdout.readline().split()[1]
        run.send_signal(2)
        assert run.wait(30) == 0


@pytest.fixture
def visit(address: str) -> Iterator[tuple[Page, list[str], list[str]]]:
    """The page, once its first prediction is there; all requests; all errors of its scripts."""
    requests: list[str] = []
    errors: list[str] = []
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        page = browser.new_page(viewport={"width": 1440, "height": 1180}, accept_downloads=True)
        page.on("request", lambda request: requests.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
        page.goto(address)
        page.wait_for_selector("#row-rgb img")
        page.wait_for_function("document.querySelector('#status').innerText.includes('32 of 192')")
        yield page, requests, errors
        browser.close()


def prediction(page: Page, name: str) -> str:
    """The picture in the prediction's place."""
    return page.locator(f"#row-{name} img").nth(1).get_attribute("src") or ""


def changed(page: Page, name: str, before: str) -> str:
    """Wait until the prediction of ``name`` is another one."""
    page.wait_for_function(
        "([name, before]) => {const i = document.querySelectorAll(`#row-${name} img`)[1];"
        " return i && i.src !== before}",
        arg=[name, before],
    )
    return prediction(page, name)


def shot(page: Page, name: str) -> None:
    folder = os.environ.get("MULTIMAE_SCREENSHOTS")
    if folder:
        page.wait_for_timeout(400)
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


def drag(page: Page, painter: str, start: tuple[float, float], stop: tuple[float, float]) -> None:
    """Over a painter's board, in shares of its sides."""
    box: Any = page.locator(f"#painter-{painter} .mm-board").bounding_box()
    points = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in (start, stop)]
    page.mouse.move(*points[0])
    page.mouse.down()
    page.mouse.move(*points[1], steps=12)
    page.mouse.up()


def test_a_visit(visit: tuple[Page, list[str], list[str]], tmp_path: Path) -> None:
    page, requests, errors = visit
    shot(page, "app")

    # Select an example.
    before = prediction(page, "semseg")
    page.locator("#examples button").nth(2).click()
    seen = changed(page, "semseg", before)
    assert "dining room" in page.locator("#status").inner_text()

    # Move a slider.
    slider = page.locator("#num_encoded_tokens input[type=range]")
    slider.focus()
    for _ in range(8):
        page.keyboard.press("ArrowRight")
    page.wait_for_function("document.querySelector('#status').innerText.includes('40 of 192')")
    seen = changed(page, "semseg", seen)

    # Presets; then paint patches, and erase them.
    page.locator("#preset-depth").click()
    page.wait_for_function("document.querySelector('#status').innerText.includes('64 of 192')")
    page.wait_for_timeout(300)
    seen = prediction(page, "rgb")
    assert page.locator("#painter-rgb .mm-cells i.seen").count() == 0
    drag(page, "rgb", (0.06, 0.44), (0.94, 0.44))
    seen = changed(page, "rgb", seen)
    assert page.locator("#painter-rgb .mm-cells i.seen").count() == 8
    page.wait_for_function("document.querySelector('#status').innerText.includes('72 of 192')")
    drag(page, "depth", (0.06, 0.06), (0.94, 0.06))
    changed(page, "rgb", seen)
    assert page.locator("#painter-depth .mm-cells i.seen").count() == 56
    shot(page, "painted")

    # Edit: paint a class into the labels, and the photo reacts.
    page.locator("#preset-semseg").click()
    page.wait_for_function("document.querySelector('#status').innerText.includes('64 of 192')")
    page.wait_for_timeout(300)
    seen = prediction(page, "rgb")
    page.locator("#painter-semseg .mm-edit").click()
    page.locator("#painter-semseg .mm-class").select_option(label="window")
    drag(page, "semseg", (0.3, 0.55), (0.8, 0.8))
    changed(page, "rgb", seen)
    page.wait_for_function("document.querySelector('#row-rgb').innerText.includes('reaction')")
    assert page.locator("#painter-semseg .mm-cells i.edited").count() >= 4
    shot(page, "edited")

    # Download.
    with page.expect_download() as download:
        page.locator("#download").click()
    with Image.open(download.value.path()) as image:
        assert image.format == "PNG" and image.width > 800

    # A bad upload, then a good one.
    page.locator("#own > button, #own .label-wrap").first.click()
    chooser = page.locator("#file-rgb input[type=file]")
    chooser.set_input_files(
        {"name": "letter.png", "mimeType": "image/png", "buffer": b"Dear model, no image here."}
    )
    page.wait_for_selector(".mm-alert")
    assert "letter.png is not an image this page can read" in page.locator("#alert").inner_text()
    shot(page, "refused")
    page.reload()
    page.wait_for_selector("#row-rgb img")
    page.locator("#own > button, #own .label-wrap").first.click()
    buffer = io.BytesIO()
    Image.effect_mandelbrot((200, 150), (-2, -1, 1, 1), 60).convert("RGB").save(buffer, "PNG")
    page.locator("#file-rgb input[type=file]").set_input_files(
        {"name": "mine.png", "mimeType": "image/png", "buffer": buffer.getvalue()}
    )
    page.wait_for_function("document.querySelector('#status').innerText.includes('your image')")
    assert "not available" in page.locator("#row-depth").inner_text()

    hosts = {urlparse(url).hostname for url in requests if url.startswith("http")}
    assert hosts == {"127.0.0.1"} and all(
        url.startswith(("http://127.0.0.1", "data:", "blob:")) for url in requests
    )
    assert errors == []


def test_resampling_and_a_new_room(visit: tuple[Page, list[str], list[str]]) -> None:
    page, _, errors = visit
    seen = prediction(page, "rgb")
    page.locator("#resample").click()
    seen = changed(page, "rgb", seen)
    page.locator("#new-room").click()
    changed(page, "rgb", seen)
    assert any(char.isdigit() for char in page.locator("#status").inner_text().split(":")[0])
    assert errors == []
