"""The weights in ``weights/``: small, loadable, better than trivial baselines on new rooms."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from multimae import MultiMAE
from multimae.images.folders import MultiModalFolder
from multimae.images.preprocess import prepare
from multimae.nn.tokens import patchify
from multimae.weights.model_files import read_spec
from tools.rooms.generate import Job, make_rooms
from utils.data.batches import collate
from utils.data.dataset import MultiModalDataset
from utils.data.samplers import SampleKey
from utils.data.transforms import EvalTransform

FOLDER = Path(__file__).resolve().parents[3] / "weights"
FILES = sorted(FOLDER.glob("*.safetensors"))


def test_there_are_weights_with_a_card() -> None:
    card = (FOLDER / "README.md").read_text()
    assert FILES and all(path.stem in card for path in FILES)
    assert all(path.stat().st_size <= 25e6 for path in FILES)


@pytest.mark.parametrize("path", [p for p in FILES if read_spec(p).outputs], ids=lambda p: p.stem)
def test_shipped_weights_reconstruct_unseen_rooms(path: Path, tmp_path: Path) -> None:
    model, spec = MultiMAE.from_pretrained(path), read_spec(path)
    size, patch = spec.image_size, spec.patch_size
    make_rooms(Job(tmp_path, train=0, val=6, size=size, seed=77), progress=False)
    folder = MultiModalFolder(tmp_path / "val", spec.inputs)
    dataset = MultiModalDataset(folder, EvalTransform(spec.inputs, size))
    batch = collate([dataset[SampleKey(0, i)] for i in range(6)])
    x = prepare(batch.images, spec.inputs)
    tokens = len(spec.inputs) * (size // patch) ** 2
    with torch.inference_mode():
        generator = torch.Generator().manual_seed(0)
        predicted, masks = model(x, num_encoded_tokens=tokens // 6, generator=generator)

    hidden = masks["depth"].bool()
    error, spread = (
        patchify((x["depth"] - guess).abs(), (patch, patch)).mean(dim=-1)[hidden].mean()
        for guess in (predicted["depth"], x["depth"].mean(dim=(1, 2, 3), keepdim=True))
    )
    assert error < 0.6 * spread
    right = (predicted["semseg"].argmax(dim=1) == x["semseg"]).float()
    commonest = torch.stack([(x["semseg"] == c).float().mean() for c in range(41)]).max()
    assert right.mean() > commonest + 0.15


@pytest.mark.parametrize("path", [p for p in FILES if read_spec(p).heads], ids=lambda p: p.stem)
def test_shipped_weights_segment_unseen_rooms(path: Path) -> None:
    """On rooms with held-out furniture: better than predicting the most frequent class."""
    model = MultiMAE.from_pretrained(path)
    right, trivial = [], []
    for photo in sorted((FOLDER.parent / "examples/rooms/rgb").glob("*/*")):
        labels = FOLDER.parent / "examples/rooms/semseg" / photo.parent.name / f"{photo.stem}.png"
        with Image.open(labels) as image:
            truth = np.asarray(image).astype(int) - 1  # 0 is void
        guess = model.predict(photo)["semseg"].ids  # type: ignore[union-attr]
        known = truth >= 0
        right.append((guess == truth)[known].mean())
        trivial.append(np.bincount(truth[known]).max() / known.sum())
    assert np.mean(right) > 1.5 * np.mean(trivial)
