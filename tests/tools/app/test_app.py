"""The demo page without a browser: predictions, edits, uploads, many visitors, no traces."""

from __future__ import annotations

import base64
import http.client
import io
import json
import os
import re
import signal
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
import torch
from PIL import Image

from multimae.specs.errors import UserError
from multimae.specs.modalities import Modality
from tests.support.image_folders import save
from tests.utils.data.test_data_files import bomb, truncate
from tools import demo_app
from tools.app.api import Api
from tools.app.engine import Prediction
from tools.app.feature_panels import component_colours
from tools.app.fill_in import PredictionPair, panel
from tools.app.page_pictures import Sender
from tools.app.strokes import from_bits, parse_edits, to_bits
from tools.app.uploads import MAX_BYTES, read_upload

REPO = Path(__file__).parents[3]
NAMES = ("rgb", "depth", "semseg")
KITCHEN, OFFICE = "kitchen/000038", "office/000034"


@pytest.fixture(scope="module")
def api() -> Api:
    return demo_app.load(demo_app.parse([]))


def fill(api: Api, scene: str = KITCHEN, **body: Any) -> dict[str, Any]:
    return api.fill({"scene": scene, **body})


def only(name: str) -> dict[str, str]:
    return {other: ("1" if other == name else "0") * 64 for other in NAMES}


def decode(reference: dict[str, str]) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(reference["data"].partition(",")[2])))


def test_settings_draw_patches(api: Api) -> None:
    drawn = fill(api, tokens=40)
    assert drawn["count"] == 40 == sum(bits.count("1") for bits in drawn["visible"].values())
    assert f"40 of {drawn['total']} patches visible" in drawn["message"]
    assert fill(api, tokens=40)["visible"] == drawn["visible"]
    assert fill(api, tokens=40, seed=1)["visible"] != drawn["visible"]
    counts = [
        fill(api, seed=seed, shares={"depth": 0.0})["visible"]["depth"].count("1")
        for seed in range(5)
    ]
    assert max(counts) <= 3


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"seed": -1}, "seed must be an integer from 0"),
        ({"seed": 1.5}, "seed must be"),
        ({"seed": True}, "seed must be"),
        ({"tokens": 0}, "number must be an integer from 1 to 192"),
        ({"concentration": float("nan")}, "concentration must be a number"),
        ({"shares": dict.fromkeys(NAMES, 0)}, "above 0"),
        ({"shares": 3}, "shares must map"),
        ({"scene": "nowhere"}, "no image “nowhere”"),
        ({"scene": "upload:0123"}, "no longer on the server"),
        ({"scene": "room:-1"}, "numbered from 0"),
        ({"visible": {"rgb": "01"}}, "must be 64 characters"),
        ({"visible": only("rgb"), "edits": {"rgb": {"64": "#000000"}}}, "no patch 64"),
        ({"visible": only("rgb"), "edits": {"semseg": {"0": 99}}}, "class id in 0..40"),
    ],
)
def test_malformed_requests_get_a_sentence(api: Api, body: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        fill(api, **body)


def test_rows_have_pictures_scores_and_units(api: Api) -> None:
    rows = fill(api, visible=only("depth"))["rows"]
    assert set(rows) == set(NAMES)
    assert rows["depth"]["score"] == "all patches visible"
    assert "/255" in rows["rgb"]["score"] and "% of hidden pixels right" in rows["semseg"]["score"]
    assert [bar["title"] for bar in rows["depth"]["scales"]] == ["depth", "error"]
    assert all(bar["high"].endswith(" m") for bar in rows["depth"]["scales"])
    assert "wall" in [chip["name"] for chip in rows["semseg"]["legend"]]
    for row in rows.values():
        assert set(row["pictures"]) == {"prediction", "truth", "error"}
        assert decode(row["pictures"]["prediction"]).size == (128, 128)
    assert "norm_rgb" in fill(api, further=True)["rows"]


def test_pixels_without_a_value_are_not_scored() -> None:
    labels = Modality(
        "lc", "labels", num_classes=3, loss="cross_entropy", interpolation="nearest", no_data=9
    )
    height = Modality("z", num_channels=1, interpolation="nearest", plot="scalar", no_data=0)
    ids, values = torch.zeros(8, 8).long(), torch.zeros(1, 8, 8)
    ids[:4], values[:, :4] = 3, torch.nan  # no value
    ids[6:] = 1
    now = Prediction(
        {"lc": torch.stack([torch.full((8, 8), c) for c in (1.0, 0.0, 0.0)]), "z": values + 0.1},
        {"lc": ids, "z": values},
        {"lc": ids[None], "z": torch.zeros(1, 1, 8, 8)},
        {"lc": np.zeros((2, 2), bool), "z": np.zeros((2, 2), bool)},
        0.0,
    )
    now.outputs["z"][:] = 0.1
    row = panel(PredictionPair(now, None), labels, 4, Sender())
    assert row["score"].startswith("50 %") and len(row["legend"]) == 2
    error = np.asarray(decode(row["pictures"]["error"]))
    assert error[:4].max() < error[6:].max()
    row = panel(PredictionPair(now, None), height, 4, Sender())
    assert row["score"].endswith(" 26/255")  # 0.1 of 255


def test_nothing_visible_leaves_no_prediction(api: Api) -> None:
    answer = fill(api, visible=dict.fromkeys(NAMES, "0" * 64))
    assert "No patch is visible" in answer["error"] and answer["count"] == 0
    assert all(set(row["pictures"]) == {"truth"} for row in answer["rows"].values())
    with pytest.raises(UserError, match="No patch is visible"):
        api.png({"scene": KITCHEN, "visible": dict.fromkeys(NAMES, "0" * 64)})


def test_an_edit_of_one_modality_changes_the_others(api: Api) -> None:
    labels = api.decoders.inputs[2] if api.decoders else None
    assert labels is not None
    window = labels.class_names.index("window")
    plain = fill(api, visible=only("semseg"))["rows"]
    edits = {"semseg": {"27": window, "28": window}}
    edited = fill(api, visible=only("semseg"), edits=edits)
    assert edited["edits"] == edits
    for name in ("rgb", "depth"):
        pictures = edited["rows"][name]["pictures"]
        assert set(pictures) == {"prediction", "before", "reaction"}
        assert pictures["before"]["id"] == plain[name]["pictures"]["prediction"]["id"]
        assert pictures["prediction"]["id"] != pictures["before"]["id"]
        assert edited["rows"][name]["scales"][-1]["title"] == "reaction"
    shifted = fill(api, visible=only("depth"), edits={"depth": {"27": -0.5}})["rows"]["semseg"]
    assert shifted["pictures"]["prediction"]["id"] != shifted["pictures"]["before"]["id"]
    with pytest.raises(UserError):
        parse_edits({"x": 1}, labels, (8, 8))


def test_only_new_pictures_are_sent(api: Api) -> None:
    first = fill(api)
    pictures = [p for row in first["rows"].values() for p in row["pictures"].values()]
    have = [p["id"] for p in [*pictures, *first["inputs"].values()]]
    again = json.dumps(fill(api, have=have))
    assert '"data"' not in again and len(again) < 6_000 < len(json.dumps(first)) < 60_000
    picture = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    exact = decode(Sender()(picture, exact=True))
    assert exact.format == "WEBP" and np.array_equal(np.asarray(exact), picture)


def test_painters_bits() -> None:
    mask = np.random.default_rng(0).random((8, 8)) < 0.4
    assert np.array_equal(from_bits(to_bits(mask), (8, 8), "rgb"), mask)
    with pytest.raises(UserError):
        from_bits("01", (8, 8), "rgb")


def test_a_prediction_takes_less_than_a_second(api: Api) -> None:
    start = time.perf_counter()
    fill(api, OFFICE)
    assert time.perf_counter() - start < 1


def test_predictions_of_a_fine_tuned_model(api: Api) -> None:
    answer = api.predict({"scene": KITCHEN})
    (row,) = answer["rows"]
    assert row["name"] == "semseg"
    assert set(row["pictures"]) == {"image", "overlay", "confidence"}
    shares = [float(chip["name"].split()[-2]) for chip in row["legend"]]
    assert shares == sorted(shares, reverse=True) and 95 < sum(shares) <= 100.5
    assert [bar["share"] for bar in row["bars"]] == sorted(
        (bar["share"] for bar in row["bars"]), reverse=True
    )
    elsewhere = api.predict({"scene": KITCHEN, "point": [0.99, 0.01]})["rows"][0]
    assert elsewhere["bars"] != row["bars"] and elsewhere["legend"] == row["legend"]
    assert api.heads is not None
    pixels: Any = api.scenes.get(KITCHEN).pixels["rgb"]
    outcome: Any = api.heads.model.predict(pixels)["semseg"]
    middle = outcome.ids[tuple(side // 2 for side in outcome.ids.shape)]
    assert row["bars"][0]["name"] == outcome.names[middle]


def test_features_of_the_encoder(api: Api) -> None:
    answer = api.features({"scene": KITCHEN, "block": 12, "query": ["depth", 2, 5]})
    assert answer["query"] == ["depth", 2, 5] and set(answer["rows"]) == set(NAMES)
    assert answer["rows"]["depth"]["grid"] == [8, 8]
    total = sum(float(row["score"].split()[0]) for row in answer["rows"].values())
    assert 90 <= total <= 101
    other = api.features({"scene": KITCHEN, "block": 12, "query": ["rgb", 2, 5]})["rows"]["rgb"]
    before = answer["rows"]["rgb"]["pictures"]
    assert other["pictures"]["attention"]["id"] != before["attention"]["id"]
    assert other["pictures"]["components"]["id"] == before["components"]["id"]
    for bad in ({"block": 13}, {"block": 12, "query": ["rgb", 9, 0]}):
        with pytest.raises(UserError):
            api.features({"scene": KITCHEN, **bad})


def test_components_separate_what_differs() -> None:
    tokens = np.zeros((2, 4, 6))
    tokens[:, :2, 0], tokens[:, 2:, 0] = 1.0, -1.0
    tokens += 1e-3 * np.random.default_rng(0).random(tokens.shape)
    red = component_colours({"rgb": tokens})["rgb"][..., 0].astype(int)
    assert abs(red[:, :2].mean() - red[:, 2:].mean()) > 200


def test_a_model_without_decoders_predicts(tmp_path: Path) -> None:
    weights = str(REPO / "weights" / demo_app.WEIGHTS[1])
    alone = demo_app.load(demo_app.parse(["--weights", weights]))
    assert alone.config()["inputs"] == [] and alone.config()["heads"] == ["semseg"]
    assert alone.predict({"scene": KITCHEN})["rows"]
    with pytest.raises(UserError, match="no decoders"):
        fill(alone)
    assert set(alone.features({"scene": KITCHEN, "block": 1})["rows"]) == {"rgb"}
    weights = str(REPO / "weights" / demo_app.WEIGHTS[0])
    with pytest.raises(UserError, match="no head"):
        demo_app.load(demo_app.parse(["--weights", weights])).predict({"scene": KITCHEN})


# --- uploads


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
    api: Api, tmp_path: Path, row: int, make: Callable[[Path], Any], expected: str
) -> None:
    path = tmp_path / "upload.png"
    make(path)
    with pytest.raises(UserError, match=expected) as caught:
        api.upload(path, NAMES[row], "")
    message = str(caught.value)
    assert "upload.png" in message and str(tmp_path) not in message and "\n" not in message


@pytest.mark.parametrize("suffix", ["npy", "pgm", "jp2", "tif"])
def test_uploads_have_the_formats_of_the_library(api: Api, tmp_path: Path, suffix: str) -> None:
    depth = np.random.default_rng(0).integers(500, 9000, (64, 80), dtype=np.uint16)
    path = tmp_path / f"a.{suffix}"
    if suffix == "npy":
        np.save(path, depth)
    elif suffix == "tif":
        tifffile.imwrite(path, depth, compression="zstd")  # which Pillow does not decode
    else:
        Image.fromarray(depth).save(path)
    pixels = read_upload(path, api.scenes.inputs[1], 16)
    np.testing.assert_array_equal(np.asarray(pixels), depth)


def test_uploads_are_read_exactly_and_their_crop_is_told(api: Api, tmp_path: Path) -> None:
    depth = np.random.default_rng(0).integers(500, 9000, (128, 160), dtype=np.uint16)
    photo = api.upload(noise(tmp_path / "a.png", 128, 160, 3), "rgb", KITCHEN)["scene"]
    scene = api.upload(save(tmp_path / "b.png", depth), "depth", photo)["scene"]
    view = api.scenes.get(scene).views["depth"]
    assert view.dtype == np.uint16 and np.array_equal(view, depth[:, 16:144])
    answer = fill(api, scene)
    assert answer["files"] == {"rgb": "a.png", "depth": "b.png"}
    crop = answer["crops"][1]
    assert crop["size"] == [160, 128] and crop["box"] == [16, 0, 128, 128]
    assert "/65535" in answer["rows"]["depth"]["scales"][0]["high"]  # metres are not known
    assert set(answer["rows"]["semseg"]["pictures"]) == {"prediction"}  # no truth
    with pytest.raises(UserError, match="same view"):
        api.upload(save(tmp_path / "wide.png", depth[:64]), "depth", photo)
    assert fill(api, photo)["files"] == {"rgb": "a.png"}  # as before the rejected file


def test_scenes_are_kept_within_a_limit(
    api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = api.upload(noise(tmp_path / "a.png", 64, 64, 3), "rgb", "")["scene"]
    monkeypatch.setattr("tools.app.scenes.MAX_SCENE_BYTES", 64 * 64 * 3)
    api.upload(save(tmp_path / "b.png", np.zeros((64, 64, 3), np.uint8)), "rgb", "")
    with pytest.raises(UserError, match="no longer on the server"):
        api.scenes.get(first)


def test_large_photos_are_predicted_small(api: Api, tmp_path: Path) -> None:
    scene = api.upload(noise(tmp_path / "a.png", 1500, 3000, 3), "rgb", "")["scene"]
    assert api.scenes.get(scene).small["rgb"].shape == (512, 1024, 3)  # type: ignore[union-attr]
    answer = api.predict({"scene": scene})
    assert decode(answer["rows"][0]["pictures"]["overlay"]).size == (384, 192)
    assert answer["crops"] == []
    assert fill(api, scene)["crops"][0]["box"] == [750, 0, 1500, 1500]


def test_rooms_are_rendered_by_number(api: Api) -> None:
    scene = api.scenes.get("room:17")
    assert set(scene.pixels) == set(NAMES) and scene.metric == {"depth"}
    assert fill(api, "room:17")["title"].endswith(" 17")


def test_pseudo_labels_need_a_model(api: Api) -> None:
    with pytest.raises(UserError, match="--depth_model and --seg_model"):
        api.label({"scene": KITCHEN})


# --- the server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, int, Path]]:
    """Port, process id, and an empty folder that is home and working directory."""
    home = tmp_path_factory.mktemp("home")
    temporary = tmp_path_factory.mktemp("temporary")
    env = {**os.environ, "HOME": str(home), "TMPDIR": str(temporary), "OMP_NUM_THREADS": "1"}
    env |= {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, str(REPO / "tools/demo_app.py")]
    start = time.perf_counter()
    with subprocess.Popen(command, cwd=home, env=env, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        assert demo_app.WEIGHTS[0] in run.stdout.readline()
        assert time.perf_counter() - start < 3  # a second on an idle core
        yield int(run.stdout.readline().split()[1].rpartition(":")[2]), run.pid, home
        run.send_signal(signal.SIGTERM)
        assert run.wait(30) == 128 + signal.SIGTERM
    assert list(temporary.iterdir()) == []


def request(
    port: int, method: str, path: str, body: bytes = b"", **headers: str
) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path, body, {k.replace("_", "-"): v for k, v in headers.items()})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def resident(pid: int) -> float:
    """Megabytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_many_visitors_at_once(server: tuple[int, int, Path]) -> None:
    """Three waves of 24 concurrent requests: all answered, memory flat, nothing written."""
    port, pid, home = server
    answers: list[Any] = []

    def ask(seed: int) -> None:
        body = json.dumps({"scene": KITCHEN, "seed": seed}).encode()
        answers.append(request(port, "POST", "/api/fill", body))

    memory = []
    for wave in range(3):
        threads = [threading.Thread(target=ask, args=(100 * wave + i,)) for i in range(24)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        memory.append(resident(pid))
    assert len(answers) == 72
    assert all(status == 200 and b"patches visible" in body for status, body in answers)
    assert memory[2] < 1.05 * memory[1], memory
    assert [p for p in home.rglob("*") if p.is_file()] == []


def test_the_first_visit_is_small(server: tuple[int, int, Path]) -> None:
    port, *_ = server
    page = request(port, "GET", "/")[1].decode()
    paths = ["/", *re.findall(r'(?:src|href)="(/[^"]+)"', page)]
    assert len(paths) == 6
    sizes = [len(request(port, "GET", p, accept_encoding="gzip")[1]) for p in paths]
    body = json.dumps({"scene": KITCHEN}).encode()
    sizes.append(len(request(port, "POST", "/api/fill", body, accept_encoding="gzip")[1]))
    assert sum(sizes) < 50_000, sizes


def test_uploads_through_the_server(server: tuple[int, int, Path], tmp_path: Path) -> None:
    port, *_ = server
    content = noise(tmp_path / "a.png", 64, 64, 3).read_bytes()
    query = "/api/upload?modality=rgb&name=..%2F..%2Fmine.png&onto="
    status, answer = request(port, "POST", query, content)
    assert status == 200
    body = json.dumps({"scene": json.loads(answer)["scene"]}).encode()
    status, answer = request(port, "POST", "/api/fill", body)
    assert json.loads(answer)["files"] == {"rgb": "mine.png"}
    status, answer = request(port, "POST", query, b"hello")
    assert status == 422 and "mine.png is not an image" in json.loads(answer)["error"]


def test_errors_of_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for option, value in (
        ("--weights", "nowhere.safetensors"),
        ("--examples", str(tmp_path)),
        ("--port", "70000"),
        ("--millimetres", "thermal"),
    ):
        assert demo_app.main([option, value]) == 2
        printed = capsys.readouterr()
        assert printed.err.startswith("error: ") and value in printed.err
        assert "Traceback" not in printed.err


def test_a_png_of_everything(api: Api) -> None:
    with Image.open(io.BytesIO(api.png({"scene": OFFICE}))) as image:
        assert min(image.size) > 800
