"""Pseudo labels from models with random weights: layout, resuming, several processes."""

from __future__ import annotations

import io
import os
import re
import subprocess
import tarfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from multimae.images.folders import MultiModalFolder, read_class_names
from multimae.images.preprocess import prepare
from multimae.specs.errors import UserError
from multimae.specs.modalities import make_table
from tests.support.image_folders import message_of, save
from tests.support.processes import run_on_two_processes
from tests.support.scenes import write_scenes
from tools.common.staging import write_file
from tools.common.target_folder import Target
from tools.labelling.image_batches import LoadedImage, SizeBatcher
from tools.labelling.labellers import ClassLabeller, DepthLabeller, InputShapes, input_shapes
from tools.labelling.png_writers import remove_stale_files
from tools.pseudo_label import main
from utils.config.parse import parse_config
from utils.config.pretrain_options import PretrainConfig
from utils.data.batches import collate
from utils.data.samplers import SampleKey
from utils.tasks.pretraining import build_train_set, run_modalities
from utils.training.stepper import choose_precision

REPO = Path(__file__).parents[3]
PUBLISHED = REPO / "cfgs/pretrain/multimae-b_98_rgb+-depth-semseg_1600e.yaml"
transformers = pytest.importorskip("transformers")
CPU, TABLE = torch.device("cpu"), make_table()
FP32 = choose_precision("fp32", CPU)


def depth_anything(folder: Path, **options: Any) -> Path:
    backbone = transformers.Dinov2Config(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=2, image_size=56, patch_size=14,
        out_features=["stage1", "stage2", "stage3", "stage4"], reshape_hidden_states=False,
    )  # fmt: skip
    config = transformers.DepthAnythingConfig(
        backbone_config=backbone, patch_size=14, reassemble_hidden_size=32,
        reassemble_factors=[4, 2, 1, 0.5], neck_hidden_sizes=[16] * 4, fusion_hidden_size=16,
        head_hidden_size=8, **options,
    )  # fmt: skip
    model = transformers.DepthAnythingForDepthEstimation(config)
    with torch.no_grad():  # so that depth varies and the last ReLU lets it pass
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(0, 0.2)
        model.head.conv3.bias.fill_(10.0)
    model.save_pretrained(folder)
    transformers.DPTImageProcessor(
        size={"height": 56, "width": 56}, keep_aspect_ratio=True, ensure_multiple_of=14
    ).save_pretrained(folder)
    return folder


def mask2former(folder: Path, classes: int = 133) -> Path:
    swin = transformers.SwinConfig(
        image_size=64, embed_dim=8, depths=[1] * 4, num_heads=[1, 1, 2, 2], window_size=2,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = transformers.Mask2FormerConfig(
        backbone_config=swin, id2label={i: f"thing {i}" for i in range(classes)}, feature_size=32,
        mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=16, dim_feedforward=16,
        encoder_layers=1, decoder_layers=2, num_attention_heads=2, num_queries=20,
    )  # fmt: skip
    model = transformers.Mask2FormerForUniversalSegmentation(config)
    with torch.no_grad():  # so that masks and classes differ from query to query
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(0, 0.3)
    model.save_pretrained(folder)
    size = {"height": 64, "width": 64}
    transformers.Mask2FormerImageProcessor(size=size).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Flags that name a tiny depth model and a tiny segmenter."""
    root = tmp_path_factory.mktemp("models")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.manual_seed(0)
    depth, classes = depth_anything(root / "depth"), mask2former(root / "classes")
    return ["--depth_model", str(depth), "--semseg_model", str(classes)]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """JPEG and PNG files of odd sizes in sub-folders, one of them turned by EXIF."""
    root = tmp_path_factory.mktemp("photos")
    write_scenes(root / "scenes", 4)
    (root / "scenes/rgb").rename(root / "rgb")
    scene = np.asarray(Image.open(root / "rgb/a/000.jpg"))
    for key, size in {"a/wide": (71, 40), "b/tall": (33, 90), "b/one": (41, 41)}.items():
        save(root / f"rgb/{key}.png", np.asarray(Image.fromarray(scene).resize(size)))
    turned = Image.Exif()
    turned[0x0112] = 6  # stored 71 x 40, viewed 40 x 71
    Image.fromarray(scene).resize((71, 40)).save(root / "rgb/a/turned.jpg", exif=turned)
    return root / "rgb"


def flags(photos: Path, out: Path, models: list[str], *more: str) -> list[str]:
    own = ["--data_path", str(photos), "--out", str(out), "--batch_size", "3", "--device", "cpu"]
    return [*own, *models, "--num_workers", "0", "--precision", "fp32", *more]


def files(out: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(out)): path.read_bytes()
        for task in ("depth", "semseg")
        for path in sorted((out / task).rglob("*.png"))
    }


@pytest.fixture(scope="module")
def labelled(photos: Path, models: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("labelled")
    main(flags(photos, out, models))
    return out


def test_pretraining_reads_them_with_the_published_config(labelled: Path, photos: Path) -> None:
    more = ["--data_path", str(labelled), "--input_size", "32", "--num_workers", "0"]
    cfg = parse_config(PretrainConfig, ["--config", str(PUBLISHED), *more])
    rows = [row for part in run_modalities(cfg) for row in part]
    dataset = build_train_set(cfg, list(dict.fromkeys(rows)))  # reads and checks every file
    assert len(dataset) == 8
    batch = collate([dataset[SampleKey(0, i)] for i in range(len(dataset))])
    x = prepare(batch.images, rows)
    assert x["depth"].shape == (8, 1, 32, 32) and x["semseg"].shape == (8, 8, 8)
    assert x["depth"].isfinite().all() and int(x["semseg"].max()) < 133
    assert read_class_names(labelled) == tuple(f"thing {i}" for i in range(133))
    assert (labelled / "rgb/a/turned.jpg").resolve() == (photos / "a/turned.jpg").resolve()


def test_the_images_are_as_the_table_says(labelled: Path) -> None:
    stored = files(labelled)
    assert len(stored) == 16
    ids = set()
    for name in stored:
        image = Image.open(labelled / name)
        assert image.mode == ("I;16" if name.startswith("depth") else "L")
        values = np.asarray(image)
        if name.startswith("depth"):
            assert (values.min(), values.max()) == (0, 65535)
        ids |= set(np.unique(values)) if name.startswith("semseg") else set()
    assert len(ids) > 1 and max(ids) < 133
    for key, size in {"a/wide": (71, 40), "b/tall": (33, 90), "a/turned": (40, 71)}.items():
        for task in ("depth", "semseg"):
            assert Image.open(labelled / task / f"{key}.png").size == size


def test_stopped_run_resumes(
    photos: Path, models: list[str], labelled: Path, tmp_path: Path
) -> None:
    main(flags(photos, tmp_path, models))
    gone = ["depth/a/000.png", "semseg/b/tall.png", "semseg/b/one.png"]
    for name in gone:
        (tmp_path / name).unlink()
    (tmp_path / "rgb/a/wide.png").unlink()
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.png")}
    main(flags(photos, tmp_path, models, "--batch_size", "3"))
    assert [p for p, t in before.items() if p.stat().st_mtime_ns != t] == []
    assert files(tmp_path) == files(labelled)
    assert (tmp_path / "rgb/a/wide.png").is_symlink()
    main(flags(photos, tmp_path, models, "--overwrite"))
    assert all((tmp_path / n).stat().st_mtime_ns > max(before.values()) for n in files(tmp_path))


def test_full_disk_keeps_finished_files(
    photos: Path, models: list[str], labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, written, lock = Target.write_png, [], threading.Lock()

    def until_full(target: Target, path: Path, image: Any) -> None:
        with lock:  # several threads write
            if len(written) == 5:
                raise OSError(28, "No space left on device", str(path))
            written.append(path)
        write(target, path, image)

    with monkeypatch.context() as patch:
        patch.setattr(Target, "write_png", until_full)
        message = message_of(main, flags(photos, tmp_path, models, "--link", "none"))
    assert "No space left" in message and "resume" in message
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.png")}
    assert sorted(before) == sorted(written) and len(before) == 5
    assert not list(tmp_path.rglob(".tmp"))
    main(flags(photos, tmp_path, models, "--link", "none"))
    assert [p for p, t in before.items() if p.stat().st_mtime_ns != t] == []
    assert files(tmp_path) == files(labelled)


@pytest.mark.long
def test_two_processes_share_the_work(
    photos: Path, models: list[str], labelled: Path, tmp_path: Path
) -> None:
    more = flags(photos, tmp_path, models, "--num_threads", "1", "--link", "copy")
    printed = run_on_two_processes("tools/pseudo_label.py", *more)
    lines = sorted(line for line in printed.splitlines() if "process" in line)
    shares = [
        f"process {rank} of 2: 4 images; depth 4 written; semseg 4 written" for rank in (0, 1)
    ]
    assert [line.partition(" ->")[0] for line in lines] == shares
    assert files(tmp_path).keys() == files(labelled).keys()
    for name in files(labelled):  # kernels of other processes may round otherwise
        theirs, ours = (np.asarray(Image.open(o / name)).astype(int) for o in (tmp_path, labelled))
        if name.startswith("depth"):
            assert abs(theirs - ours).max() <= 2, name
        else:
            assert (theirs != ours).mean() < 0.01, name
    copy = tmp_path / "rgb/a/turned.jpg"
    assert not copy.is_symlink() and copy.read_bytes() == (photos / "a/turned.jpg").read_bytes()


def test_bad_images_are_listed_and_skipped(photos: Path, models: list[str], tmp_path: Path) -> None:
    rgb = tmp_path / "in"
    (rgb / "a").mkdir(parents=True)
    good = (photos / "a/000.jpg").read_bytes()
    (rgb / "a/good.jpg").write_bytes(good)
    (rgb / "a/cut.jpg").write_bytes(good[: len(good) // 2])
    (rgb / "a/text.png").write_text("no image")
    arguments = flags(rgb, tmp_path / "out", models, "--tasks", "depth", "--link", "none")
    message = message_of(main, arguments)
    assert "2 problems" in message and str(rgb / "a/cut.jpg") in message
    assert str(rgb / "a/text.png") in message
    assert [*files(tmp_path / "out")] == ["depth/a/good.png"]
    assert not (tmp_path / "out/rgb").exists()


def test_another_model_in_the_folder_is_an_error(
    photos: Path, models: list[str], labelled: Path, tmp_path: Path
) -> None:
    other = depth_anything(tmp_path / "other")
    message = message_of(main, flags(photos, labelled, models, "--depth_model", str(other)))
    assert "other settings" in message and str(labelled / "depth") in message


def test_depth_is_near_small(models: list[str], tmp_path: Path) -> None:
    """Inverse depth is turned round, metric depth is not; constant images stay finite."""
    inverse = DepthLabeller(TABLE["depth"], models[1], None, CPU, FP32)
    metric_model = depth_anything(tmp_path, depth_estimation_type="metric", max_depth=20)
    metric = DepthLabeller(TABLE["depth"], str(metric_model), None, CPU, FP32)
    assert (inverse.about["predicts"], metric.about["predicts"]) == ("inverse depth", "depth")
    forced = DepthLabeller(TABLE["depth"], str(metric_model), None, CPU, FP32, "inverse")
    assert forced.inverse
    ramp = torch.arange(5.0).repeat(4, 1)[None]
    expected = np.round(np.linspace(0, 65535, 5)).astype(np.uint16)
    assert (metric.image(ramp, (4, 5)) == expected).all()
    assert (inverse.image(ramp, (4, 5)) == expected[::-1]).all()
    assert not inverse.image(torch.ones(1, 4, 5), (8, 10)).any()
    with pytest.raises(ValueError, match="not finite"):
        metric.image(ramp * torch.nan, (4, 5))


def test_classes_are_those_of_the_library(models: list[str], photos: Path) -> None:
    """Against transformers' own post-processing, at the resolution it works in."""
    labeller = ClassLabeller(TABLE["semseg"], models[3], None, CPU, FP32)
    image = Image.open(photos / "b/one.png").resize((384, 384))
    x = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    (ids,) = labeller.label(x, [(60, 90)])
    processor = transformers.Mask2FormerImageProcessor.from_pretrained(models[3])
    with torch.no_grad():
        out = labeller.model((x / 255 - labeller.mean) / labeller.std)
    (theirs,) = processor.post_process_semantic_segmentation(out, target_sizes=[(60, 90)])
    assert isinstance(ids, np.ndarray) and ids.dtype == np.uint8
    assert len(np.unique(ids)) > 1
    assert (ids == theirs.numpy()).mean() > 0.999


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--tasks", "dept"], "did you mean depth"),
        (["--tasks", "rgb"], "--tasks: 'rgb'"),
        (["--modalities", "{semseg: {num_classes: 41}}"], "predicts 133 classes"),
        (["--semseg_model", "DEPTH"], "--semseg_model .* cannot be loaded"),
        (["--depth_model", "./no/such"], "--depth_model ./no/such: cannot be loaded"),
        (["--data_path", "PARENT"], "--data_path: .*rgb"),
        (["--data_path", "nowhere"], "no folder"),
    ],
)
def test_invalid_options_are_errors(
    more: list[str], expected: str, photos: Path, models: list[str], tmp_path: Path
) -> None:
    places = {"DEPTH": models[1], "PARENT": str(photos.parent)}
    with pytest.raises(UserError, match=expected):
        main(flags(photos, tmp_path, models, *(places.get(word, word) for word in more)))
    assert not list(tmp_path.rglob("*.png"))


def test_offline_model_name_is_an_error(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    arguments = ["--data_path", str(photos), "--out", str(tmp_path), "--device", "cpu"]
    message = message_of(main, arguments)
    assert "--depth_model depth-anything/Depth-Anything-V2-Small-hf: cannot be loaded" in message
    assert "hf download NAME --local-dir FOLDER" in message


def test_input_sizes() -> None:
    shapes = InputShapes(518, 14, square=False)
    assert shapes.input_size(500, 500) == (518, 518)
    assert shapes.input_size(500, 375) == (686, 518)
    assert shapes.input_size(375, 500) == (518, 686)
    assert shapes.input_size(4000, 100) == (1554, 518)
    assert InputShapes(384, 32, square=True).input_size(500, 375) == (384, 384)
    sizes = {shapes.input_size(w, h) for w in range(100, 900, 7) for h in range(100, 900, 7)}
    assert len(sizes) <= 15
    processor = transformers.Mask2FormerImageProcessor()
    assert input_shapes(processor, 32, None) == InputShapes(800, 32, square=False)
    assert input_shapes(processor, 32, 640) == InputShapes(640, 32, square=False)


def test_batches_are_full_and_nothing_is_lost() -> None:
    batcher, batches = SizeBatcher(4, max_pending_batches=2), []
    for i in range(37):
        side = 8 + i % 5
        batches += batcher.add(LoadedImage(i, (side, 9), {"depth": torch.zeros(3, side, 8)}))
        assert sum(map(len, batcher.waiting.values())) <= 8
    batches += batcher.flush()
    assert all(len(batch.inputs) == 4 for batch in batches)
    assert sorted(image.index for batch in batches for image in batch.images) == list(range(37))


def test_leftovers_of_killed_runs_are_removed(tmp_path: Path) -> None:
    old, new = tmp_path / ".tmp/1-a.png", tmp_path / ".tmp/2-b.png"
    write_file(tmp_path, tmp_path / "depth/1.png", b"whole")  # makes the folder
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (1, 1))
    remove_stale_files(tmp_path, alone=False)
    assert (old.exists(), new.exists()) == (False, True)
    remove_stale_files(tmp_path, alone=True)
    assert not new.exists()


def test_the_published_archives_are_unpacked_as_the_docs_say(photos: Path, tmp_path: Path) -> None:
    """One tar per class, with any folders inside."""
    loops = re.findall(r"```bash\n(for archive.*?)```", (REPO / "SETUP.md").read_text(), re.DOTALL)
    assert len(loops) == 1
    image = (photos / "b/one.png").read_bytes()
    for task in ("depth", "semseg"):
        for name, inside in {"n01440764": "n01440764/", "n01443537": "./deep/er/"}.items():
            archive = tmp_path / f"pseudo-labels/{task}/{name}.tar"
            archive.parent.mkdir(parents=True, exist_ok=True)
            with tarfile.open(archive, "w") as tar:
                tar.add(photos / "b", inside, recursive=False)
                for i in range(3):
                    member = tarfile.TarInfo(f"{inside}{name}_{i}.png")
                    member.size = len(image)
                    tar.addfile(member, io.BytesIO(image))
    subprocess.run(["bash", "-ec", loops[0]], cwd=tmp_path, check=True)
    made = sorted(p for p in (tmp_path / "imagenet").rglob("*") if p.is_file())
    keys = [f"{n}/{n}_{i}.png" for n in ("n01440764", "n01443537") for i in range(3)]
    root = tmp_path / "imagenet/train"
    assert made == [root / task / key for task in ("depth", "semseg") for key in keys]
    assert all(path.read_bytes() == image for path in made)
    assert len(MultiModalFolder(root, [TABLE["depth"], TABLE["semseg"]])) == 6
