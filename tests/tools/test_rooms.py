"""The rooms data set: geometry, labels, files, determinism, resuming."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
import zipfile
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1].parent
sys.path.insert(0, str(ROOT))
pytest.importorskip("embreex")
pytest.importorskip("scipy")

from tools.common.png import encode_png  # noqa: E402
from tools.rooms import (  # noqa: E402
    NYU40_CLASSES,
    ROOM_TYPES,
    RoomSample,
    Sh3fError,
    TracerMissingError,
    load_library,
    render_room,
)
from tools.rooms.generate import Job, make_rooms  # noqa: E402
from tools.rooms.rendering import tracer as tracer_module  # noqa: E402
from tools.rooms.sample_files import SettingsError, sample_paths  # noqa: E402

SIZE = 64


@lru_cache(maxsize=64)
def room(index: int, split: str = "train", seed: int = 0) -> RoomSample:
    return render_room(seed, split, index, SIZE)


def digests(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def tool():
    spec = importlib.util.spec_from_file_location("make_rooms", ROOT / "tools" / "make_rooms.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_archive(path: Path, name: str = "Wardrobe", category: str = "Bedroom") -> None:
    """Write an archive of three coloured cubes and a piece in a format that is not read."""
    corners = [(x, y, z) for x in (0, 1) for y in (0, 1) for z in (0, 1)]
    quads = ["1 2 4 3", "5 7 8 6", "1 5 6 2", "3 4 8 7", "1 3 7 5", "2 6 8 4"]
    obj = "mtllib cube.mtl\nusemtl red\n"
    obj += "".join(f"v {x} {y} {z}\n" for x, y, z in corners)
    obj += "vt 0 0\nvt 1 0\nvt 1 1\n" + "".join(f"f {q}\n" for q in quads)
    lines = []
    for i in (1, 2, 3):
        lines += [f"name#{i}={name}", f"category#{i}={category}", f"model#{i}=/m{i}/cube.obj"]
        lines += [f"width#{i}=120", f"depth#{i}=50.5", f"height#{i}=200"]
    lines += ["name#4=Bed", "category#4=Bedroom", "model#4=/m4/bed.dae", "width#4=160"]
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("PluginFurnitureCatalog.properties", "\n".join(lines))
        for i in (1, 2, 3):
            archive.writestr(f"m{i}/cube.obj", obj)
            archive.writestr(f"m{i}/cube.mtl", "newmtl red\nKd 0.9 0.05 0.05\nd 1\n")
        archive.writestr("m4/bed.dae", "<COLLADA/>")


def test_classes_are_void_and_nyu40() -> None:
    assert len(NYU40_CLASSES) == 41 and NYU40_CLASSES[0] == "void"
    assert NYU40_CLASSES[1] == "wall" and NYU40_CLASSES[33] == "toilet"
    assert NYU40_CLASSES[40] == "otherprop" and len(set(NYU40_CLASSES)) == 41


@pytest.mark.parametrize("index", range(14))
def test_sample_is_sound(index: int) -> None:
    s = room(index)
    assert s.rgb.shape == (SIZE, SIZE, 3) and s.rgb.dtype == np.uint8
    assert s.depth_mm.dtype == np.uint16 and s.semseg.dtype == np.uint8
    assert s.depth_mm.min() >= 200 and s.depth_mm.max() <= 15000
    assert s.semseg.min() >= 1 and s.semseg.max() <= 40
    assert len(np.unique(s.semseg)) >= 4
    # Only windows lack a valid depth.
    assert set(np.unique(s.mask_valid)) <= {0, 255} and (s.mask_valid == 255).mean() > 0.7
    assert set(np.unique(s.semseg[s.mask_valid == 0])) <= {NYU40_CLASSES.index("window")}
    assert 60 <= s.rgb.mean() <= 195
    assert (s.rgb.max(-1) < 12).mean() < 0.2 and (s.rgb.min(-1) > 250).mean() < 0.2
    assert s.rgb.astype(float).std() > 12


@pytest.mark.parametrize("index", range(7))
def test_normals_are_unit_and_face_the_camera(index: int) -> None:
    s = room(index)
    n = s.normals.astype(np.float64) / 127.5 - 1
    assert np.abs(np.linalg.norm(n, axis=-1) - 1).max() < 0.02
    c = ((np.arange(SIZE) + 0.5) / SIZE - 0.5) / s.focal
    toward = np.stack(np.broadcast_arrays(-c[None], c[:, None], 1.0), -1)
    assert ((n * toward).sum(-1) > -0.03).all()
    # A floor seen by a camera without roll faces up.
    floor = n[s.semseg == NYU40_CLASSES.index("floor")]
    if len(floor):
        assert np.median(floor[:, 1]) > 0.8 and abs(np.median(floor[:, 0])) < 0.05


def test_depth_is_planar_and_agrees_with_normals() -> None:
    s = room(2)
    z = s.depth_mm.astype(np.float64) / 1000
    c = ((np.arange(SIZE) + 0.5) / SIZE - 0.5) / s.focal
    euclid = s.depth_euclidean_mm() / 1000
    assert np.allclose(euclid, z * np.sqrt(1 + c[None] ** 2 + c[:, None] ** 2), rtol=1e-5)
    assert (euclid >= z - 1e-6).all()
    points = np.stack([c[None] * z, -c[:, None] * z, -z], -1)
    normal = s.normals.astype(np.float64) / 127.5 - 1
    step = np.abs(((points[:, 1:] - points[:, :-1]) * normal[:, 1:]).sum(-1))
    same = s.semseg[:, 1:] == s.semseg[:, :-1]
    # Most neighbouring points lie in the plane given by the normal.
    assert np.median(step[same]) < 0.004


def test_room_types_all_occur_and_show_their_furniture() -> None:
    assert len(ROOM_TYPES) >= 5
    assert {room(i).room_type for i in range(len(ROOM_TYPES))} == set(ROOM_TYPES)
    wanted = {"bedroom": {"bed"}, "office": {"desk"}, "library": {"bookshelf", "books"}}
    for i in range(14):
        s = room(i)
        if s.room_type in wanted:
            seen = {NYU40_CLASSES[k] for k in np.unique(s.semseg)}
            assert wanted[s.room_type] & seen


def test_samples_differ_and_repeat() -> None:
    assert (render_room(0, "train", 3, SIZE).rgb == room(3).rgb).all()
    others = [room(i) for i in (0, 7, 14)] + [room(0, "val"), room(0, seed=1)]
    for i, a in enumerate(others):
        for b in others[:i]:
            assert (a.depth_mm != b.depth_mm).mean() > 0.5
    with pytest.raises(ValueError, match="split"):
        render_room(0, "test", 0, SIZE)


def test_flat_surfaces_carry_no_grain() -> None:
    ceiling = NYU40_CLASSES.index("ceiling")
    worst = []
    for i in range(14):
        s = render_room(0, "train", i, 96) if i < 4 else room(i)
        grey = s.rgb.astype(np.float64).mean(-1)
        same = s.semseg == ceiling
        core = (
            same[1:-1, 1:-1] & same[:-2, 1:-1] & same[2:, 1:-1] & same[1:-1, :-2] & same[1:-1, 2:]
        )
        around = (grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]) / 4
        if core.sum() > 60:
            worst.append(np.median(np.abs(grey[1:-1, 1:-1] - around)[core]))
    assert worst and max(worst) < 1.0


def test_files_do_not_depend_on_workers_and_resume(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    assert make_rooms(Job(one, 5, 2, SIZE), progress=False) == 7
    assert make_rooms(Job(two, 5, 2, SIZE, workers=2), progress=False) == 7
    before = digests(one)
    assert before == digests(two)
    assert len(before) == 7 * 5 + 4
    # Complete: only missing files are rendered again, and temporary files are removed.
    assert make_rooms(Job(one, 5, 2, SIZE), progress=False) == 0
    victim = sample_paths(one, "multimae", "train", 3)["depth"]
    victim.unlink()
    (one / ".tmp").mkdir()
    (one / ".tmp" / ".multimae-staging").touch()
    (one / ".tmp" / "1-depth-000003.png").write_bytes(b"\x89PNG half")
    assert make_rooms(Job(one, 5, 2, SIZE), progress=False) == 1
    assert digests(one) == before
    # More samples may be added later without touching those that are there.
    assert make_rooms(Job(one, 6, 2, SIZE), progress=False) == 1
    assert before.items() <= digests(one).items()


def test_multimae_files(tmp_path: Path) -> None:
    make_rooms(Job(tmp_path, 3, 1, SIZE), progress=False)
    classes = json.loads((tmp_path / "classes.json").read_text())["classes"]
    assert classes == list(NYU40_CLASSES)
    for split, count in (("train", 3), ("val", 1)):
        assert json.loads((tmp_path / split / "classes.json").read_text())["classes"] == classes
        names = {
            m: sorted(
                p.relative_to(tmp_path / split / m).with_suffix("")
                for p in (tmp_path / split / m).rglob("*.*")
            )
            for m in ("rgb", "depth", "semseg", "normals", "mask_valid")
        }
        assert len(names["rgb"]) == count and all(v == names["rgb"] for v in names.values())
    s = room(1)
    files = sample_paths(tmp_path, "multimae", "train", 1)
    assert files["rgb"].parent.name == s.room_type
    assert (np.asarray(Image.open(files["depth"])) == s.depth_mm).all()
    assert Image.open(files["depth"]).mode in ("I;16", "I")
    assert Image.open(files["semseg"]).mode == "L"
    for key in ("semseg", "normals", "mask_valid"):
        assert (np.asarray(Image.open(files[key])) == getattr(s, key)).all()
    assert np.abs(np.asarray(Image.open(files["rgb"])).astype(float) - s.rgb).mean() < 4


def test_taskonomy_files(tmp_path: Path) -> None:
    make_rooms(Job(tmp_path, 3, 2, SIZE, layout="taskonomy"), progress=False)
    splits = json.loads((tmp_path / "splits.json").read_text())
    assert splits["train"] and splits["val"] and not set(splits["train"]) & set(splits["val"])
    tasks = "rgb depth_zbuffer depth_euclidean normal reshading edge_texture edge_occlusion"
    images = {}
    for task in tasks.split():
        for split, count in (("train", 3), ("val", 2)):
            for p in range(count):
                name = f"point_{p}_view_0_domain_{task}.png"
                image = np.asarray(Image.open(tmp_path / task / splits[split][0] / name))
                images[task, split, p] = image
                assert image.shape[:2] == (SIZE, SIZE)
    s, bad = room(2), room(2).mask_valid == 0
    z = images["depth_zbuffer", "train", 2].astype(np.int64)
    far = images["depth_euclidean", "train", 2].astype(np.int64)
    assert (z[bad] == 65535).all() and (far[bad] == 65535).all()
    assert np.abs(z[~bad] / 512 - s.depth_mm[~bad] / 1000).max() < 0.003
    assert (far[~bad] >= z[~bad]).all()
    for task in ("edge_texture", "edge_occlusion"):
        edge = images[task, "train", 2].astype(np.int64)
        assert edge.ndim == 2 and edge.max() > 5000 and np.median(edge) < 20000
    assert images["reshading", "train", 2].dtype == np.uint8
    assert 60 < images["reshading", "train", 2].mean() < 250


def test_other_settings_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_rooms(Job(tmp_path, 1, 0, SIZE), progress=False)
    with pytest.raises(SettingsError, match="seed"):
        make_rooms(Job(tmp_path, 1, 0, SIZE, seed=5), progress=False)
    base = f"--out {tmp_path} --train 1 --val 0".split()
    assert tool().main([*base, "--size", "32"]) == 2
    assert "size is 64" in capsys.readouterr().err
    assert tool().main([*base, "--size", str(SIZE), "--layout", "taskonomy"]) == 2
    assert tool().main([*base, "--size", str(SIZE)]) == 0


def test_furniture_archive_is_used(tmp_path: Path) -> None:
    path = tmp_path / "tiny.sh3f"
    write_archive(path)
    library = load_library([path])
    assert len(library.entries["wardrobe"]) == 3
    assert library.skipped == {"format other than OBJ": 1}
    train = {e.model for e in library.pool("wardrobe", "train")}
    val = {e.model for e in library.pool("wardrobe", "val")}
    assert train and val and not train & val
    cabinet = NYU40_CLASSES.index("cabinet")
    red = 0
    for i in range(1, 43, 7):
        s = render_room(0, "train", i, 48, library)
        r, g, b = (s.rgb[..., c].astype(int) for c in range(3))
        red += int(((s.semseg == cabinet) & (r > 3 * g) & (r > 3 * b)).sum())
    assert red > 100


def test_furniture_settings_and_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, bad = tmp_path / "tiny.sh3f", tmp_path / "bad.sh3f"
    write_archive(path)
    bad.write_bytes(b"no zip")
    with pytest.raises(Sh3fError, match="bad.sh3f"):
        load_library([bad])
    out = ["--out", str(tmp_path / "out"), "--train", "1", "--val", "1", "--size", "48"]
    assert tool().main([*out, "--furniture", str(path)]) == 0
    assert tool().main(out) == 2
    assert "furniture" in capsys.readouterr().err
    other = ["--out", str(tmp_path / "other"), "--furniture", str(bad)]
    assert tool().main(other) == 2 and not (tmp_path / "other").exists()


def test_missing_ray_tracer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "embreex", None)
    monkeypatch.setitem(sys.modules, "embreex.mesh_construction", None)
    with pytest.raises(TracerMissingError, match="pip install embreex"):
        tracer_module.require_tracer()
    assert tool().main(["--out", str(tmp_path / "x"), "--train", "1"]) == 2
    err = capsys.readouterr().err.strip()
    assert "pip install embreex" in err and "\n" not in err


def test_png_round_trip(tmp_path: Path) -> None:
    wide = np.arange(64 * 48, dtype=np.uint16).reshape(64, 48) * 17
    for image in (wide, wide.astype(np.uint8), np.arange(90, dtype=np.uint8).reshape(5, 6, 3)):
        (tmp_path / "a.png").write_bytes(encode_png(image))
        assert (np.asarray(Image.open(tmp_path / "a.png")) == image).all()
    with pytest.raises(ValueError, match="float64"):
        encode_png(wide.astype(np.float64))
