"""The doctor reads the same formats, packs and file names as training."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("scipy")

from multimae.images.folders import MultiModalFolder
from multimae.specs.modalities import Modality, make_table
from tests.support.image_folders import save, write_folder
from tools.check_dataset import main
from tools.doctor.examine import examine_dataset
from tools.doctor.files.file_listing import list_files
from tools.doctor.findings import Finding
from tools.pack.packing import PackOptions, write_packs
from tools.pack.sources import list_images

FLOATS = {"thermal": {"kind": "image", "num_channels": 1, "storage": "float", "max_value": 400}}
BANDS = {"bands": {"kind": "image", "num_channels": 6, "max_value": 65535}}
STATISTICS = {"normalization": "computed", "interpolation": "nearest", "loss": "l1"}


def table() -> list[Modality]:
    rows = {**FLOATS, **BANDS}
    return list(make_table({name: {**row, **STATISTICS} for name, row in rows.items()}).values())


@pytest.fixture
def arrays(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for i in range(4):
        for name, values in {
            "thermal": rng.uniform(250, 350, (48, 64)).astype(np.float32),
            "bands": rng.integers(0, 65536, (48, 64, 6), np.uint16),
        }.items():
            path = tmp_path / f"data/{name}/a/{i}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, values)
    return tmp_path / "data"


def test_arrays_are_read_as_training_reads_them(arrays: Path) -> None:
    found = examine_dataset(arrays, table())
    assert [f for f in found.findings if f.severity == "error"] == []
    statistics = found.sets[0].statistics
    values = np.stack([np.load(p) for p in sorted(arrays.glob("thermal/a/*"))])
    assert statistics["thermal"]["mean_stored"] == [pytest.approx(values.mean(), rel=1e-6)]
    assert statistics["thermal"]["std_stored"] == [pytest.approx(values.std(), rel=1e-5)]
    assert len(statistics["bands"]["mean"]) == 6


def test_no_data_is_not_in_the_statistics(arrays: Path) -> None:
    path = arrays / "thermal/a/0.npy"
    values = np.load(path)
    values[:10] = -99.9
    np.save(path, values)
    thermal = [dataclasses.replace(m, no_data=-99.9) for m in table() if m.name == "thermal"]
    statistics = examine_dataset(arrays, thermal).sets[0].statistics
    assert statistics["thermal"]["min"][0] >= 250


def test_wrong_arrays_are_findings(arrays: Path) -> None:
    np.save(arrays / "thermal/a/0.npy", np.full((48, 64), np.nan, np.float32))
    np.save(arrays / "bands/a/1.npy", np.zeros((48, 64, 5), np.uint16))
    (arrays / "bands/a/2.npy").write_bytes(b"\x93NUMPY")
    errors = {(f.path, f.modality) for f in examine_dataset(arrays, table()).findings
              if f.severity == "error"}  # fmt: skip
    bands = {(str(arrays / f"bands/a/{i}.npy"), "bands") for i in (1, 2)}
    assert errors == {(str(arrays / "thermal/a/0.npy"), "thermal"), *bands}


def test_a_fifo_ends_nothing(arrays: Path) -> None:
    (arrays / "thermal/a/0.npy").unlink()
    os.mkfifo(arrays / "thermal/a/0.npy")
    findings = examine_dataset(arrays, table()).findings
    assert {f.path for f in findings if f.code == "unreadable"} == {str(arrays / "thermal/a/0.npy")}


def test_the_doctor_lists_what_training_lists(arrays: Path) -> None:
    nested = arrays / "thermal/deep/er/x.png"  # a folder
    nested.mkdir(parents=True)
    shutil.copy(arrays / "thermal/a/0.npy", nested / "0.npy")
    (arrays / "thermal/deep/loop").symlink_to(arrays / "thermal")
    (arrays / "thermal/a/link").symlink_to(".")
    thermal = [m for m in table() if m.name == "thermal"]
    folder = MultiModalFolder(arrays, thermal)
    assert "deep/er/x.png/0" in [folder.name(i) for i in range(len(folder))]
    found = list_files(arrays, thermal)
    assert found.keys() == [folder.name(i) for i in range(len(folder))]


def test_a_pack_has_the_findings_of_its_folder(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "plain")
    (root / "rgb/bath/002.jpg").write_bytes(b"no image")
    out = tmp_path / "out"
    write_packs(list_images(root), root, out, PackOptions(), workers=1)
    plain, packed = (examine_dataset(r, list(make_table({}).values())) for r in (root, out))

    def facts(findings: list[Finding]) -> set[tuple[str, ...]]:
        return {
            (f.code, f.modality, f.sample, f.message) for f in findings if f.severity == "error"
        }

    assert facts(packed.findings) == facts(plain.findings) != set()
    assert packed.sets[0].statistics == plain.sets[0].statistics


def test_void_of_segmentation_is_no_error(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "plain")
    ids = np.random.default_rng(0).integers(0, 41, (40, 52), np.uint8)
    ids[:20] = 255
    save(root / "semseg/bath/000.png", ids)
    config = tmp_path / "seg.yaml"
    out = ["--modalities", "semseg", "--out", str(tmp_path / "report")]
    for text, code in (("num_classes: 41\n", 0), ("{}\n", 1), ("num_classes: 10\n", 1)):
        config.write_text(text)
        assert main([str(root), "--config", str(config), *out]) == code


def test_any_file_name_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_folder(tmp_path / "plain")
    names = [b"caf\xe9", b"two\nlines", b"<img src=x onerror=1>", b"\x1b[2J", b"n" * 251]
    for name in names:
        shutil.copy(
            root / "rgb/bath/000.jpg", os.fsencode(root / "rgb/bath") + b"/" + name + b".jpg"
        )
    report = tmp_path / "report"
    assert main([str(root), "--modalities", "rgb-depth", "--out", str(report)]) == 1
    printed = capsys.readouterr().out
    assert "\x1b" not in printed and "two\nlines" not in printed
    assert "<img src=x" not in (report / "report.html").read_text()
    found = json.loads((report / "findings.json").read_text(encoding="utf-8"))["findings"]
    samples = {os.fsencode(f["sample"]) for f in found if f["code"] == "missing-file"}
    assert samples == {b"bath/" + name for name in names}
    assert all(f["modality"] and f["data_set"] == str(root) for f in found)
    assert all(f"{f['modality']}, {root}]" in printed for f in found[:30])


def test_names_of_another_unicode_form_are_told_apart(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "plain")
    (root / "rgb/bath/000.jpg").rename(root / "rgb/bath/caf\u00e9.jpg")
    (root / "depth/bath/000.png").rename(root / "depth/bath/cafe\u0301.png")
    rows = [m for m in make_table().values() if m.name in ("rgb", "depth")]
    texts = [f.message for f in examine_dataset(root, rows).findings if f.code == "missing-file"]
    assert len(texts) == 2
    assert all("'bath/caf\\xe9'" in t and "'bath/cafe\\u0301'" in t for t in texts)
