"""Flat arrays of names: order, pairing, packs."""

import os
import random
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pytest

from multimae.images.folders import MultiModalFolder
from multimae.images.index import listing, merging
from multimae.images.index.listing import Names, list_folder, merge
from multimae.specs.modalities import default_table
from tests.support.image_folders import message_of
from tools.pack.packing import PackOptions, write_packs

RGB = default_table()["rgb"]
LETTERS = [b"a", b"b", b"-", b".", b"0", b"/", "\u00e9".encode(), b"\xe9"]


def names_of(keys: list[bytes]) -> Names:
    return Names.from_text(b"".join(key + b"\0" for key in keys))


@pytest.mark.parametrize("seed", range(20))
def test_merging_is_the_sorted_union(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (listing, merging):
        monkeypatch.setattr(module, "BLOCK", 3)
    draw = random.Random(seed)
    every = {b"".join(draw.choices(LETTERS, k=draw.randint(1, 4))) for _ in range(30)}
    lists = [sorted(k for k in every if draw.random() < 0.8) for _ in range(3)]
    union, positions = merge([names_of(keys) for keys in lists])
    assert list(union) == sorted(set().union(*lists))
    for keys, found in zip(lists, positions.tolist(), strict=True):
        assert found == [keys.index(k) if k in keys else -1 for k in union]
    mask = np.array([draw.random() < 0.5 for _ in union])
    kept = [k for k, keep in zip(union, mask, strict=True) if keep]
    assert list(union.where(mask)) == kept
    digest = blake2b(b"".join(k + b"\0" for k in kept), digest_size=16).hexdigest()
    assert union.where(mask).digest() == digest  # as checkpoints have it


@pytest.mark.parametrize("seed", range(20))
def test_folders_are_listed_in_the_order_of_full_names(seed: int, tmp_path: Path) -> None:
    draw, root = random.Random(seed), os.fsencode(tmp_path)
    for _ in range(40):
        name = b"".join(draw.choices([*LETTERS, b"/"], k=draw.randint(1, 6)))
        parts = [part for part in name.split(b"/") if part.strip(b".")]
        path = os.path.join(root, *(part + b"x" for part in parts)) + b".png"
        os.makedirs(os.path.dirname(path), exist_ok=True)
        Path(os.fsdecode(path)).write_bytes(b"")
    found = [
        os.path.relpath(os.path.join(folder, file), root).removesuffix(b".png")
        for folder, _, files in os.walk(root)
        for file in files
        if not file.startswith(b".")
    ]
    hidden = [key for key in found if b"/." in b"/" + key]
    assert list(list_folder(tmp_path, "rgb").names) == sorted(set(found) - set(hidden))


def test_a_pack_is_sorted_by_names_without_extension(tmp_path: Path) -> None:
    source = tmp_path / "in"
    (source / "rgb").mkdir(parents=True)
    for name in ("a.png", "a-b.png", "a.b.jpg", "c.png"):
        (source / "rgb" / name).write_bytes(name.encode())
    names = {"rgb": sorted(f.encode() for f in os.listdir(source / "rgb"))}
    write_packs(names, source, tmp_path / "out", PackOptions(), workers=1)
    folder, plain = (MultiModalFolder(root, [RGB]) for root in (tmp_path / "out", source))
    assert [folder.name(i) for i in range(4)] == ["a", "a-b", "a.b", "c"]
    for i in range(4):
        assert folder.path(i, RGB).name == plain.path(i, RGB).name
        assert folder.packed_original(i, RGB) == plain.path(i, RGB).read_bytes()


def test_the_same_name_twice_in_a_pack(tmp_path: Path) -> None:
    (tmp_path / "in/rgb").mkdir(parents=True)
    for name in ("a.png", "a-b.png", "a.jpg"):
        (tmp_path / "in/rgb" / name).write_bytes(b"x")
    names = {"rgb": [b"a-b.png", b"a.jpg", b"a.png"]}
    write_packs(names, tmp_path / "in", tmp_path / "out", PackOptions(), workers=1)
    message = message_of(MultiModalFolder, tmp_path / "out", [RGB])
    assert f"{tmp_path / 'out/rgb/a'}: .jpg and .png" in message
