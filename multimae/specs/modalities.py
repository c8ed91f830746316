"""The modality table: preprocessing, loss and display of every modality.

Models, losses, transforms, evaluation and plots read this table; no other module names a modality.
Configs change or add modalities in YAML::

    modalities:
      semseg: {num_classes: 41}                     # changes a default modality
      normals:                                      # adds a modality
        {kind: image, num_channels: 3, loss: l1, mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5],
         interpolation: nearest, hflip_negate: [0], plot: normals}
"""

from __future__ import annotations

import dataclasses
import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_type_hints

from multimae.specs.coercion import coerce, did_you_mean, repeated

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
VOID = 255
"""Class id of pixels without a class in a ``label_map``."""
VOID_NAMES = frozenset({
    "", "void", "unlabeled", "unlabelled", "unlabel", "not labeled", "not labelled", "unannotated",
    "unknown", "undefined", "unclassified", "ignore", "ignored", "invalid", "none", "null",
    "nodata", "no_data", "no data", "other",
})  # fmt: skip
"""Names of an id 0 that is no class."""
UNIT_16_BIT = 65536.0
"""``robust_unit`` of 16-bit depth in pre-training (SPEC section 5)."""

Kind = Literal["image", "labels"]
Storage = Literal["integer", "float"]
Normalization = Literal["mean_std", "robust", "computed"]
RobustPixels = Literal["valid", "all"]
Interpolation = Literal["bicubic", "bilinear", "nearest"]
Loss = Literal["mse", "l1", "cross_entropy"]
Plot = Literal["rgb", "scalar", "grey", "labels", "normals"]


@dataclass(frozen=True)
class Modality:
    """Spec of a modality.

    Attributes:
        name: Key in batches, state dicts and folder names; letters, digits and ``_``.
        kind: ``image`` (B, C, H, W) of real values, or ``labels`` (B, H, W) of class ids.
        num_channels: Channels of an ``image``.
        num_classes: Number of class ids of ``labels``: valid ids are ``0..num_classes-1``.
        stride: Resolution in the model is ``1/stride`` of full resolution.
        patch_size: Patch side in full-resolution pixels; ``None``: the model's.
        folder: Sub-folder of the data root, or ``.`` for the root itself; ``None``: ``name``.
        suffix: Ending of the file names before the extension; other files are ignored.
        storage: File format: ``integer`` (8 or 16 bits, see ``max_value``) or ``float``.
        normalization: ``mean_std``: ``(x / max_value - mean) / std``. ``robust``: standardised per
            sample with the mean and variance of the middle 80 % of ``x / robust_unit`` (SPEC
            section 5). ``computed``: ``mean_std`` with training-set statistics, which pre-training
            computes and stores with the weights.
        robust_unit: Divisor of ``robust`` before 1e-6 is added to the variance: 65536 for 16-bit
            depth in pre-training, 1 in published semantic segmentation.
        robust_pixels: Pixels in the statistics of ``robust``: ``valid`` ones, or ``all`` including
            padding and invalid ones, but never ``no_data``.
        max_value: Largest stored value (255 for 8-bit, 65535 for 16-bit files). Float: unit of mean
            and std, default 1.
        mean: Per-channel mean on the [0, 1] scale.
        std: Per-channel standard deviation on the [0, 1] scale.
        no_data: Stored value of missing pixels (``.nan`` for floats). They are 0 in the input (in
            labels an extra class) and ignored in statistics and losses.
        interpolation: Interpolation of the transforms. Labels are always ``nearest``.
        hflip_negate: Channels that a horizontal flip mirrors about the middle of the range (the x
            component of surface normals).
        vflip_negate: As ``hflip_negate``, of an upside-down flip (the y component).
        loss: Pre-training loss.
        loss_weight: Weight of the loss.
        norm_pix: Standardise the target per patch.
        source: Makes this an extra *target* that shares data and mask of another modality and is
            not an input (``norm_rgb`` from ``rgb``).
        dim_class_emb: Width of the class embedding of ``labels``.
        class_names: Names by class id, for legends.
        label_map: Stored ids or colours and the class ids that they mean, see
            :mod:`multimae.specs.label_map`; empty: stored ids are class ids. Class id 255 is
            ``no_data``. Other fields are about class ids.
        plot: Display: colours, colour map, grey, palette, or directions.
        plot_channels: Channels to display: three as RGB, or one; empty: the first ones.
    """

    name: str
    kind: Kind = "image"
    num_channels: int = 3
    num_classes: int = 0
    stride: int = 1
    patch_size: int | None = None
    folder: str | None = None
    suffix: str = ""
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
    label_map: tuple[str, ...] = ()
    vflip_negate: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Check for contradictory fields."""
        if self.no_data is not None and math.isnan(self.no_data):
            object.__setattr__(self, "no_data", math.nan)  # one object: NaN equals only itself
        elif self.no_data is not None and self.storage == "float":
            # Pixels are float32, where -99.9 is -99.90000153.
            object.__setattr__(self, "no_data", _as_float32(self.no_data))
        has_void = any(entry.endswith(f"={VOID}") for entry in self.label_map)
        if has_void and self.no_data is None and self.num_classes <= VOID:
            object.__setattr__(self, "no_data", float(VOID))
        problems = list(self._problems())
        if problems:
            raise ValueError(f"modality '{self.name}': " + "; ".join(problems))

    def _problems(self) -> Iterator[str]:
        if not self.name.isidentifier():
            yield "the name must be letters, digits and '_' (it appears in in_domains a-b-c)"
        for name in _FLOATS:
            value = getattr(self, name)
            if not all(map(math.isfinite, value if isinstance(value, tuple) else (value,))):
                yield f"{name} must be finite"
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
        if {"/", "\\"} & set(self.suffix):
            yield "suffix is the ending of a file name, without folders"
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
        targets = {int(entry.rpartition("=")[2]) for entry in self.label_map}
        # A target whose id 0 is void has one class id more than classes.
        wrong = [t for t in targets if t > self.num_classes and t not in (VOID, self.no_data)]
        if wrong:
            yield f"label_map: class id {min(wrong)} is not below num_classes {self.num_classes}"

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
        for key in ("hflip_negate", "vflip_negate", "plot_channels"):
            if any(not 0 <= c < channels for c in getattr(self, key)):
                yield f"{key} must be channel indices below {channels}"
        if self.label_map:
            yield "label_map is for kind: labels"
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
    def has_colour_labels(self) -> bool:
        """Whether files show class ids as colours."""
        return bool(self.label_map) and self.label_map[0].startswith("#")

    @property
    def file_channels(self) -> int:
        """Channels of the files."""
        return (3 if self.has_colour_labels else 1) if self.is_labels else self.num_channels

    @property
    def is_photo(self) -> bool:
        """Whether photometric augmentation applies: 8-bit RGB without ``no_data``."""
        is_colour = not self.is_labels and self.plot in _COLOURS and self.storage == "integer"
        is_8_bit_rgb = self.num_channels == 3 and self.max_value <= 255
        return is_colour and is_8_bit_rgb and self.no_data is None

    @property
    def mirrored_channels(self) -> tuple[int, ...]:
        """``hflip_negate``; without it the x component of normals, as old weights lack it."""
        return self.hflip_negate or (0,) * (self.plot in _DIRECTIONS)

    @property
    def out_channels(self) -> int:
        """Channels a decoder predicts: ``num_channels`` or one logit per class."""
        return self.num_classes if self.is_labels else self.num_channels

    @property
    def data_name(self) -> str:
        """Modality that provides data and mask: ``source``, or the modality itself."""
        return self.source or self.name

    @property
    def data_folder(self) -> str:
        """Sub-folder of the data root that holds the files."""
        return self.folder or self.name


def _as_float32(value: float) -> float:
    """Round to float32; infinite beyond its range."""
    try:
        return float(struct.unpack("f", struct.pack("f", value))[0])
    except OverflowError:
        return math.copysign(math.inf, value)


NOT_PREPARATION = (
    *("name", "folder", "suffix", "source", "loss", "loss_weight", "norm_pix", "plot_channels"),
)
PREPARATION = tuple(f.name for f in dataclasses.fields(Modality) if f.name not in NOT_PREPARATION)
"""Fields that determine how stored values become tokens."""


_HINTS = get_type_hints(Modality)
_FLOATS = tuple(name for name, hint in _HINTS.items() if hint in (float, tuple[float, ...]))
_COLOURS, _DIRECTIONS = frozenset({"rgb"}), frozenset({"normals"})

ModalityTable = dict[str, Modality]

_DEFAULTS = (
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
    return {m.name: m for m in _DEFAULTS}


def make_table(
    declared: Mapping[str, Mapping[str, Any]] | None = None, base: ModalityTable | None = None
) -> ModalityTable:
    """Update a modality table with the modalities declared in a config.

    Args:
        declared: ``{name: {field: value}}`` from YAML. For a name in ``base``, these fields are
            changed; another name adds a modality.
        base: Table to update; default: the default table.

    Returns:
        A new table: modalities of ``base``, then new ones.

    Raises:
        ValueError: Unknown fields, invalid values or contradictions, one per line.
    """
    table = dict(default_table() if base is None else base)
    problems: list[str] = []
    for name, values in (declared or {}).items():
        if not isinstance(values, Mapping):
            problems.append(f"modality '{name}': expected a mapping of fields, got {values!r}")
            continue
        old = table.get(name)
        fields, bad = _coerce_fields(name, values, old.num_classes if old else 0)
        if fields.get("storage") == "float":
            fields.setdefault("max_value", 1.0)
        problems += bad
        if bad:
            continue
        try:
            table[name] = (
                dataclasses.replace(old, **fields) if old else Modality(name=name, **fields)
            )
        except ValueError as err:
            problems.append(str(err))
    for name in declared or {}:
        class_names = table[name].class_names if name in table else ()
        if base is None and repeated(class_names):  # weights keep what they were trained with
            problems.append(f"modality '{name}': two classes are called {repeated(class_names)}")
        if class_names and table[name].is_labels and len(class_names) != table[name].num_classes:
            problems.append(
                f"modality '{name}': {len(class_names)} class_names, num_classes is "
                f"{table[name].num_classes}"
            )
    for m in table.values():
        if m.source is not None and m.source not in table:
            problems.append(f"modality '{m.name}': source '{m.source}' is not a modality")
    if problems:
        raise ValueError("\n".join(problems))
    return table


def select(table: ModalityTable, names: Sequence[str]) -> list[Modality]:
    """Select modalities by name, in that order.

    Raises:
        ValueError: Unknown names, each with the nearest known one.
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


def changed_fields(modality: Modality) -> dict[str, Any]:
    """Non-default fields of a modality, without its name."""
    # A float modality read without max_value gets 1.
    floats = {"max_value": modality.max_value} if modality.storage == "float" else {}
    return floats | {
        f.name: getattr(modality, f.name)
        for f in dataclasses.fields(Modality)
        if f.name != "name" and getattr(modality, f.name) != f.default
    }


def _coerce_fields(
    name: str, values: Mapping[str, Any], num_classes: int
) -> tuple[dict[str, Any], list[str]]:
    """Check field names and convert YAML values to the fields' types.

    ``num_classes`` is that of the modality that they change.
    """
    fields: dict[str, Any] = {}
    problems: list[str] = []
    known = [f for f in _HINTS if f != "name"]
    for key, value in values.items():
        if key not in known:
            problems.append(
                f"modality '{name}': unknown field '{key}'{did_you_mean(str(key), known)}"
            )
            continue
        try:
            if key == "label_map":
                from multimae.specs.label_map import parse_label_map

                value = parse_label_map(value)
            if key == "class_names" and isinstance(value, str):
                from multimae.specs.class_names import names_of_set

                value = names_of_set(value, values.get("num_classes", num_classes))
            fields[key] = coerce(value, _HINTS[key])
        except ValueError as err:
            problems.append(f"modality '{name}': {key}: {err}")
    return fields, problems
