"""The demo page without a browser: predictions, edits, uploads, many visitors, no traces."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from multimae.specs.errors import UserError
from tests.support.image_folders import save
from tests.utils.data.test_data_files import bomb, truncate
from tools import demo_app
from tools.app.engine import Engine
from tools.app.scenes import Scene, examples, from_files
from tools.app.session import Session, Settings
from tools.app.strokes import from_bits, parse_edits, to_bits
from tools.app.uploads import MAX_BYTES, read_upload

REPO = Path(__file__).parents[2]
WEIGHTS = REPO / "weights/multimae-tiny_rooms.safetensors"
ROOMS = REPO / "examples/rooms"
NAMES = ("rgb", "depth", "semseg")


@pytest.fixture(scope="module")
def session() -> Session:
    return Session(Engine(WEIGHTS))


@pytest.fixture(scope="module")
def scenes(session: Session) -> list[Scene]:
    return list(examples(ROOMS, session.engine.spec))


def settings(
    num_encoded_tokens: int = 32, concentration: float = 1.0, seed: int = 0, **shares: float
) -> Settings:
    return Settings(num_encoded_tokens, concentration, {n: shares.get(n, 1.0) for n in NAMES}, seed)


def test_sliders_draw_patches(session: Session, scenes: list[Scene]) -> None:
    scene = scenes[0]
    drawn = session.draw(scene, settings(40))
    assert sum(int(mask.sum()) for mask in drawn.values()) == 40
    again, other = session.draw(scene, settings(40)), session.draw(scene, settings(40, seed=1))
    assert all(np.array_equal(drawn[n], again[n]) for n in NAMES)
    assert not all(np.array_equal(drawn[n], other[n]) for n in NAMES)
    counts = [session.draw(scene, settings(32, seed=s, depth=0.0))["depth"].sum() for s in range(9)]
    assert max(counts) <= 3
    with pytest.raises(UserError, match="seed must be"):
        session.draw(scene, settings(seed=-1))


def test_presets_and_status(session: Session, scenes: list[Scene]) -> None:
    only = session.only(scenes[0], "depth")
    assert only["depth"].all() and not only["rgb"].any()
    view = session.page(scenes[0], only, {})
    assert "64 of 192 patches visible" in view.status
    assert set(view.panels) == {"rgb", "depth", "semseg", "norm_rgb"}
    assert "wall" in view.panels["semseg"] and "of pixels right" in view.panels["semseg"]
    rgb_alone = Scene("photo", {"rgb": scenes[0].pixels["rgb"]})
    with pytest.raises(UserError, match="no depth"):
        session.only(rgb_alone, "depth")
    row = session.page(rgb_alone, session.only(rgb_alone, "rgb"), {}).panels["depth"]
    assert row.count("not available") == 2  # truth and error
    with pytest.raises(UserError, match="No patch is visible"):
        session.page(scenes[0], {n: np.zeros((8, 8), bool) for n in NAMES}, {})


def test_an_edit_of_one_modality_changes_the_others(session: Session, scenes: list[Scene]) -> None:
    engine, scene = session.engine, scenes[0]
    visible = session.only(scene, "semseg")
    labels = engine.inputs[2]
    window = labels.class_names.index("window")
    painted = parse_edits({"27": window, "28": window}, labels, (8, 8))
    pair = session.predict(scene, visible, {"semseg": painted})
    assert pair.before is not None
    for name in ("rgb", "depth"):
        assert (pair.now.outputs[name] - pair.before.outputs[name]).abs().mean() > 1e-3
    shifted = parse_edits({"27": -0.5}, engine.inputs[1], (8, 8))
    pair = session.predict(scene, session.only(scene, "depth"), {"depth": shifted})
    assert pair.before is not None
    assert not np.array_equal(pair.now.outputs["semseg"], pair.before.outputs["semseg"])
    assert "reaction" in session.page(scene, visible, {"semseg": painted}).panels["rgb"]
    for bad in ({"64": 1}, {"0": 99}, {"x": 1}):
        with pytest.raises(UserError):
            parse_edits(bad, labels, (8, 8))


def test_painters_bits() -> None:
    mask = np.random.default_rng(0).random((8, 8)) < 0.4
    assert np.array_equal(from_bits(to_bits(mask), (8, 8), "rgb"), mask)
    with pytest.raises(UserError):
        from_bits("01", (8, 8), "rgb")


def test_a_prediction_takes_less_than_a_second(session: Session, scenes: list[Scene]) -> None:
    start = time.perf_counter()
    session.page(scenes[1], session.draw(scenes[1], settings()), {})
    assert time.perf_counter() - start < 1


def noise(path: Path, *shape: int) -> Path:
    return save(path, np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))


def big(path: Path) -> None:
    noise(path, 64, 64, 3)
    with path.open("ab") as file:
        file.truncate(MAX_BYTES + 1)


@pytest.mark.parametrize(
    ("row", "make", "expected"),
    [
        (0, lambda p: p.write_text("hello"), "is not an image this page can read"),
        (0, lambda p: p.write_bytes(b""), "is empty"),
        (0, truncate, "is damaged"),
        (0, big, "20 MB"),
        (1, bomb, "too many pixels"),
        (0, lambda p: noise(p, 9, 9, 3), "smaller than one patch"),
        (0, lambda p: save(p, np.zeros((64, 64), np.uint16)), "Is it meant for another modality"),
        (1, lambda p: noise(p, 64, 64, 3), "8- or 16-bit greyscale"),
        (2, lambda p: noise(p, 64, 64, 3), "holds class ids"),
        (2, lambda p: save(p, np.full((64, 64), 77, np.uint8)), "ids are 0..40"),
        (1, lambda p: save(p, np.zeros((64, 64), np.uint8), format="JPEG"), "values of 16 bits"),
        (0, lambda p: save(p, np.zeros((64, 64, 3), np.uint8), format="GIF"), "Use avif, bmp"),
    ],
)
def test_bad_uploads_get_one_friendly_sentence(
    session: Session, tmp_path: Path, row: int, make: Callable[[Path], Any], expected: str
) -> None:
    path = tmp_path / "upload.png"
    make(path)
    with pytest.raises(UserError, match=expected) as caught:
        read_upload(path, session.engine.inputs[row], 16)
    message = str(caught.value)
    assert "upload.png" in message and str(tmp_path) not in message and "\n" not in message


@pytest.mark.parametrize("suffix", ["npy", "pgm", "jp2", "tif"])
def test_uploads_have_the_formats_of_the_library(
    session: Session, tmp_path: Path, suffix: str
) -> None:
    depth = np.random.default_rng(0).integers(500, 9000, (64, 80), dtype=np.uint16)
    path = tmp_path / f"a.{suffix}"
    if suffix == "npy":
        np.save(path, depth)
    elif suffix == "tif":
        tifffile.imwrite(path, depth, compression="zstd")  # which Pillow does not decode
    else:
        Image.fromarray(depth).save(path)
    pixels = read_upload(path, session.engine.inputs[1], 16)
    np.testing.assert_array_equal(np.asarray(pixels), depth)


def test_uploads_are_read_exactly(session: Session, tmp_path: Path) -> None:
    depth = np.random.default_rng(0).integers(500, 9000, (128, 128), dtype=np.uint16)
    files = {
        "rgb": noise(tmp_path / "a.png", 128, 128, 3),
        "depth": save(tmp_path / "b.png", depth),
    }
    scene = from_files(files, session.engine.spec, "mine")
    assert scene.pixels["depth"].dtype == np.uint16
    assert np.array_equal(scene.pixels["depth"], depth)
    files["depth"] = save(tmp_path / "wide.png", depth[:64])
    with pytest.raises(UserError, match="same view"):
        from_files(files, session.engine.spec, "mine")


# --- the server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int, Path]]:
    """Address, process id, and an empty folder that is home and working directory."""
    home = tmp_path_factory.mktemp("home")
    temporary = tmp_path_factory.mktemp("temporary")
    env = {**os.environ, "HOME": str(home), "TMPDIR": str(temporary), "OMP_NUM_THREADS": "1"}
    env |= {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, str(REPO / "tools/demo_app.py")]
    with subprocess.Popen(command, cwd=home, env=env, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        address = run.stdout.readline().split()[1]
        yield address, run.pid, home
        run.send_signal(2)  # Ctrl+C
        assert run.wait(30) == 0
    assert list(temporary.glob("multimae-app-*")) == []


def resident(pid: int) -> float:
    """Megabytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_many_visitors_at_once(server: tuple[str, int, Path]) -> None:
    """Three waves of 24 concurrent requests: all answered, memory flat, nothing written."""
    from gradio_client import Client

    address, pid, home = server
    clients = [Client(address, verbose=False, analytics_enabled=False) for _ in range(24)]
    answers: list[Any] = []

    def ask(client: Any, seed: int) -> None:
        answers.append(client.predict(32, 1.0, 1.0, 1.0, 1.0, seed, api_name="/draw"))

    memory = []
    for wave in range(3):
        threads = [
            threading.Thread(target=ask, args=(client, 100 * wave + i))
            for i, client in enumerate(clients)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        memory.append(resident(pid))
    assert len(answers) == 72 and all("patches visible" in str(answer) for answer in answers)
    assert memory[2] < 1.05 * memory[1], memory
    assert [p for p in home.rglob("*") if p.is_file()] == []


def test_the_page_forbids_other_hosts(server: tuple[str, int, Path]) -> None:
    import httpx

    address, *_ = server
    page = httpx.get(address)
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert httpx.get(address, headers={"host": "example.org"}).status_code == 400


def test_errors_of_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for option, value in (("--weights", "nowhere.safetensors"), ("--examples", str(tmp_path))):
        assert demo_app.main([option, value]) == 2
        printed = capsys.readouterr()
        assert printed.err.startswith("error: ") and value in printed.err and not printed.out
        assert "Traceback" not in printed.err


def test_a_png_of_everything(session: Session, scenes: list[Scene], tmp_path: Path) -> None:
    path = tmp_path / "grid.png"
    path.write_bytes(session.png(scenes[2], session.draw(scenes[2], settings()), {}))
    with Image.open(path) as image:
        assert min(image.size) > 800
