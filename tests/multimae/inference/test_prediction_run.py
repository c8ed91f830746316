"""multimae predict: every kind of model and input, resumed, with bad files among them."""

from __future__ import annotations

import csv
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from multimae import ModelSpec, MultiMAE, MultiViT, save_model
from multimae.cli import main
from multimae.images.folders import read_class_names
from multimae.images.inputs import load_inputs
from multimae.specs.heads import HeadOptions, HeadSpec, LinearOptions
from multimae.specs.modalities import Modality, default_table
from tests.support.image_folders import save
from tests.support.scenes import write_scenes
from tests.support.servers import http_server
from tools import pack_dataset

RGB = default_table()["rgb"]
DEPTH = replace(default_table()["depth"], normalization="robust")
DENSE = HeadOptions("convnext", ("rgb",), dim=64, depth=1, preds_per_patch=4)
QUICK = ("--num_workers", "0", "--device", "cpu", "--precision", "fp32")
ODD_NAMES = ("a b.jpg", "ünï/çödé 日本.jpg", os.fsdecode(b"latin-\xe9.jpg"))


def labels(count: int, *names: str) -> Modality:
    return Modality(
        "labels", "labels", num_classes=count, class_names=names, folder="semseg",
        loss="cross_entropy", interpolation="nearest", plot="labels",
    )  # fmt: skip


def model_file(path: Path, *heads: HeadSpec, seed: int = 0, **fields: Any) -> str:
    spec = ModelSpec(
        **{
            "name": "multivit_nano", "inputs": (RGB, DEPTH), "patch_size": 8, "image_size": 32,
            "heads": heads, "resize_mode": "pad", "padding_class": True, **fields,
        }
    )  # fmt: skip
    torch.manual_seed(seed)
    kind = MultiViT if heads else MultiMAE
    model = kind.from_spec(spec)
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # predictions that differ
            if name.startswith("output_adapters") and parameter.ndim > 1:
                parameter.normal_(0, 0.3)
    save_model(model.state_dict(), spec, path)
    return str(path)


def segmenter(path: Path, *, zero_is_void: bool | None = True, **more: Any) -> str:
    target = labels(4, "box", "ball", "ground", "sky")
    head = HeadSpec("semseg", target, 4, DENSE, zero_is_void=zero_is_void)
    return model_file(path, head, **more)


def photos(root: Path, *names: str, side: int = 32) -> Path:
    for i, name in enumerate(names):
        values = np.random.default_rng(i).integers(0, 256, (side, side, 3), dtype=np.uint8)
        save(root / name, values, quality=95)
    return root


def predict(model: str, source: object, out: Path, *more: object) -> int:
    return main(["predict", model, str(source), "--out", str(out), *QUICK, *map(str, more)])


def files(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}


def test_labels_are_stored_as_the_truth_was(tmp_path: Path) -> None:
    root, out = photos(tmp_path / "photos", *ODD_NAMES), tmp_path / "out"
    model = segmenter(tmp_path / "m.safetensors")
    assert predict(model, root, out, "--confidence", "--overlay") == 0
    assert read_class_names(out) == ("void", "box", "ball", "ground", "sky")
    for name in ODD_NAMES:
        with Image.open(out / "semseg" / f"{name[:-4]}.png") as image:
            ids = np.asarray(image)
            assert image.mode == "P" and set(np.unique(ids)) <= {1, 2, 3, 4}
        expected = MultiMAE.from_pretrained(model).predict(root / name)["semseg"]
        assert np.array_equal(ids, expected.ids + 1)  # type: ignore[union-attr]
        confidence = np.asarray(Image.open(out / "semseg_confidence" / f"{name[:-4]}.png"))
        assert confidence.dtype == np.uint8 and (confidence > 255 / 4 - 1).all()
        assert Image.open(out / "semseg_overlay" / f"{name[:-4]}.jpg").width >= 32
    assert predict(model, root, tmp_path / "again", "--truth", out) == 0
    metrics = json.loads((tmp_path / "again/metrics.json").read_text())
    assert metrics["mean_iou"] == 100 and metrics["pixel_accuracy"] == 1


@pytest.mark.parametrize("label_map", [("0=1", "1=0"), ("7=0", "9=1", "default=255")])
def test_saved_maps_are_not_mapped_again(tmp_path: Path, label_map: tuple[str, ...]) -> None:
    target = replace(labels(2, "a", "b"), label_map=label_map)
    head = HeadSpec("semseg", target, 2, DENSE, zero_is_void=False)
    model = model_file(tmp_path / "m.safetensors", head)
    root = photos(tmp_path / "photos", "x.jpg", "y.jpg")
    assert predict(model, root, tmp_path / "out") == 0
    for truth in ("out", "out/semseg"):
        again = tmp_path / truth.replace("/", "-again")
        assert predict(model, root, again / "2", "--truth", tmp_path / truth) == 0
        assert json.loads((again / "2/metrics.json").read_text())["mean_iou"] == 100


@pytest.mark.parametrize(
    "count,zero_is_void,first,void,wide",
    [(4, False, 0, 255, False), (254, True, 1, 0, False), (255, False, 0, 255, False),
     (255, True, 1, 0, True), (256, False, 0, 65535, True)],
)  # fmt: skip
def test_ids_and_void(
    tmp_path: Path, count: int, zero_is_void: bool, first: int, void: int, wide: bool
) -> None:
    head = HeadSpec("semseg", labels(count), count, DENSE, zero_is_void=zero_is_void)
    model = model_file(tmp_path / "m.safetensors", head, resize_mode="crop")
    wide_photo = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    save(tmp_path / "in/x.png", wide_photo)
    assert predict(model, tmp_path / "in", tmp_path / "out") == 0
    ids = np.asarray(Image.open(tmp_path / "out/semseg/x.png"))
    expected = MultiMAE.from_pretrained(model).predict(tmp_path / "in/x.png")["semseg"]
    assert ids.dtype == (np.uint16 if wide else np.uint8)
    assert np.array_equal(ids[:, 8:40], expected.ids + first)  # type: ignore[union-attr]
    assert (ids[:, :8] == void).all() and (ids[:, 40:] == void).all()


def test_bad_files_are_named_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = photos(tmp_path / "photos", *(f"{i}.jpg" for i in range(5)))
    (root / "1.jpg").write_bytes(b"no picture")
    (root / "3.jpg").write_bytes((root / "3.jpg").read_bytes()[:200])
    (root / "notes.txt").write_text("x")
    model = segmenter(tmp_path / "m.safetensors")
    assert predict(model, root, tmp_path / "out", "--batch_size", 2) == 1
    shown = capsys.readouterr()
    assert {str(root / "1.jpg"), str(root / "3.jpg")} == {
        line.removeprefix("bad: ").partition(":")[0] for line in shown.err.splitlines()
    }
    assert "3 images" in shown.out and "2 bad" in shown.out
    assert f"{root}: 5 of 6 files used: 1 .txt ignored" in shown.out
    assert sorted(p.name for p in (tmp_path / "out/semseg").iterdir()) == [
        "0.png", "2.png", "4.png"
    ]  # fmt: skip


def test_a_run_is_resumed_and_nothing_is_predicted_twice(tmp_path: Path) -> None:
    root, out = photos(tmp_path / "photos", *(f"{i}.jpg" for i in range(4))), tmp_path / "out"
    model = segmenter(tmp_path / "m.safetensors")
    assert predict(model, root, out) == 0
    complete = files(out)
    (out / "semseg/2.png").unlink()
    (out / "semseg/1.png").write_bytes(b"kept")
    (out / "semseg/.2.png.123.tmp").write_bytes(b"killed while it was written")
    assert predict(model, root, out) == 0
    assert files(out) == {**complete, "semseg/1.png": b"kept"}
    assert predict(model, root, out, "--overwrite") == 0
    assert files(out) == complete


def test_outputs_of_another_model_options_or_inputs_are_not_continued(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = photos(tmp_path / "photos", "0.jpg"), tmp_path / "out"
    model = segmenter(tmp_path / "m.safetensors")
    assert predict(model, root, out) == 0
    before = files(out)
    other = segmenter(tmp_path / "other.safetensors", seed=1)
    assert predict(other, root, out) == 2 and str(model) in capsys.readouterr().err
    assert predict(model, root, out, "--confidence") == 2
    assert "--confidence" in capsys.readouterr().err
    assert predict(model, photos(tmp_path / "more", "0.jpg"), out) == 2
    assert files(out) == before
    assert predict(other, root, out, "--overwrite") == 0 and files(out) != before


def test_nothing_is_written_over_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = segmenter(tmp_path / "m.safetensors")
    root = photos(tmp_path / "photos", "0.jpg", "0.png", "deep/0.jpg")
    assert predict(model, root / "*.*", tmp_path / "out") == 2
    assert "0 (2 times)" in capsys.readouterr().err and not (tmp_path / "out").exists()
    assert predict(model, root / "deep", root / "deep/out") == 2
    data = write_scenes(tmp_path / "data", 1)
    assert predict(model, data, data, "--overwrite") == 2
    assert predict(model, root / "deep", data, "--overwrite") == 2
    assert not (data / "predict.json").exists()


def test_data_roots_and_packs_feed_the_modalities_they_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MULTIMAE_CACHE", str(tmp_path / "cache"))
    data = write_scenes(tmp_path / "data", 4)
    model = segmenter(tmp_path / "m.safetensors")
    packed = tmp_path / "packed"
    assert pack_dataset.main(["--data_path", str(data), "--out", str(packed)]) == 0
    assert predict(model, data, tmp_path / "both") == 0
    assert predict(model, packed, tmp_path / "packed_both") == 0
    with http_server(packed) as server:
        assert predict(model, server.url, tmp_path / "url") == 0
    assert files(tmp_path / "url/semseg") == files(tmp_path / "packed_both/semseg")
    assert predict(model, data / "rgb", tmp_path / "rgb") == 0
    assert predict(model, packed / "rgb", tmp_path / "packed_rgb") == 0
    assert predict(model, data, tmp_path / "only_rgb", "--inputs", "rgb") == 0
    maps = {name: files(tmp_path / name / "semseg") for name in (
        "both", "packed_both", "rgb", "packed_rgb", "only_rgb"
    )}  # fmt: skip
    assert sorted(maps["both"]) == ["a/000.png", "a/002.png", "b/001.png", "b/003.png"]
    assert maps["both"] == maps["packed_both"] != maps["rgb"]
    assert maps["rgb"] == maps["packed_rgb"] == maps["only_rgb"]
    (data / "depth/a/000.png").unlink()
    assert predict(model, data, tmp_path / "incomplete") == 1
    assert len(files(tmp_path / "incomplete/semseg")) == 3
    depth_only = predict(model, data, tmp_path / "depth", "--inputs", "depth")
    assert depth_only == 2  # the head reads the tokens of rgb


def test_values_in_three_formats(tmp_path: Path) -> None:
    target = replace(
        DEPTH, name="target_depth", normalization="mean_std", mean=(0.05,), std=(0.02,)
    )
    head = HeadSpec("depth", target, 1, HeadOptions("dpt", ("rgb",)), "mm")
    model = model_file(tmp_path / "m.safetensors", head, resize_mode="crop")
    values = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    save(tmp_path / "in/x.png", values)
    made: Any = MultiMAE.from_pretrained(model).predict(tmp_path / "in/x.png")["depth"]
    depth = made.values * {"mm": 1, "m": 1000}[made.unit]
    found = {}
    for kind in ("png", "tiff", "npy"):
        out = tmp_path / kind
        assert predict(model, tmp_path / "in", out, "--format", kind, "--overlay") == 0
        path = out / f"depth/x.{kind}"
        found[kind] = np.load(path) if kind == "npy" else np.asarray(Image.open(path))
    for kind in ("tiff", "npy"):
        assert found[kind].dtype == np.float32
        assert np.array_equal(found[kind][:, 8:40], made.values) and np.isnan(found[kind][0, 0])
    assert found["png"].dtype == np.uint16 and found["png"][0, 0] == 0
    assert np.array_equal(found["png"][:, 8:40], np.rint(depth).clip(1, 65535))


@pytest.mark.parametrize("more", [(), ("--tile", 32)])
def test_values_that_a_png_cannot_hold_are_counted(
    more: tuple[object, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = replace(DEPTH, name="target_depth", normalization="mean_std", mean=(1.0,), std=(0.02,))
    head = HeadSpec("depth", target, 1, HeadOptions("dpt", ("rgb",)), "mm")
    model = model_file(tmp_path / "m.safetensors", head, resize_mode="crop")
    root = photos(tmp_path / "photos", *(f"{i}.png" for i in range(12)))
    assert predict(model, root, tmp_path / "exact", "--format", "npy", *more) == 0
    assert "clipped" not in capsys.readouterr().out
    made = np.stack([np.load(p) for p in (tmp_path / "exact/depth").iterdir()])
    expected = (np.rint(1000 * made.astype(np.float64)) > 65535).sum()
    assert 0 < expected < made.size
    assert predict(model, root, tmp_path / "png", "--num_workers", 8, *more) == 0
    assert f"depth: {expected} values" in capsys.readouterr().out


def test_tables_of_classes(tmp_path: Path) -> None:
    head = HeadSpec("cls", labels(3, "x", "y, z", "w"), 3, LinearOptions())
    model = model_file(tmp_path / "m.safetensors", head, resize_mode="crop")
    root, out = photos(tmp_path / "photos", *ODD_NAMES), tmp_path / "out"
    assert predict(model, root, out, "--topk", 2, "--overlay") == 0
    complete = files(out)
    text = (out / "cls.csv").read_text("utf-8", "surrogateescape")
    rows = list(csv.DictReader(text.splitlines()))
    lines = list(map(json.loads, (out / "cls.jsonl").read_text().splitlines()))
    assert [row["name"] for row in rows] == [line["name"] for line in lines]
    for row, line in zip(rows, lines, strict=True):
        guess: Any = MultiMAE.from_pretrained(model).predict(root / f"{line['name']}.jpg")["cls"]
        assert [c["class"] for c in line["classes"]] == list(guess.names[:2])
        assert row["class_1"] == guess.name
        assert float(row["probability_2"]) == pytest.approx(guess.probabilities[1], abs=1e-6)
    kept = (out / "cls.jsonl").read_bytes().splitlines(keepends=True)
    (out / "cls.jsonl").write_bytes(kept[0] + kept[1][:20])  # killed while it wrote
    (out / "cls.csv").unlink()
    assert predict(model, root, out, "--topk", 2, "--overlay") == 0
    assert files(out) == complete
    assert predict(model, root, tmp_path / "c", "--confidence") == 2


def test_tables_of_several_labels(tmp_path: Path) -> None:
    head = HeadSpec("cls", labels(3, "x", "y", "w"), 3, LinearOptions(predicts="multi"))
    model = model_file(tmp_path / "m.safetensors", head, resize_mode="crop")
    root, out = photos(tmp_path / "photos", "a.jpg", "b/c.jpg", "d.jpg"), tmp_path / "out"
    assert predict(model, root, out, "--topk", 2) == 0
    rows = list(csv.DictReader((out / "cls.csv").read_text().splitlines()))
    lines = list(map(json.loads, (out / "cls.jsonl").read_text().splitlines()))
    loaded = MultiMAE.from_pretrained(model)
    for row, line in zip(rows, lines, strict=True):
        image = root / f"{line['name']}.jpg"
        logits = loaded.apply_heads(load_inputs({"rgb": image}, loaded.spec).x)["cls"][0]
        shares = dict(zip("xyw", logits.sigmoid().tolist(), strict=True))
        best = sorted("xyw", key=shares.__getitem__, reverse=True)
        assert [row["class_1"], row["class_2"]] == best[:2]
        assert [row["labels"], line["labels"]] == [
            ";".join(n for n in best if shares[n] > 0.5), [n for n in best if shares[n] > 0.5]
        ]  # fmt: skip
        for i in (0, 1):
            assert line["classes"][i]["class"] == best[i]
            assert line["classes"][i]["probability"] == pytest.approx(shares[best[i]], abs=1e-5)
            found = float(row[f"probability_{i + 1}"])
            assert found == line["classes"][i]["probability"]
    assert sum(sum(c["probability"] for c in line["classes"]) for line in lines) != len(lines)


def test_tables_of_numbers(tmp_path: Path) -> None:
    target = Modality(
        "cls", num_channels=2, storage="float", max_value=1.0, mean=(20.0, -1.0), std=(7.0, 0.1),
        interpolation="nearest", plot="scalar", class_names=("width", "age"),
    )  # fmt: skip
    head = HeadSpec("cls", target, 2, LinearOptions(predicts="number"))
    model = model_file(tmp_path / "m.safetensors", head, resize_mode="crop")
    root, out = photos(tmp_path / "photos", "a.jpg", "b/c.jpg"), tmp_path / "out"
    assert predict(model, root, out) == 0
    rows = list(csv.DictReader((out / "cls.csv").read_text().splitlines()))
    lines = list(map(json.loads, (out / "cls.jsonl").read_text().splitlines()))
    loaded = MultiMAE.from_pretrained(model)
    assert list(rows[0]) == ["name", "width", "age"]
    for row, line in zip(rows, lines, strict=True):
        image = root / f"{line['name']}.jpg"
        outputs = loaded.apply_heads(load_inputs({"rgb": image}, loaded.spec).x)["cls"][0].detach()
        expected = {"width": 20 + 7 * float(outputs[0]), "age": -1 + 0.1 * float(outputs[1])}
        assert line["values"] == pytest.approx(expected, rel=1e-4)
        assert {k: float(row[k]) for k in expected} == line["values"]


def test_reconstruction(tmp_path: Path) -> None:
    data = write_scenes(tmp_path / "data", 2)
    semseg = replace(default_table()["semseg"], num_classes=5)
    rows = (RGB, DEPTH, semseg)
    fields: Any = {"name": "pretrain_multimae_nano", "inputs": rows, "outputs": rows}
    model = model_file(
        tmp_path / "m.safetensors", resize_mode="crop", padding_class=False, **fields
    )
    out = tmp_path / "out"
    assert predict(model, data, out, "--visible", 20, "--seed", 3) == 0
    assert np.asarray(Image.open(out / "rgb/a/000.png")).shape == (40, 40, 3)
    assert np.asarray(Image.open(out / "depth/a/000.png")).dtype == np.uint16
    assert set(np.unique(np.asarray(Image.open(out / "semseg/a/000.png")))) <= set(range(5))
    assert Image.open(out / "reconstruction/b/001.png").width > 100
    first = files(out)
    assert predict(model, data, tmp_path / "one", "--visible", 20, "--seed", 3,
                   "--batch_size", 1) == 0  # fmt: skip
    again = files(tmp_path / "one")
    assert {k: v for k, v in again.items() if k.endswith("png")} == {
        k: v for k, v in first.items() if k.endswith("png")
    }
    assert predict(model, data / "rgb", tmp_path / "rgb", "--visible", "all") == 0
    assert (tmp_path / "rgb/depth/a/000.tiff").exists()  # in standard deviations
    shutil.rmtree(tmp_path / "rgb")
    assert predict(model, data / "rgb", tmp_path / "rgb", "--visible", "100") == 2


def test_flags_override_what_the_weights_say(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Weights of earlier versions do not say whether label 0 is void."""
    root = photos(tmp_path / "photos", "0.jpg")
    model = segmenter(tmp_path / "m.safetensors", zero_is_void=None)
    maps = {}
    for name, flags in {
        "unknown": [], "void": ["--seg_reduce_zero_label"], "class": ["--no_seg_reduce_zero_label"]
    }.items():  # fmt: skip
        assert predict(model, root, tmp_path / name, *flags) == 0
        maps[name] = np.asarray(Image.open(tmp_path / name / "semseg/0.png"))
        assert ("--seg_reduce_zero_label" in capsys.readouterr().out) == (not flags)
    assert np.array_equal(maps["void"], maps["class"] + 1)
    assert np.array_equal(maps["unknown"], maps["class"])
    truth = tmp_path / "truth"  # whose classes.json tells
    shutil.copytree(tmp_path / "void", truth)
    assert predict(model, root, tmp_path / "scored", "--truth", truth) == 0
    assert json.loads((tmp_path / "scored/metrics.json").read_text())["mean_iou"] == 100
    assert np.array_equal(np.asarray(Image.open(tmp_path / "scored/semseg/0.png")), maps["void"])
    assert predict(model, root, tmp_path / "scored") == 2  # would count from 0
    (truth / "classes.json").unlink()
    assert predict(model, root, tmp_path / "unclear", "--truth", truth) == 2
    assert "--no_seg_reduce_zero_label" in capsys.readouterr().err


@pytest.mark.parametrize("void", [True, False])
def test_another_meaning_of_label_0_is_refused(
    void: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = photos(tmp_path / "photos", "0.jpg")
    model = segmenter(tmp_path / "m.safetensors", zero_is_void=void)
    same, other = ("", "no_") if void else ("no_", "")
    assert predict(model, root, tmp_path / "a", f"--{same}seg_reduce_zero_label") == 0
    assert predict(model, root, tmp_path / "b", f"--{other}seg_reduce_zero_label") == 2
    message = capsys.readouterr().err
    assert f"--{other}seg_reduce_zero_label" in message and model in message
    assert ("void" in message) == void and not (tmp_path / "b").exists()


def test_folders_of_other_modalities_are_not_read_as_photos(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = segmenter(tmp_path / "model.safetensors", inputs=(RGB,))
    data = write_scenes(tmp_path / "data", 2)
    for source in (data / "semseg", data / "semseg/*/*.png"):
        assert predict(model, source, tmp_path / "out") == 2
        assert "'semseg'" in capsys.readouterr().err
    assert predict(model, data / "semseg", tmp_path / "out", "--inputs", "rgb") == 0
