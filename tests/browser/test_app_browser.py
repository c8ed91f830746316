"""The demo page in a real browser: `make test-browser`.

With ``MULTIMAE_SCREENSHOTS=FOLDER`` it leaves pictures of the page there.
"""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

REPO = Path(__file__).parents[2]
NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)  # else playwright's own
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run")
WIDTHS = {1440: 900, 1366: 768, 1280: 800, 1024: 768, 768: 1024, 390: 844}
TABS = ("fill", "predict", "features")
SHOTS = os.environ.get("MULTIMAE_SCREENSHOTS")

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    command = [sys.executable, str(REPO / "tools/demo_app.py")]
    env = {**os.environ, "PYTHONUNBUFFERED": "1", "TMPDIR": str(tmp_path_factory.mktemp("tmp"))}
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        run.stdout.readline()
        yield run.stdout.readline().split()[1]
        run.send_signal(signal.SIGTERM)
        assert run.wait(30) == 128 + signal.SIGTERM


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield chromium
        chromium.close()


Open = Callable[..., Page]


@pytest.fixture
def open_page(browser: Browser, address: str) -> Iterator[Open]:
    """Opens the page; no script may fail, and nothing but this server be asked."""
    problems: list[str] = []
    hosts: set[str | None] = set()
    contexts = []

    def open_(query: str = "", width: int = 1440, **options: Any) -> Page:
        viewport: Any = {"width": width, "height": WIDTHS[width]}
        context = browser.new_context(viewport=viewport, accept_downloads=True, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda r: hosts.add(urlparse(r.url).hostname))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
        page.goto(f"{address}/{query}")
        settled(page)
        return page

    yield open_
    for context in contexts:
        context.close()
    refused = "the server responded with a status of 422"  # which the page tells as a message
    assert [text for text in problems if refused not in text] == []
    assert hosts <= {"127.0.0.1", None, ""}


def settled(page: Page) -> None:
    """Wait for the answer to the last action."""
    expect(page.locator("body:not(.busy) #message")).to_be_visible(timeout=30_000)
    expect(page.locator("#message")).not_to_contain_text("Loading the first picture")


def message(page: Page, text: str) -> None:
    expect(page.locator("#message")).to_contain_text(text)


def predicted(page: Page, name: str) -> Locator:
    return page.locator(f"#row-{name} figure").nth(1)


def picture(page: Page, name: str) -> str:
    return predicted(page, name).locator("img").get_attribute("src") or ""


def changed(page: Page, name: str, before: str) -> str:
    """Wait until the prediction of ``name`` is another one."""
    expect(predicted(page, name).locator("img")).not_to_have_attribute("src", before)
    settled(page)
    return picture(page, name)


def colours(figure: Locator) -> np.ndarray[Any, Any]:
    """What a visitor sees of a picture, 64 x 64."""
    with Image.open(io.BytesIO(figure.locator(".picture").screenshot())) as image:
        return np.asarray(image.convert("RGB").resize((64, 64)), int)


def seen(page: Page, name: str) -> int:
    return page.locator(f"#board-{name} .cells i.seen").count()


def query(page: Page) -> dict[str, str]:
    return {key: values[0] for key, values in parse_qs(urlparse(page.url).query).items()}


def drag(page: Page, name: str, start: tuple[float, float], stop: tuple[float, float]) -> None:
    """Over a board, in shares of its sides."""
    box: Any = page.locator(f"#board-{name}").bounding_box()
    points = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in (start, stop)]
    page.mouse.move(*points[0])
    page.mouse.down()
    page.mouse.move(*points[1], steps=12)
    page.mouse.up()


def choose(page: Page, name: str, content: bytes, file: str = "mine.png") -> None:
    """Upload a file."""
    if page.locator("#own").get_attribute("open") is None:
        page.locator("#own summary").click()
    page.locator(f"#upload-{name}").set_input_files(
        {"name": file, "mimeType": "image/png", "buffer": content}
    )


def encoded(array: np.ndarray[Any, Any], kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind)
    return buffer.getvalue()


def test_a_visit(open_page: Open) -> None:
    page = open_page()
    message(page, "32 of 192")
    before = picture(page, "semseg")
    page.locator("#examples button").nth(2).click()
    before = changed(page, "semseg", before)
    message(page, "dining room")

    slider = page.locator("#tokens")
    slider.focus()
    for _ in range(8):
        page.keyboard.press("ArrowRight")
    message(page, "40 of 192")
    expect(page.locator("#tokens-value")).to_have_text("40 of 192")
    before = changed(page, "semseg", before)

    # Presets; then paint patches, and erase them.
    page.locator("#preset-depth").click()
    message(page, "64 of 192")
    settled(page)
    before = picture(page, "rgb")
    drag(page, "rgb", (0.06, 0.44), (0.94, 0.44))
    before = changed(page, "rgb", before)
    assert seen(page, "rgb") == 8
    message(page, "72 of 192")
    assert page.locator("#tokens").input_value() == "72"
    drag(page, "depth", (0.06, 0.06), (0.94, 0.06))
    changed(page, "rgb", before)
    assert seen(page, "depth") == 56

    # Edit: paint a class into the labels, and the photo reacts.
    page.locator("#preset-semseg").click()
    message(page, "64 of 192")
    settled(page)
    before = picture(page, "rgb")
    page.get_by_label("semseg: edit patches").click()
    page.get_by_label("semseg: class to paint").select_option(label="window")
    drag(page, "semseg", (0.3, 0.55), (0.8, 0.8))
    changed(page, "rgb", before)
    expect(page.locator("#row-rgb")).to_contain_text("reaction")
    assert page.locator("#board-semseg .cells i.edited").count() >= 4

    with page.expect_download() as download:
        page.locator("#download").click()
    with Image.open(download.value.path()) as image:
        assert image.format == "PNG" and image.width > 800

    # A seed and a room of one's own.
    before = picture(page, "rgb")
    page.locator("#resample").click()
    before = changed(page, "rgb", before)
    page.locator("#new-room").click()
    changed(page, "rgb", before)
    assert query(page)["scene"].startswith("room:")


def test_touch_paints_on_a_phone(open_page: Open) -> None:
    page = open_page("?scene=kitchen/000038", 390, has_touch=True, is_mobile=True)
    page.locator("#preset-depth").tap()
    message(page, "64 of 192")
    settled(page)
    board = page.locator("#board-rgb")
    board.scroll_into_view_if_needed()
    box: Any = board.bounding_box()
    assert box["width"] >= 150
    session = page.context.new_cdp_session(page)
    y, before, scrolled = (
        box["y"] + 0.44 * box["height"],
        picture(page, "rgb"),
        page.evaluate("scrollY"),
    )
    for kind, share in (("touchStart", 0.06), *(("touchMove", i / 10) for i in range(1, 10))):
        point = {"x": box["x"] + share * box["width"], "y": y}
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [point]})
    session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    changed(page, "rgb", before)
    assert seen(page, "rgb") == 8 and page.evaluate("scrollY") == scrolled
    message(page, "72 of 192")


def test_the_url_restores_the_state(open_page: Open) -> None:
    page = open_page("?scene=office/000034")
    page.locator("#preset-semseg").click()
    message(page, "64 of 192")
    page.get_by_label("semseg: edit patches").click()
    page.get_by_label("semseg: class to paint").select_option(label="window")
    drag(page, "semseg", (0.3, 0.3), (0.8, 0.3))
    expect(page.locator("#row-rgb")).to_contain_text("reaction")
    settled(page)
    edited, link = picture(page, "rgb"), urlparse(page.url).query
    count = page.locator("#board-semseg .cells i.edited").count()
    assert count >= 4

    page.reload()
    settled(page)
    assert picture(page, "rgb") == edited
    other = open_page(f"?{link}")
    assert picture(other, "rgb") == edited
    assert other.locator("#board-semseg .cells i.edited").count() == count
    message(other, "office: 64 of 192")

    page.go_back()  # before the edit
    expect(page.locator("#board-semseg .cells i.edited")).to_have_count(0)
    settled(page)
    assert seen(page, "semseg") == 64 and seen(page, "rgb") == 0
    page.go_back()  # before the preset
    message(page, "32 of 192")
    page.go_forward()
    message(page, "64 of 192")

    patches = "&".join(f"visible.{name}={'f' * 16}" for name in ("rgb", "depth"))
    mixed = open_page(f"?{patches}&edits.rgb=0_c0392b~9_c0392b&edits.depth=3_-0.4")
    assert mixed.locator("#board-rgb .cells i.edited").count() == 2
    assert mixed.locator("#board-depth .cells i.edited").all_inner_texts() == ["−"]
    message(mixed, "128 of 192")

    damaged = open_page("?scene=office/000034&visible.rgb=zz&edits.rgb=99_x&seed=-4&tab=nothing")
    message(damaged, "32 of 192")
    gone = open_page("?scene=upload:0123456789abcdef")
    message(gone, "no longer on the server")
    assert picture(gone, "rgb")


def bad_uploads() -> dict[str, tuple[str, bytes, str]]:
    """Input, content and what the message says, by file name."""
    grey = np.zeros((64, 64), np.uint8)
    colour = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    return {
        "letter.png": ("rgb", b"Dear model, no image here.", "is not an image this page can read"),
        "nothing.png": ("rgb", b"", "is empty"),
        "half.png": ("rgb", encoded(colour)[:2000], "is damaged"),
        "huge.png": ("rgb", bytes(20_000_001), "the limit is 20 MB"),
        "tiny.png": ("rgb", encoded(colour[:9, :9]), "smaller than one patch"),
        "wide.png": ("rgb", encoded(grey.astype(np.uint16)), "another modality"),
        "colour.png": ("depth", encoded(colour), "greyscale"),
        "lossy.jpg": ("depth", encoded(grey, "JPEG"), "16 bits"),
        "photo.png": ("semseg", encoded(colour), "class ids"),
        "ids.png": ("semseg", encoded(grey + 77), "ids are 0..40"),
        "flat.gif": ("rgb", encoded(colour, "GIF"), "Use avif"),
    }


def test_bad_uploads_get_a_message_and_leave_no_trace(open_page: Open) -> None:
    page = open_page()
    own = np.asarray(Image.effect_mandelbrot((200, 150), (-2, -1, 1, 1), 60).convert("RGB"))
    choose(page, "rgb", encoded(own))
    message(page, "mine.png: ")
    settled(page)
    expect(page.locator("#crops")).to_contain_text("200 × 150: the middle 150 × 150")
    expect(page.locator("#row-depth")).to_contain_text("not in this image")
    assert page.locator("#tokens").get_attribute("max") == "64"
    before, url = picture(page, "rgb"), page.url
    for file, (name, content, expected) in bad_uploads().items():
        choose(page, name, content, file)
        message(page, file)
        message(page, expected)
        settled(page)
        assert page.url == url and picture(page, "rgb") == before
        assert page.locator(f"#upload-{name}").input_value() == ""
        expect(page.locator("#file-rgb")).to_have_text("rgb: mine.png")
        expect(page.locator("#file-depth")).to_have_text("depth: none")
    page.locator("#label").click()
    message(page, "--depth_model")
    page.reload()
    message(page, "mine.png")


def test_messages_and_no_stale_pictures(open_page: Open) -> None:
    page = open_page()
    page.locator("#seed").fill("-1")
    page.locator("#seed").press("Enter")
    message(page, "seed must be an integer from 0")
    page.locator("#seed").fill("3")
    page.locator("#seed").press("Enter")
    message(page, "32 of 192")
    for name in ("rgb", "depth", "semseg"):
        page.get_by_label(f"{name}: hide all patches").click()
    message(page, "No patch is visible")
    settled(page)
    for name in ("rgb", "depth", "semseg"):
        assert not predicted(page, name).locator("img, canvas").locator("visible=true").count()
    assert page.locator("#tokens-value").inner_text() == "0 of 192"
    assert page.locator("#tokens").input_value() == "0"


def test_visible_patches_are_drawn_over_the_prediction(open_page: Open) -> None:
    page = open_page("?scene=kitchen/000038")
    page.locator("#preset-rgb").click()
    message(page, "64 of 192")
    settled(page)
    box = predicted(page, "rgb")
    expect(box).to_contain_text("filled in")
    filled, truth = (colours(figure) for figure in (box, page.locator("#row-rgb figure").nth(2)))
    assert np.abs(filled - truth).mean() < 5  # 32 without them
    page.locator("#paste").uncheck()
    expect(box).to_contain_text("prediction")
    settled(page)
    assert not box.locator("canvas").is_visible() and query(page)["paste"] == "no"


def test_tabs_predict_and_show_features(open_page: Open) -> None:
    page = open_page("?scene=kitchen/000038")
    page.locator("#tab-predict").click()
    message(page, "predicted by")
    settled(page)
    before = page.locator("#head-semseg .share").all_inner_texts()
    page.locator("#semseg-overlay").click(position={"x": 5, "y": 5})
    settled(page)
    assert page.locator("#head-semseg .share").all_inner_texts() != before
    page.locator("#tab-predict").press("ArrowRight")
    message(page, "attention from rgb")
    settled(page)
    page.locator("#feature-depth-image").click(position={"x": 5, "y": 5})
    message(page, "attention from depth, row 1, column 1")
    settled(page)
    page.locator("#feature-depth-image").press("ArrowDown")
    message(page, "row 2, column 1")
    settled(page)
    assert query(page)["patch"] == "depth.1.0"
    page.reload()
    message(page, "attention from depth, row 2, column 1")


@pytest.mark.parametrize(("scheme", "width"), [("light", 1440), ("dark", 1440), ("dark", 390)])
def test_axe_finds_nothing(open_page: Open, scheme: str, width: int) -> None:
    for tab in TABS:
        page = open_page(f"?tab={tab}", width, color_scheme=scheme)
        for details in page.locator("details:visible summary").all():
            details.click()
        settled(page)
        if tab == "fill":
            page.get_by_label("semseg: edit patches").click()
            page.locator("#seed").fill("-1")
            page.locator("#seed").press("Enter")
        assert Axe().run(page).response["violations"] == []


@pytest.mark.parametrize("width", WIDTHS)
def test_layout(open_page: Open, width: int) -> None:
    for tab in TABS:
        for scheme in ("light", "dark") if SHOTS else ("light",):
            page = open_page(f"?tab={tab}", width, color_scheme=scheme)
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            if SHOTS:
                page.wait_for_timeout(300)
                path = Path(SHOTS) / f"{tab}-{width}-{scheme}.png"
                page.screenshot(path=path, full_page=width < 1000)
    page = open_page("", width)
    for name in ("rgb", "depth", "semseg"):
        for button in page.locator(f"#row-{name} .about button:visible").all():
            box: Any = button.bounding_box()
            assert box["width"] >= 24 and box["height"] >= 24
            assert box["x"] + box["width"] <= width
        board: Any = page.locator(f"#board-{name}").bounding_box()
        assert board["width"] >= 120
    if width == 1440:
        for selector in ("#resample", "#row-semseg"):
            box = page.locator(selector).bounding_box()
            assert box["y"] + box["height"] <= WIDTHS[width]
