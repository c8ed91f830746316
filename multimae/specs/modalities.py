"""The modality table: everything the project knows about a kind of image, in one place.

Model, losses, data transforms, evaluation and pictures all read this table; none of them names a
modality. A new modality is one more row, usually written in a YAML config::

    modalities:
      semseg: {num_classes: 41}                     # changes a row of the default table
      normals:                                      # adds a row
        {kind: image, num_channels: 3, loss: l1, mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5],
         interpolation: nearest, hflip_negate: [0], plot: normals}
"""

from __future__ import annotations

import dataclasses
import math
import struct
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_type_hints

from multimae.specs.coercion import coerce, did_you_mean

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
UNIT_16_BIT = 65536.0
"""``robust_unit`` of 16-bit values in pre-training (SPEC section 5)."""

Kind = Literal["image", "labels"]
Storage = Literal["integer", "float"]
Normalization = Literal["mean_std", "robust", "computed"]
RobustPixels = Literal["valid", "all"]
Interpolation = Literal["bicubic", "bilinear", "nearest"]
Loss = Literal["mse", "l1", "cross_entropy"]
Plot = Literal["rgb", "scalar", "grey", "labels", "normals"]


@dataclass(frozen=True)
class Modality:
    """One kind of image.

    Attributes:
        name: Key in batches, state dicts and folder names; letters, digits and ``_``.
        kind: ``image`` (B, C, H, W) of real values, or ``labels`` (B, H, W) of class ids.
        num_channels: Channels of an ``image``.
        num_classes: Number of class ids of ``labels``: valid ids are ``0..num_classes-1``.
        stride: The modality is stored in the model at ``1/stride`` of full resolution.
        patch_size: Patch side in full-resolution pixels; ``None`` takes the model's.
        folder: Sub-folder of the data root; ``None`` takes ``name``.
        storage: Files hold ``integer`` (8 or 16 bits, as ``max_value`` says) or ``float`` values.
        normalization: ``mean_std``: ``(x / max_value - mean) / std``. ``robust``: per sample, on
            values / ``robust_unit``, by mean and variance of the middle 80 % (SPEC section 5).
            ``computed``: ``mean_std`` with the statistics of the training set; pre-training fills
            them in, and the weights carry them.
        robust_unit: Stored values are divided by this before ``robust`` adds 1e-6 to their
            variance: 65536 for 16-bit values in pre-training, 1 in published semantic segmentation.
        robust_pixels: Pixels that enter the statistics of ``robust``: ``valid`` ones, or ``all``
            but those of ``no_data``, padding and invalid ones included.
        max_value: Largest stored value (255 for 8-bit, 65535 for 16-bit files); of floats the unit
            of mean and std, 1 if it is not given.
        mean: Per-channel mean on the [0, 1] scale.
        std: Per-channel standard deviation on the [0, 1] scale.
        no_data: Stored value of pixels without a value (``.nan`` for floats): 0 in the model's
            input (labels: a class of its own), in no statistics and in no loss.
        interpolation: How the transforms resize it. Labels are always ``nearest``.
        hflip_negate: Channels mirrored about the middle of the range when the image is flipped
            left-right (the x component of surface normals).
        loss: Pre-training loss.
        loss_weight: Factor of that loss in the total.
        norm_pix: The target is standardised per patch.
        source: This is an extra *target* computed from another modality: same data, same mask, no
            input of its own (``norm_rgb`` from ``rgb``).
        dim_class_emb: Width of the class embedding of ``labels``.
        class_names: Names by class id, for legends.
        plot: How pictures show it: colours, a colour map or grey, a palette, directions.
        plot_channels: Channels that pictures show: three as red, green and blue, or one; the first
            ones if empty.
    """

    name: str
    kind: Kind = "image"
    num_channels: int = 3
    num_classes: int = 0
    stride: int = 1
    patch_size: int | None = None
    folder: str | None = None
    storage: Storage = "integer"
    normalization: Normalization = "mean_std"
    robust_unit: float = 1.0
    robust_pixels: RobustPixels = "valid"
    max_value: float = 255.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    no_data: float | None = None
    interpolation: Interpolation = "bicubic"
    hflip_negate: tuple[int, ...] = ()
    loss: Loss = "mse"
    loss_weight: float = 1.0
    norm_pix: bool = False
    source: str | None = None
    dim_class_emb: int = 64
    class_names: tuple[str, ...] = ()
    plot: Plot = "rgb"
    plot_channels: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Reject rows that contradict themselves."""
        if self.no_data is not None and math.isnan(self.no_data):
            object.__setattr__(self, "no_data", math.nan)  # one object, so that rows compare equal
        elif self.no_data is not None and self.storage == "float":
            # Pixels are float32, which holds -99.9 as -99.90000153: compare the stored value.
            object.__setattr__(self, "no_data", _as_float32(self.no_data))
        problems = list(self._problems())
        if problems:
            raise ValueError(f"modality '{self.name}': " + "; ".join(problems))

    def _problems(self) -> Iterator[str]:
        if not self.name.isidentifier():
            yield "the name must be letters, digits and '_' (it appears in in_domains a-b-c)"
        yield from self._label_problems() if self.is_labels else self._image_problems()
        if self.no_data is not None and self.storage != "float":
            if math.isnan(self.no_data):
                yield "no_data: .nan needs storage: float"
            elif self.no_data < 0 or self.no_data != math.floor(self.no_data):
                yield f"no_data: {self.no_data:g} needs storage: float; integers count from 0"
        if self.stride < 1 or (self.patch_size is not None and self.patch_size < 1):
            yield "stride and patch_size must be >= 1"
        if self.max_value <= 0:
            yield "max_value must be positive"
        if self.robust_unit <= 0:
            yield "robust_unit must be positive"
        if self.loss_weight < 0:
            yield "loss_weight must not be negative"

    def _label_problems(self) -> Iterator[str]:
        if self.num_classes < 2:
            yield "labels need num_classes >= 2"
        if self.loss != "cross_entropy":
            yield "labels need loss: cross_entropy"
        if self.interpolation != "nearest":
            yield "labels need interpolation: nearest (ids must not be blended)"
        if self.storage != "integer" or self.normalization == "computed":
            yield "labels are integers without normalisation"

    def _image_problems(self) -> Iterator[str]:
        channels = self.num_channels
        if channels < 1:
            yield "an image needs num_channels >= 1"
        if self.loss == "cross_entropy":
            yield "loss cross_entropy is for labels; use mse or l1"
        for key in ("mean", "std"):
            if len(getattr(self, key)) not in (1, channels):
                yield f"{key} needs 1 or {channels} values"
        if any(s <= 0 for s in self.std):
            yield "std must be positive"
        for key in ("hflip_negate", "plot_channels"):
            if any(not 0 <= c < channels for c in getattr(self, key)):
                yield f"{key} must be channel indices below {channels}"
        if self.plot in _DIRECTIONS and channels != 3:
            yield f"plot: {self.plot} needs num_channels: 3"
        if self.no_data is not None and self.interpolation != "nearest":
            yield "no_data needs interpolation: nearest (it must not be blended into other values)"
        if self.no_data is not None and self.norm_pix:
            yield "norm_pix cannot be combined with no_data"

    @property
    def is_labels(self) -> bool:
        """Whether pixels are class ids."""
        return self.kind == "labels"

    @property
    def is_photo(self) -> bool:
        """Whether it holds colours that photometric augmentation may change."""
        coloured = not self.is_labels and self.plot in _COLOURS and self.storage == "integer"
        fits = self.num_channels == 3 and self.max_value <= 255
        return coloured and fits and self.no_data is None  # jitter would change that value

    @property
    def out_channels(self) -> int:
        """Channels a decoder predicts: ``num_channels`` or one logit per class."""
        return self.num_classes if self.is_labels else self.num_channels

    @property
    def data_name(self) -> str:
        """The modality whose data and mask this one uses (itself unless ``source`` is set)."""
        return self.source or self.name

    @property
    def data_folder(self) -> str:
        """Sub-folder of the data root that holds the files."""
        return self.folder or self.name


def _as_float32(value: float) -> float:
    """The value that float32 stores; infinite beyond its range."""
    try:
        return float(struct.unpack("f", struct.pack("f", value))[0])
    except OverflowError:
        return math.copysign(math.inf, value)


PREPARATION = (
    "kind",
    "num_channels",
    "num_classes",
    "stride",
    "patch_size",
    "storage",
    "normalization",
    "robust_unit",
    "robust_pixels",
    "max_value",
    "mean",
    "std",
    "no_data",
    "interpolation",
    "hflip_negate",
    "dim_class_emb",
    "class_names",
    "plot",
)
"""Fields that decide how stored values become tokens."""


def prepared_as(
    declared: Modality, trained: Modality, explicit: Collection[str], patch_size: int
) -> tuple[Modality, list[str]]:
    """Take the preparation of an input from the modality that a model was trained with.

    Args:
        declared: The modality of this run.
        trained: The modality of the weights.
        explicit: Fields of ``declared`` that the user set.
        patch_size: Patch side of the model, for modalities without one.

    Returns:
        ``declared`` with the trained values in all fields of :data:`PREPARATION`, except those
        set to another value; and a line per such field.
    """
    values: dict[str, Any] = {}
    differing = []
    for field in PREPARATION:
        own, theirs = getattr(declared, field), getattr(trained, field)
        if field == "class_names" and not theirs:
            values[field] = own
        elif field in explicit and not _same_preparation(field, own, theirs, patch_size):
            differing.append(f"{field}: the weights' {_text(theirs)}, yours {_text(own)}")
            values[field] = own
        else:
            values[field] = theirs
    return dataclasses.replace(declared, **values), differing


def _same_preparation(field: str, own: Any, theirs: Any, patch_size: int) -> bool:
    """Whether a declared value means the same as the trained one."""
    if field in ("mean", "std"):
        length = max(len(own), len(theirs))
        pairs = zip(*(v * length if len(v) == 1 else v for v in (own, theirs)), strict=False)
        return len({len(own), len(theirs)} - {1}) < 2 and all(
            math.isclose(a, b, rel_tol=1e-3, abs_tol=1e-4) for a, b in pairs
        )
    if field == "patch_size":
        return bool((own or patch_size) == (theirs or patch_size))
    if field == "normalization" and own == "computed":
        return bool(theirs == "mean_std")  # the weights have the statistics
    return bool(own == theirs or own is theirs)


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        shown = ", ".join(map(_text, value[:4])) + (", ..." if len(value) > 4 else "")
        return f"({shown})"
    return f"{value:g}" if isinstance(value, float) else str(value)


_HINTS = get_type_hints(Modality)
_COLOURS, _DIRECTIONS = frozenset({"rgb"}), frozenset({"normals"})

ModalityTable = dict[str, Modality]

_ROWS = (
    Modality("rgb", mean=IMAGENET_MEAN, std=IMAGENET_STD),
    Modality("norm_rgb", mean=IMAGENET_MEAN, std=IMAGENET_STD, norm_pix=True, source="rgb"),
    Modality(
        "depth",
        num_channels=1,
        max_value=65535.0,
        interpolation="nearest",
        loss="l1",
        plot="scalar",
    ),
    Modality(
        "semseg",
        kind="labels",
        num_classes=133,
        stride=4,
        interpolation="nearest",
        loss="cross_entropy",
        plot="labels",
    ),
)


def default_table() -> ModalityTable:
    """The published modalities: rgb, norm_rgb (target only), depth, semseg (133 COCO classes)."""
    return {row.name: row for row in _ROWS}


def make_table(
    declared: Mapping[str, Mapping[str, Any]] | None = None, base: ModalityTable | None = None
) -> ModalityTable:
    """Default table changed and extended by rows declared in a config.

    Args:
        declared: ``{name: {field: value}}`` as read from YAML. A name already in ``base`` changes
            only the given fields.
        base: Table to start from; the default table if ``None``.

    Returns:
        A new table, keeping the order: base rows, then new rows.

    Raises:
        ValueError: All unknown fields, bad values and contradictions, one per line.
    """
    table = dict(default_table() if base is None else base)
    problems: list[str] = []
    for name, row in (declared or {}).items():
        if not isinstance(row, Mapping):
            problems.append(f"modality '{name}': expected a mapping of fields, got {row!r}")
            continue
        fields, bad = _coerce_row(name, row)
        if fields.get("storage") == "float":
            fields.setdefault("max_value", 1.0)
        problems += bad
        if bad:
            continue
        try:
            old = table.get(name)
            table[name] = (
                dataclasses.replace(old, **fields) if old else Modality(name=name, **fields)
            )
        except ValueError as err:
            problems.append(str(err))
    for name in declared or {}:
        row_names = table[name].class_names if name in table else ()
        if row_names and table[name].is_labels and len(row_names) != table[name].num_classes:
            problems.append(
                f"modality '{name}': {len(row_names)} class_names, num_classes is "
                f"{table[name].num_classes}"
            )
    for row_ in table.values():
        if row_.source is not None and row_.source not in table:
            problems.append(f"modality '{row_.name}': source '{row_.source}' is not a modality")
    if problems:
        raise ValueError("\n".join(problems))
    return table


def select(table: ModalityTable, names: Sequence[str]) -> list[Modality]:
    """Rows of ``names`` in that order.

    Raises:
        ValueError: Every unknown name, with the nearest known one.
    """
    problems = []
    for name in names:
        if name not in table:
            problems.append(
                f"unknown modality '{name}'{did_you_mean(name, table)} Known: {', '.join(table)}. "
                "Declare new ones in the config's `modalities:` section."
            )
    if problems:
        raise ValueError("\n".join(problems))
    return [table[name] for name in names]


def _coerce_row(name: str, row: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Check field names and turn YAML scalars and lists into the fields' types."""
    fields: dict[str, Any] = {}
    problems: list[str] = []
    known = [f for f in _HINTS if f != "name"]
    for key, value in row.items():
        if key not in known:
            problems.append(
                f"modality '{name}': unknown field '{key}'{did_you_mean(str(key), known)}"
            )
            continue
        try:
            fields[key] = coerce(value, _HINTS[key])
        except ValueError as err:
            problems.append(f"modality '{name}': {key}: {err}")
    return fields, problems
