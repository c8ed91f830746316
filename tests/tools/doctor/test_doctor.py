"""The data doctor detects planted faults, names their files, and reports nothing on clean rooms."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("embreex")
pytest.importorskip("scipy")

from multimae.specs.errors import UserError
from multimae.specs.modalities import default_table, make_table
from tests.support.faults import FAULTS, change, files
from tests.support.image_folders import save, write_folder
from tests.support.scenes import write_scenes
from tools.check_dataset import main
from tools.doctor.alignment import edges
from tools.doctor.examine import Diagnosis, examine_dataset
from tools.doctor.files import file_checks
from tools.doctor.files.modality_statistics import void_id
from tools.doctor.findings import Finding
from tools.rooms.generate import Job, make_rooms

ROOT = Path(__file__).parents[3]
TABLE = list(default_table().values())
MODALITIES = ("rgb", "depth", "semseg")
NORMALS = """
modalities:
  normals: {kind: image, num_channels: 3, loss: l1, mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5],
    interpolation: nearest, hflip_negate: [0], plot: normals}
"""


@pytest.fixture(scope="session")
def rooms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("doctor") / "rooms"
    make_rooms(Job(out, train=24, val=6, size=96, seed=3), progress=False)
    return out


@pytest.fixture
def sets(rooms: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Copies of the training and the validation set, to plant faults in."""
    for split in ("train", "val"):
        for name in MODALITIES:
            shutil.copytree(rooms / split / name, tmp_path / split / name)
        shutil.copy(rooms / "classes.json", tmp_path / split)
    return tmp_path / "train", tmp_path / "val"


def examine(train: Path, val: Path | None = None, **kwargs) -> Diagnosis:
    return examine_dataset(train, TABLE, val=val, limit=None, **kwargs)


def with_path(diagnosis: Diagnosis) -> list[Finding]:
    return [f for f in diagnosis.findings if f.path]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_named_and_nothing_else_is(fault, sets):
    plant, code = FAULTS[fault]
    bad = {str(path) for path in plant(*sets)}
    found = with_path(examine(*sets))
    assert bad <= {f.path for f in found if f.code == code}
    assert {f.path for f in found} == bad
    assert all(f.severity != "info" and f.message for f in found)


def test_all_faults_at_once(sets, tmp_path):
    bad = {str(path): code for plant, code in FAULTS.values() for path in plant(*sets)}
    out = tmp_path / "report"
    assert main([str(sets[0]), "--val_path", str(sets[1]), "--full", "--out", str(out)]) == 1
    found = json.loads((out / "findings.json").read_text())
    # The fault of a file that cannot be read, or has only one value, hides others of it.
    assert {f["path"] for f in found["findings"]} >= set(bad)
    page = (out / "report.html").read_text()
    for finding in found["findings"]:
        assert finding["path"] in page
        assert finding["message"].replace("'", "&#x27;") in page
    assert 'src="data:image/png;base64,' in page
    assert "http:" not in page and "https:" not in page


def test_clean_rooms_have_no_findings(rooms):
    diagnosis = examine(rooms / "train", rooms / "val")
    assert diagnosis.findings == []
    assert all(pair.telling for pair in diagnosis.sets[0].pairs.values())


def test_the_example_rooms_are_clean():
    assert with_path(examine(ROOT / "examples/rooms")) == []


def test_workers_do_not_change_the_findings(sets, monkeypatch):
    monkeypatch.setattr("tools.doctor.examine.CHUNK", 8)
    for fault in ("flipped", "swapped pairs", "other unit"):
        FAULTS[fault][0](*sets)
    one, two = (examine(sets[0], workers=n) for n in (1, 2))
    assert one.findings == two.findings != []
    assert one.sets[0].statistics == two.sets[0].statistics


@pytest.mark.parametrize("modality", ["rgb", "semseg"])
def test_the_modality_that_two_others_contradict_is_to_blame(modality, sets):
    (bad,) = change(files(sets[0], modality)[4], lambda x: x[:, ::-1])
    (finding,) = with_path(examine(sets[0]))
    assert (finding.path, finding.code) == (str(bad), "flipped")


def test_a_shift_is_measured(sets):
    def right(x: np.ndarray) -> np.ndarray:
        return np.pad(x, ((0, 0), (12, 0)), mode="edge")[:, :96]

    (bad,) = change(files(sets[0], "depth")[4], right)
    (finding,) = with_path(examine(sets[0]))
    assert (finding.path, finding.code) == (str(bad), "shifted")
    assert "+12 % of the width and +0 % of the height" in finding.message


def test_a_set_that_is_shuffled_as_a_whole(sets):
    paths = files(sets[0], "depth")
    content = [path.read_bytes() for path in paths]
    for path, data in zip(paths, content[1:] + content[:1], strict=True):
        path.write_bytes(data)
    found = [f for f in examine(sets[0]).findings if f.code == "swapped"]
    assert len(found) >= len(paths) - 2


def test_a_leak_that_was_encoded_again(sets):
    target = files(sets[1], "rgb")[1]
    with Image.open(files(sets[0], "rgb")[0]) as image:
        image.save(target, quality=60)
    leaks = [f for f in examine(*sets).findings if f.code == "leak"]
    assert [f.path for f in leaks] == [str(target)]


def test_a_depth_map_of_another_sample_copied_over(sets):
    first, second = files(sets[0], "depth")[:2]
    shutil.copyfile(first, second)
    assert "duplicate" in {f.code for f in with_path(examine(sets[0])) if f.path == str(second)}


def test_other_faults_by_code(sets):
    train = sets[0]
    rgb, depth, semseg = (files(train, name) for name in MODALITIES)
    change(rgb[0], lambda x: x // 40)
    shutil.copyfile(semseg[1], semseg[1].with_suffix(".jpg"))
    with Image.open(semseg[5]) as image:
        image.save(semseg[5].with_suffix(".jpg"))
    semseg[5].unlink()
    with Image.open(rgb[2]) as image:
        image.crop((0, 0, 96, 60)).save(rgb[2])
    depth[3].write_bytes(b"no picture")
    save(depth[4], np.zeros((96, 96, 3), np.uint8))
    save(depth[6], np.eye(96, dtype=np.uint16) * 65535)
    (train / "rgb/bathroom/deeper").mkdir()
    (train / "rgb/notes.txt").write_text("hello")
    (train / "classes.json").write_text("{")
    found = {(f.code, f.path) for f in examine(train).findings}
    assert {
        ("near-black", str(rgb[0])),
        ("two-files", str(semseg[1])),
        ("lossy", str(semseg[5].with_suffix(".jpg"))),
        ("no-valid-values", str(depth[6])),
        ("aspect", str(rgb[2])),
        ("unreadable", str(depth[3])),
        ("colour-mode", str(depth[4])),
        ("empty-folder", str(train / "rgb/bathroom/deeper")),
        ("classes-file", str(train / "classes.json")),
        ("other-files", ""),
    } <= found


@pytest.mark.parametrize(
    ("names", "void"),
    [
        (["Void ", "a"], 0), (["other", "a"], 0), (["a", "other"], None), (["a", "unlabeled"], 1),
        (["a", "No data"], 1), (["", "b"], 0), (["a", ""], None), (["a", "b"], None),
    ],
)  # fmt: skip
def test_which_name_means_no_label(names, void):
    assert void_id(names) == void


def test_two_classes_of_one_name_are_found(rooms, tmp_path):
    root = shutil.copytree(rooms / "val", tmp_path / "val")
    content = json.loads((root / "classes.json").read_text())
    content["classes"][3] = content["classes"][2]
    (root / "classes.json").write_text(json.dumps(content))
    (found,) = (f for f in examine(root).findings if f.code == "classes-file")
    assert content["classes"][2] in found.message


def test_statistics_are_those_of_numpy(rooms):
    statistics = examine(rooms / "val").sets[0].statistics
    pixels = {
        name: np.stack([np.asarray(Image.open(p)) for p in files(rooms / "val", name)])
        for name in MODALITIES
    }
    rgb = statistics["rgb"]
    assert rgb["mean"] == pytest.approx(pixels["rgb"].mean(axis=(0, 1, 2)) / 255, rel=1e-12)
    assert rgb["std"] == pytest.approx(pixels["rgb"].std(axis=(0, 1, 2)) / 255, rel=1e-9)
    assert statistics["depth"]["mean"] == pytest.approx([pixels["depth"].mean() / 65535], rel=1e-12)
    assert statistics["depth"]["std_stored"] == pytest.approx([pixels["depth"].std()], rel=1e-9)
    assert (
        statistics["depth"]["valid"]["p50"]
        == np.sort(pixels["depth"].ravel())[(pixels["depth"].size - 1) // 2]
    )
    assert "millimetres" in statistics["depth"]["unit"]
    counts = np.bincount(pixels["semseg"].ravel(), minlength=133)
    assert statistics["semseg"]["pixels"] == counts.tolist()
    assert statistics["semseg"]["void_share"] == counts[0] / counts.sum()


def test_class_weights_by_hand(tmp_path):
    save(tmp_path / "semseg/a.png", np.repeat([[1] * 40], 40, 0).astype(np.uint8))
    save(tmp_path / "semseg/b.png", np.repeat([[1] * 30 + [2] * 10], 40, 0).astype(np.uint8))
    weights = examine(tmp_path).sets[0].statistics["semseg"]["weights"]
    frequency = {1: 2800 / 3200, 2: 400 / 1600}
    median = sum(frequency.values()) / 2
    assert weights["median_frequency"][1:3] == [median / f for f in frequency.values()]
    assert weights["inverse_log"][1:3] == [1 / np.log(1.02 + s) for s in (2800 / 3200, 400 / 3200)]
    assert sum(w > 0 for w in weights["median_frequency"]) == 2


def test_a_modality_from_yaml(rooms, tmp_path):
    train = tmp_path / "train"
    for name in (*MODALITIES, "normals"):
        shutil.copytree(rooms / "train" / name, train / name)
    (bad,) = change(files(train, "normals")[5], lambda x: x[::-1])
    config = tmp_path / "mine.yaml"
    config.write_text(NORMALS + "lr: 3\n")
    out = tmp_path / "out"
    arguments = [str(train), "--config", str(config), "--out", str(out), "--full"]
    assert main([*arguments, "--modalities", "rgb-depth-normals"]) == 1
    found = json.loads((out / "findings.json").read_text())["findings"]
    assert [(f["path"], f["code"], f["modality"]) for f in found] == [
        (str(bad), "flipped", "normals")
    ]
    statistics = json.loads((out / "statistics.json").read_text())[str(train)]
    assert list(statistics["modalities"]) == ["rgb", "depth", "normals"]


def test_masks_may_be_plain(rooms):
    table = make_table({"mask_valid": {"num_channels": 1, "plot": "scalar", "loss": "l1"}})
    diagnosis = examine_dataset(rooms / "train", list(table.values()), limit=None)
    assert with_path(diagnosis) == []
    assert "mask_valid" in diagnosis.sets[0].statistics


def test_the_manifest_has_every_file(rooms, tmp_path):
    assert main([str(rooms / "val"), "--out", str(tmp_path), "--modalities", "rgb-depth"]) == 0
    manifest = json.loads((tmp_path / "manifest.json").read_text())[str(rooms / "val")]
    assert manifest["samples"] == 6
    assert manifest["counts"]["rgb"]["files"] == 6
    on_disk = {
        str(p.relative_to(rooms / "val")): p
        for n in ("rgb", "depth")
        for p in files(rooms / "val", n)
    }
    assert manifest["files"].keys() == on_disk.keys()
    for name, path in on_disk.items():
        assert manifest["files"][name]["size"] == path.stat().st_size
        assert len(manifest["files"][name]["blake2b"]) == 32


def test_samples_are_spread_evenly_and_names_compared_for_all(sets, monkeypatch):
    files(sets[0], "depth")[3].unlink()
    diagnosis = examine_dataset(sets[0], TABLE, limit=6)
    keys = diagnosis.sets[0].listing.keys()
    assert diagnosis.sets[0].checked == keys[::4]
    assert [f.code for f in with_path(diagnosis)] == ["missing-file"]


def test_unrelated_modalities_are_said_to_tell_nothing(tmp_path):
    diagnosis = examine(write_folder(tmp_path))
    assert with_path(diagnosis) == []
    assert not any(pair.telling for pair in diagnosis.sets[0].pairs.values())


def test_tiny_scenes_have_no_errors(tmp_path):
    assert [
        f for f in with_path(examine(write_scenes(tmp_path, 20))) if f.severity == "error"
    ] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere is not a folder"),
        ([".", "--modalities", "rgb-dpeth"], "did you mean depth"),
        ([".", "--config", "none.yaml"], "--config none.yaml"),
        (["rgb"], "has no folder of a known modality"),
        (["rgb", "--val_path", "gone", "--modalities", "rgb"], "gone is not a folder"),
    ],
)
def test_what_the_user_got_wrong_is_said(arguments, message, tmp_path, monkeypatch):
    (tmp_path / "rgb").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        main(arguments)
    assert caught.value.exit_code == 2


def test_an_empty_set_is_reported_not_a_crash(tmp_path):
    (tmp_path / "rgb").mkdir()
    out = tmp_path / "out"
    assert main([str(tmp_path), "--modalities", "rgb-depth", "--out", str(out)]) == 1
    found = json.loads((out / "findings.json").read_text())["findings"]
    assert {f["code"] for f in found} == {"no-images", "missing-folder"}


def test_features_of_a_turned_picture_are_the_turned_features():
    x = np.random.default_rng(0).normal(size=(2, 3, 16, 16)).astype(np.float32)
    for row in (TABLE[0], default_table()["depth"]):
        picture = x[:, : row.num_channels]
        plain = edges.edge_features(picture, row)
        for turn in edges.TURNS.values():
            swap, mirror_x, mirror_y = turn
            moved = picture.swapaxes(2, 3) if swap else picture
            moved = moved[..., :: -1 if mirror_y else 1, :: -1 if mirror_x else 1]
            again = edges.edge_features(np.ascontiguousarray(moved), row)
            np.testing.assert_allclose(edges.turn_features(plain, turn), again, atol=1e-5)


def resized() -> Iterator[tuple[np.ndarray, bool]]:
    ids = np.kron(np.random.default_rng(1).integers(0, 40, (8, 8)), np.ones((12, 12))).astype(
        np.uint8
    )
    image = Image.fromarray(ids)
    yield ids, False
    yield np.random.default_rng(2).integers(0, 40, (96, 96)).astype(np.uint8), False
    for side in (60, 96 * 2, 110):
        yield np.asarray(image.resize((side, side), Image.Resampling.NEAREST)), False
        yield np.asarray(image.resize((side, side), Image.Resampling.BILINEAR)), True


def test_interpolated_ids_are_told_from_others():
    for ids, blended in resized():
        assert (file_checks.blended_share(ids) > 0.15) == blended


def test_rows_that_files_cannot_hold_are_refused(tmp_path):
    (tmp_path / "flow").mkdir()
    row = make_table({"flow": {"num_channels": 2, "max_value": 1e6}})["flow"]
    with pytest.raises(UserError, match="do not fit 16 bits"):
        examine_dataset(tmp_path, [row])
