"""The README's figures are rendered by their command."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from multimae import MultiMAE
from multimae.specs.errors import UserError
from tools import make_pictures

REPO = Path(__file__).parents[3]


def test_stills_and_animation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(make_pictures, "HERO_ROOMS", ("kitchen",))
    monkeypatch.setattr(make_pictures, "HERO_VISIBLE", (8, 96))
    assert make_pictures.main(["--out", str(tmp_path)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(make_pictures.PICTURES) - 1
    with Image.open(tmp_path / "hero.webp") as hero:
        assert hero.n_frames == 2  # type: ignore[attr-defined]
    for name in ("subsets", "edit", "attention", "predict"):
        picture = np.asarray(Image.open(tmp_path / f"{name}.png"))
        assert picture.shape[1] > 600 and picture.std() > 20
    # In `edit` the predictions of the two rows differ, and nothing else of the photo does.
    edit = np.asarray(Image.open(tmp_path / "edit.png")).astype(int)
    cell = make_pictures.CELL + make_pictures.GUTTER
    top, right = 60, edit.shape[1] - 20 - cell
    predicted, photo = right - cell, right

    def difference(left: int) -> float:
        rows = [edit[y : y + 216, left : left + 216] for y in (top, top + cell)]
        return float(np.abs(rows[0] - rows[1]).mean())

    assert difference(predicted) > 1 and difference(photo) == 0


def test_photo_with_its_stereo_depth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skimage.data", None)
    with pytest.raises(UserError, match="scikit-image"):
        make_pictures.main(["--only", "photo", "--out", str(tmp_path)])
    seen = {}

    def keep(model: MultiMAE, sample: dict[str, np.ndarray], *args: object, **kw: object) -> object:
        seen.update(sample)
        return reconstruct(model, sample, *args, **kw)

    reconstruct = MultiMAE.reconstruct
    monkeypatch.setattr(MultiMAE, "reconstruct", keep)
    disparity = np.full((50, 74), 31.086, np.float32)
    disparity[:, :30] = np.inf
    image = np.zeros((50, 74, 3), np.uint8)
    fake = SimpleNamespace(stereo_motorcycle=lambda: (image, image, disparity))
    monkeypatch.setitem(sys.modules, "skimage.data", fake)
    assert make_pictures.main(["--only", "photo", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "photo.webp").is_file()
    assert seen["rgb"].shape == (50, 50, 3)
    expected = np.full((50, 50), 3088, np.uint16)  # 193.001 x 994.978 / (2 x 31.086) mm
    expected[:, :18] = 0
    np.testing.assert_array_equal(seen["depth"], expected)


def test_missing_files_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(make_pictures, "EXAMPLES", tmp_path)
    assert make_pictures.main(["--out", str(tmp_path), "--only", "subsets"]) == 2
    assert f"no example rooms in {tmp_path}" in capsys.readouterr().err


def test_every_picture_of_the_readme_is_there_and_made_by_a_command() -> None:
    pages = [(REPO / page).read_text() for page in ("README.md", "weights/README.md")]
    names = {m for page in pages for m in re.findall(r"docs/images/([\w.-]+)", page)}
    assert names and all((REPO / "docs/images" / name).is_file() for name in names)


def test_another_model_beside_the_shipped_one(tmp_path: Path) -> None:
    assert make_pictures.main(["--beside", str(make_pictures.WEIGHTS), "--out", str(tmp_path)]) == 0
    image = np.asarray(Image.open(tmp_path / "beside.png"))
    cell = make_pictures.CELL + make_pictures.GUTTER
    top = make_pictures.MARGIN + 2 * make_pictures.TITLE
    visible, this_run, shipped, truth = (image[top + i * cell :][: cell - 4] for i in range(4))
    side = make_pictures.MARGIN + int(make_pictures.font(make_pictures.TITLE).getlength("this run"))
    pictures = slice(side + 2 * make_pictures.MARGIN, image.shape[1] // 2)
    assert np.array_equal(this_run[:, pictures], shipped[:, pictures])
    assert not np.array_equal(shipped[:, pictures], truth[:, pictures])
    assert not np.array_equal(visible[:, pictures], truth[:, pictures])
