"""Render the README's figures from the shipped weights and example rooms.

    python tools/make_pictures.py                # all figures, into docs/images
    python tools/make_pictures.py --only hero
    python tools/make_pictures.py --beside output/demo/model.safetensors --out output/demo

hero       animation: reconstructions from a growing number of visible patches
subsets    all modalities predicted from each single one
edit       effect of an edited label map on the predicted RGB image
attention  attention of one patch
predict    semantic segmentation of RGB images
photo      a real photo with depth from stereo; needs `pip install scikit-image`

``--beside`` draws one figure: reconstructions of another model beside those of the shipped weights,
from the same visible patches.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from multimae import CheckpointError, MultiMAE
from multimae.images.pixels import ImageLike
from multimae.inference.predict import LabelPrediction
from multimae.inference.reconstruct import Column, Patches, Reconstruction
from multimae.nn.tokens import as_size
from multimae.plotting import Picture, attention_grid, prediction_grid, with_void
from multimae.plotting.drawing import FADED, GUTTER, INK, MARGIN, WHITE, font
from multimae.specs.arguments import CommandParser
from multimae.specs.commands import run_command
from multimae.specs.errors import UserError, print_error

REPO = Path(__file__).resolve().parents[1]
WEIGHTS = REPO / "weights/multimae-tiny_rooms.safetensors"
SEGMENTER = REPO / "weights/multimae-tiny_rooms-semseg.safetensors"
EXAMPLES = REPO / "examples/rooms"

CELL, TITLE, CAPTION = 216, 20, 16
HERO_ROOMS = ("living_room", "dining_room", "kitchen", "bathroom")
HERO_VISIBLE = (4, 8, 16, 32, 48, 64, 96)
FRAME_MS, LAST_FRAME_MS = 550, 1800
Sample = dict[str, ImageLike]


def samples(model: MultiMAE) -> dict[str, Sample]:
    """List the example rooms as ``{type/name: {modality: file}}``.

    Raises:
        FileNotFoundError: No example rooms.
    """
    first = model.spec.inputs[0]
    found: dict[str, Sample] = {}
    for path in sorted((EXAMPLES / first.data_folder).glob("*/*")):
        key = f"{path.parent.name}/{path.stem}"
        files = {
            m.name: next((EXAMPLES / m.data_folder).glob(f"{key}.*")) for m in model.spec.inputs
        }
        found[key] = dict(files)
    if not found:
        raise FileNotFoundError(f"no example rooms in {EXAMPLES}")
    return found


def draw_table(
    rows: Sequence[tuple[str, Sequence[Picture]]], titles: Sequence[str], caption: str = ""
) -> Image.Image:
    """Draw rows of pictures with row names and column titles."""
    side = max(int(font(TITLE).getlength(name)) for name, _ in rows) + MARGIN
    width = MARGIN + side + len(titles) * (CELL + GUTTER) + MARGIN
    top = MARGIN + 2 * TITLE
    height = top + len(rows) * (CELL + GUTTER) + (2 * CAPTION if caption else 0) + MARGIN // 2
    image = Image.new("RGB", (width, height), WHITE)
    draw = ImageDraw.Draw(image)
    for c, title in enumerate(titles):
        x = MARGIN + side + c * (CELL + GUTTER)
        draw.text((x, top - 0.5 * TITLE), title, INK, font(TITLE), anchor="ls")
    for r, (name, pictures) in enumerate(rows):
        y = top + r * (CELL + GUTTER)
        draw.text((MARGIN, y + CELL / 2), name, INK, font(TITLE), anchor="lm")
        for c, picture in enumerate(pictures):
            tile = Image.fromarray(picture).resize((CELL, CELL), Image.Resampling.NEAREST)
            image.paste(tile, (MARGIN + side + c * (CELL + GUTTER), y))
    if caption:
        y = height - MARGIN // 2 - CAPTION
        draw.text((MARGIN + side, y), caption, FADED, font(CAPTION), anchor="lm")
    return image


def nested_masks(
    model: MultiMAE, counts: Sequence[int], seed: int
) -> list[dict[str, npt.NDArray[np.bool_]]]:
    """Visible patches for growing budgets; each set contains the previous one."""
    spec = model.spec
    rows, columns = (side // spec.patch_size for side in as_size(spec.image_size))
    names = [m.name for m in spec.inputs]
    order = np.random.default_rng(seed).permutation(len(names) * rows * columns)
    out = []
    for count in counts:
        shown = np.zeros((len(names), rows, columns), dtype=bool)
        shown.reshape(-1)[order[:count]] = True
        out.append(dict(zip(names, shown, strict=True)))
    return out


def hero(model: MultiMAE, out: Path) -> Path:
    """Animated WebP: reconstructions of several rooms from growing budgets."""
    names = [m.name for m in model.spec.inputs]
    height, width = as_size(model.spec.image_size)
    total = len(names) * (height // model.spec.patch_size) * (width // model.spec.patch_size)
    rooms = samples(model)
    frames, durations = [], []
    for kind in HERO_ROOMS:
        key = next(k for k in rooms if k.startswith(kind))
        for visible in nested_masks(model, HERO_VISIBLE, seed=5):
            result = model.reconstruct(rooms[key], visible)
            rows = [
                ("visible", [result.picture(name, "input") for name in names]),
                ("predicted", [result.picture(name) for name in names]),
                ("truth", [result.picture(name, "truth") for name in names]),
            ]
            count = sum(int(v.sum()) for v in visible.values())
            frames.append(draw_table(rows, names, f"{count} of {total} patches are visible"))
            durations.append(LAST_FRAME_MS if count == HERO_VISIBLE[-1] else FRAME_MS)
    path = out / "hero.webp"
    frames[0].save(
        path, save_all=True, append_images=frames[1:], duration=durations, loop=0, quality=78,
        method=6,
    )  # fmt: skip
    return path


def subsets(model: MultiMAE, out: Path) -> Path:
    """Predictions from each single modality with all of its patches visible."""
    names = [m.name for m in model.spec.inputs]
    rooms = samples(model)
    sample = rooms[next(k for k in rooms if k.startswith("dining_room"))]
    rows = []
    for source in names:
        result = model.reconstruct(sample, {source: "all"})
        pictures = [result.picture(source, "truth")]
        rows.append((f"{source} ->", pictures + [result.picture(name) for name in names]))
    truth = model.reconstruct(sample, {names[0]: "all"})
    blank = np.full_like(rows[0][1][0], 255)
    rows.append(("truth", [blank] + [truth.picture(name, "truth") for name in names]))
    path = out / "subsets.png"
    draw_table(rows, ["input", *(f"predicted {name}" for name in names)]).save(path, optimize=True)
    return path


def edit(model: MultiMAE, out: Path) -> Path:
    """Paint a window into a room's labels and predict RGB; 8 visible RGB patches set colours."""
    labels = next(m for m in model.spec.inputs if m.is_labels)
    photo = next(m for m in model.spec.inputs if m.is_photo)
    rooms = samples(model)
    sample = rooms[next(k for k in rooms if k.startswith("bathroom"))]
    stored = np.asarray(Image.open(Path(str(sample[labels.name]))))
    window = labels.class_names.index("window")
    height, width = stored.shape
    wall = stored == labels.class_names.index("wall")
    painted = stored.copy()
    box = (slice(height // 8, height // 2), slice(width // 2, width * 7 // 8))
    painted[box] = np.where(wall[box], window, stored[box])
    shown: dict[str, Patches] = {m.name: "all" for m in model.spec.inputs}
    shown[photo.name] = 8

    def row(name: str, ids: npt.NDArray[np.uint8]) -> tuple[str, list[Picture]]:
        result = model.reconstruct({**sample, labels.name: ids}, shown, seed=3)
        columns: list[tuple[str, Column]] = [
            (labels.name, "truth"),
            (photo.name, "input"),
            (photo.name, "prediction"),
            (photo.name, "truth"),
        ]
        return name, [result.picture(m, c) for m, c in columns]

    rows = [row("original", stored), row("edited", painted)]
    titles = [labels.name, f"{photo.name}, visible", f"{photo.name}, predicted", "the photo"]
    path = out / "edit.png"
    draw_table(rows, titles).save(path, optimize=True)
    return path


def attention(model: MultiMAE, out: Path) -> Path:
    """Attention of one RGB patch in a middle block."""
    rooms = samples(model)
    sample = rooms[next(k for k in rooms if k.startswith("dining_room"))]
    query, layer = (model.spec.inputs[0].name, 4, 4), 7
    maps = {n: m[0].numpy() for n, m in model.attention(sample, query, layer=layer).items()}
    shown: Reconstruction = model.reconstruct(sample)
    pictures: Mapping[str, Picture] = {name: shown.picture(name, "truth") for name in maps}
    path = out / "attention.png"
    attention_grid(pictures, maps, query, caption=f"block {layer}, mean over heads").save(
        path, optimize=True
    )
    return path


def predict(model: MultiMAE, out: Path) -> Path:
    """RGB images, predicted classes and ground truth."""
    segmenter = MultiMAE.from_pretrained(SEGMENTER)
    (head,) = segmenter.spec.heads
    labels = next(m for m in model.spec.inputs if m.is_labels)
    photo = segmenter.spec.inputs[0].name
    columns: dict[str, list[Picture]] = {"photo": [], "predicted": [], "truth": []}
    every = []
    for sample in list(samples(model).values())[:4]:
        prediction = segmenter.predict({photo: sample[photo]})[head.name]
        if not isinstance(prediction, LabelPrediction):
            raise TypeError(f"{SEGMENTER} does not predict labels")
        truth = np.asarray(Image.open(Path(str(sample[labels.name]))))
        with Image.open(Path(str(sample[photo]))) as image:
            columns["photo"].append(np.asarray(image.convert("RGB")))
        columns["predicted"].append(prediction.picture())
        ids = truth.astype(np.int64) - 1
        shown = LabelPrediction(ids, (), prediction.logits, head.target, prediction.view)
        columns["truth"].append(shown.picture())
        every += [prediction.ids + 1, truth.astype(np.int64)]
    path = out / "predict.png"
    grid = prediction_grid(columns, legend=with_void(head.target), ids=np.stack(every))
    grid.save(path, optimize=True)
    return path


def photo(model: MultiMAE, out: Path) -> Path:
    """Draw what the model makes of a photo and of its depth, neither of them rendered.

    Source: Middlebury Stereo 2014, "Motorcycle" (Scharstein et al., GCPR 2014), which scikit-image
    ships at half size; depth in mm = baseline x focal length / (disparity + offset).
    """
    try:
        from skimage.data import stereo_motorcycle
    except ImportError:
        raise UserError("the figure 'photo' needs `pip install scikit-image`") from None
    left, _, disparity = stereo_motorcycle()
    side, width = left.shape[:2]
    middle = slice((width - side) // 2, (width + side) // 2)
    depth = 193.001 * 994.978 / (disparity + 31.086)
    depth[~np.isfinite(disparity)] = 0  # hidden from the right camera
    sample: Sample = {"rgb": left[:, middle], "depth": depth[:, middle].astype(np.uint16)}
    labels = next(m for m in model.spec.inputs if m.is_labels)
    shown: dict[str, dict[str, Patches]] = {
        "a quarter of rgb and depth": {"rgb": 32, "depth": 32},
        "all of rgb": {"rgb": "all"},
        "all of depth": {"depth": "all"},
    }
    results = [model.reconstruct(sample, visible, seed=0) for visible in shown.values()]
    columns = {f"visible {name}": [r.picture(name, "input") for r in results] for name in sample}
    for m in model.spec.inputs:
        columns[f"predicted {m.name}"] = [r.picture(m.name) for r in results]
    ids = np.stack([r.values(labels.name) for r in results])
    path = out / "photo.webp"
    grid = prediction_grid(columns, captions=list(shown), legend=labels, ids=ids)
    grid.save(path, quality=85, method=6)
    return path


def beside(model: MultiMAE, other: MultiMAE, out: Path) -> Path:
    """Masked patches filled in by two models, from the same visible ones."""
    names = [m.name for m in model.spec.inputs]
    rooms = samples(model)
    figures = []
    for seed, kind in enumerate(HERO_ROOMS[:2]):
        sample = rooms[next(k for k in rooms if k.startswith(kind))]
        (visible,) = nested_masks(model, [32], seed)
        shipped, trained = (each.reconstruct(sample, visible) for each in (model, other))
        rows = [
            ("visible", [shipped.picture(name, "input") for name in names]),
            ("this run", [trained.picture(name, "masked") for name in names]),
            ("weights/", [shipped.picture(name, "masked") for name in names]),
            ("truth", [shipped.picture(name, "truth") for name in names]),
        ]
        figures.append(draw_table(rows, names))
    left, right = figures
    image = Image.new("RGB", (left.width + right.width, left.height), WHITE)
    image.paste(left, (0, 0))
    image.paste(right, (left.width, 0))
    path = out / "beside.png"
    image.save(path, optimize=True)
    return path


PICTURES: dict[str, Callable[[MultiMAE, Path], Path]] = {
    "hero": hero,
    "subsets": subsets,
    "edit": edit,
    "attention": attention,
    "predict": predict,
    "photo": photo,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Render the figures; return 2 if weights or examples are missing."""
    parser = CommandParser(__doc__)
    parser.add_argument("--out", type=Path, default=REPO / "docs/images", help="output folder")
    parser.add_argument(
        "--only", choices=PICTURES, nargs="+", default=[p for p in PICTURES if p != "photo"],
        help="pictures to draw; all but photo by default",
    )  # fmt: skip
    parser.add_argument("--beside", metavar="WEIGHTS", help="draw only this model's figure")
    args = parser.parse_args(argv)
    try:
        model = MultiMAE.from_pretrained(WEIGHTS)
        args.out.mkdir(parents=True, exist_ok=True)
        if args.beside:
            print(beside(model, MultiMAE.from_pretrained(args.beside), args.out))
            return 0
        for name in args.only:
            path = PICTURES[name](model, args.out)
            print(f"{path}  {path.stat().st_size / 1e3:.0f} kB")
    except (CheckpointError, OSError) as err:
        print_error(UserError(str(err)))
        return 2
    return 0


if __name__ == "__main__":
    run_command(main)
