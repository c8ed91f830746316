"""Small image folders for the tests of the data pipeline."""

import numpy as np
import pytest
from PIL import Image

from multimae.images.folders import MultiModalFolder
from multimae.images.pixels import ImageError
from multimae.specs.errors import UserError
from multimae.specs.modalities import make_table
from utils.data.dataset import MultiModalDataset
from utils.data.transforms import TrainTransform

TABLE = make_table({"semseg": {"num_classes": 41}})
MODALITIES = [TABLE[name] for name in ("rgb", "norm_rgb", "depth", "semseg")]
RGB, _, DEPTH, SEMSEG = MODALITIES
SIZE = (40, 52)
CE = "cross_entropy"


def save(path, array, **kwargs):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **kwargs)
    return path


def write_sample(root, key, seed=0, size=SIZE):
    rng = np.random.default_rng(seed)
    save(root / f"rgb/{key}.jpg", rng.integers(0, 256, (*size, 3), dtype=np.uint8))
    save(root / f"depth/{key}.png", rng.integers(0, 65536, size, dtype=np.uint16))
    save(root / f"semseg/{key}.png", rng.integers(0, 41, size, dtype=np.uint8))


def write_folder(root):
    for i in range(12):
        write_sample(root, f"{'kitchen' if i % 2 else 'bath'}/{i:03d}", seed=i)
    return root


def make_dataset(root, transform=None, **kwargs):
    transform = transform or TrainTransform(MODALITIES, 32)
    return MultiModalDataset(MultiModalFolder(root, MODALITIES), transform, **kwargs)


def message_of(function, *args, **kwargs):
    with pytest.raises((UserError, ImageError)) as caught:
        function(*args, **kwargs)
    return str(caught.value)
