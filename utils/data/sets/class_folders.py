"""Samples for classification: one class per sub-folder, any input modalities."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from multimae.images.folders import MultiModalFolder
from multimae.images.pack import AnyPath, to_path
from multimae.images.pixels import Pixels
from multimae.images.preprocess import upload
from multimae.images.views import View, centred_view
from multimae.inference.label_files import own_names
from multimae.nn.tokens import Size, as_size
from multimae.specs.errors import UserError, bullet_list
from multimae.specs.modalities import Modality
from utils.data.transforms import EvalTransform, TrainTransform

DEFAULT_CROP_PCT = 224 / 256
UNCROPPED_SIZE = 384
"""Input size from which evaluation keeps the full shortest side (SPEC section 6)."""
CROP_SCALE = (0.08, 1.0)
# Colour operations of RandAugment; with several modalities they must share all geometry.
COLOUR_OPS = (
    "AutoContrast",
    "Equalize",
    "Invert",
    "PosterizeIncreasing",
    "SolarizeIncreasing",
    "SolarizeAdd",
    "ColorIncreasing",
    "ContrastIncreasing",
    "BrightnessIncreasing",
    "SharpnessIncreasing",
)


class ClassIndex:
    """Class names in the order of their ids."""

    def __init__(self, names: Sequence[str]) -> None:
        """``names`` by id."""
        self.names = tuple(names)
        self._ids = {name: i for i, name in enumerate(self.names)}

    def __len__(self) -> int:
        """Number of classes."""
        return len(self.names)

    def ids(self, samples: Sequence[str], device: torch.device | None = None) -> Tensor:
        """Class ids ``(B,)`` of samples named ``class/name``."""
        return upload(torch.tensor([self._ids[s.partition("/")[0]] for s in samples]), device)

    targets = ids


def data_root(path: str, inputs: Sequence[Modality]) -> AnyPath:
    """The folder of the modality folders: ``path``, or its parent if ``path`` is one of them."""
    root = to_path(path)
    has_modalities, is_modality = (
        all((folder / m.data_folder).is_dir() for m in inputs) for folder in (root, root.parent)
    )
    return root.parent if is_modality and not has_modalities else root


def find_classes(folder: MultiModalFolder, num_classes: int | None = None) -> ClassIndex:
    """Classes of a training set, sorted by name; checks ``num_classes`` unless ``None``.

    Raises:
        UserError: Images without a class folder, or another number of classes.
    """
    names = _class_names(folder)
    if num_classes is not None and len(names) != num_classes:
        raise UserError(
            f"{folder.root} has {len(names)} classes ({', '.join(names[:5])}"
            f"{', ...' if len(names) > 5 else ''}) but nb_classes is {num_classes}: set "
            f"--nb_classes {len(names)}, or check the path.{_not_in_all(folder)}"
        )
    return ClassIndex(names)


def check_classes(folder: MultiModalFolder, classes: ClassIndex) -> None:
    """Raise a UserError if a set has classes that the training set does not have."""
    unknown = sorted(set(_class_names(folder)) - set(classes.names))
    if unknown:
        raise UserError(
            f"{folder.root} has classes that the training set does not have:\n"
            f"{bullet_list(unknown)}\nUse the same class folders in both."
        )


def _not_in_all(folder: MultiModalFolder) -> str:
    """Classes that only some folders of a mix have, for a message."""
    found = {str(part.root): set(_class_names(part)) for part in folder.parts}
    common = set.intersection(*found.values())
    lines = [
        f"'{name}' in {root}" for root, names in found.items() for name in sorted(names - common)
    ]
    return f" Some folders lack classes:\n{bullet_list(lines)}" if lines else ""


def _class_names(folder: MultiModalFolder) -> list[str]:
    keys = own_names(folder)
    loose = [key for key in keys if "/" not in key]
    if loose:
        raise UserError(
            f"{folder.root}: {len(loose)} images lie outside a class folder, such as {loose[0]}. "
            "Classification needs MODALITY/CLASS/NAME."
        )
    return sorted({key.partition("/")[0] for key in keys})


class ClassTrainTransform(TrainTransform):
    """Random resized crop and flip of all modalities; RandAugment or colour jitter of photos.

    With one input RandAugment uses all its operations, with several only colour operations, which
    keep modalities aligned.
    """

    def __init__(
        self,
        modalities: Sequence[Modality],
        input_size: int | Size,
        auto_augment: str = "",
        colour_jitter: float = 0.0,
    ) -> None:
        """See :class:`TrainTransform`.

        Args:
            modalities: Modalities of the inputs.
            input_size: Side of the outputs.
            auto_augment: timm's description of RandAugment, AutoAugment or AugMix; empty: none.
            colour_jitter: Strength of the jitter used instead of it.

        Raises:
            UserError: timm does not know the description, or it moves pixels of one modality.
        """
        super().__init__(modalities, input_size, CROP_SCALE)
        self.augment: Any = None
        alone = len(self.modalities) == 1
        if auto_augment and auto_augment != "none":
            photos = [m.interpolation for m in self.modalities if m.is_photo]
            self.augment = _auto_augment(auto_augment, alone, *photos[:1])
        elif colour_jitter > 0:
            strength = (colour_jitter,) * 3
            self.augment = v2.ColorJitter(*strength)

    def _cut(self, pixels: Pixels, m: Modality, view: View, out: Size | None = None) -> Tensor:
        image = super()._cut(pixels, m, view, out)
        if self.augment is None or not m.is_photo:
            return image
        photo = Image.fromarray(image.permute(1, 2, 0).numpy())
        with _other_generators_seeded():
            changed = np.asarray(self.augment(photo))
        return torch.from_numpy(changed.transpose(2, 0, 1).copy())


class ClassEvalTransform(EvalTransform):
    """Shortest side to ``input_size / crop_pct``, centre crop."""

    def __init__(
        self,
        modalities: Sequence[Modality],
        input_size: int | Size,
        crop_pct: float = DEFAULT_CROP_PCT,
    ) -> None:
        """``crop_pct``: share of the shortest side to keep."""
        super().__init__(modalities, input_size)
        self.crop_pct = crop_pct

    def draw_view(self, size: Size) -> View:
        """Centred view."""
        return centred_view(size, self.input_size, self.crop_pct)


def default_crop_pct(input_size: int | Size) -> float:
    """Share of the shortest side that evaluation keeps at an input size."""
    return DEFAULT_CROP_PCT if min(as_size(input_size)) < UNCROPPED_SIZE else 1.0


def _auto_augment(description: str, alone: bool, interpolation: str = "bicubic") -> Any:
    # timm takes two seconds to import; --help must not wait for it.
    from timm.data import auto_augment as timm_augment

    resample = Image.Resampling[interpolation.upper()]
    options = {"img_mean": (124, 116, 104), "interpolation": resample}
    try:
        if description.startswith("rand"):
            ops = None if alone else list(COLOUR_OPS)
            return _clamp_posterize(timm_augment.rand_augment_transform(description, options, ops))
        if not alone:
            raise ValueError("only rand-... keeps several modalities aligned")
        if description.startswith("augmix"):
            return _clamp_posterize(timm_augment.augment_and_mix_transform(description, options))
        return _clamp_posterize(timm_augment.auto_augment_transform(description, options))
    except (AssertionError, ValueError, KeyError) as err:
        raise UserError(f"--aa {description}: {err or 'timm does not know it'}") from err


def _clamp_posterize(augment: Any) -> Any:
    """Keep at least one bit: timm's strongest Posterize keeps none, an error since Pillow 13."""
    policies = getattr(augment, "policy", None) or [augment.ops]
    for op in (op for policy in policies for op in policy):
        if op.name.startswith("Posterize"):
            op.level_fn = partial(_at_least_one_bit, op.level_fn)
    return augment


def _at_least_one_bit(level_fn: Any, level: float, hparams: Any) -> tuple[int]:
    return (max(1, level_fn(level, hparams)[0]),)


@contextmanager
def _other_generators_seeded() -> Iterator[None]:
    """Seed python's and numpy's generators, which timm draws from, by torch's; then restore."""
    seed = int(torch.randint(0, 2**32, (), dtype=torch.int64))
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


def mix(
    mixup: Any, x: Mapping[str, Tensor], target: Tensor, modalities: Sequence[Modality]
) -> tuple[dict[str, Tensor], Tensor]:
    """Apply the same Mixup or CutMix to every modality.

    timm's Mixup mixes all images as one stack of channels. An extra channel, 1 for one partner of a
    pair and 0 for the other, becomes the mixing weight of every pixel: label maps, which cannot be
    blended, are taken from the partner with the larger weight.

    The middle sample of an odd batch (one without its bad samples) is paired with itself and does
    not change.

    Args:
        mixup: ``timm.data.Mixup``; it pairs sample ``i`` with ``B - 1 - i``.
        x: Model inputs, images (B, C, H/s, W/s) or ids (B, H/s, W/s).
        target: Class ids (B,).
        modalities: Modalities of ``x``.

    Returns:
        The mixed inputs, and soft targets (B, classes).
    """
    if len(target) % 2:
        middle = len(target) // 2
        indices = [*range(middle + 1), *range(middle, len(target))]
        even = {name: value[indices] for name, value in x.items()}
        mixed, soft = mix(mixup, even, target[indices], modalities)
        kept = [i for i in range(len(indices)) if i != middle + 1]
        return {name: value[kept] for name, value in mixed.items()}, soft[kept]
    width = max(x[m.name].shape[-1] * m.stride for m in modalities)
    height = max(x[m.name].shape[-2] * m.stride for m in modalities)
    images = [m for m in modalities if not m.is_labels]
    batch = len(target)
    first = (torch.arange(batch, device=target.device) < batch // 2).float()
    owner = first.view(-1, 1, 1, 1).expand(-1, 1, height, width)
    grown = [_enlarge(x[m.name], m.stride) for m in images]
    stack, soft = mixup(torch.cat([owner, *grown], dim=1).contiguous(), target)
    own = torch.where(first.view(-1, 1, 1) > 0, stack[:, 0], 1 - stack[:, 0])
    out: dict[str, Tensor] = {}
    start = 1
    for m in images:
        channels = x[m.name].shape[1]
        out[m.name] = stack[:, start : start + channels, :: m.stride, :: m.stride]
        start += channels
    for m in modalities:
        if m.is_labels:
            keep = own[:, :: m.stride, :: m.stride] >= 0.5
            out[m.name] = torch.where(keep, x[m.name], x[m.name].flip(0))
    return {m.name: out[m.name] for m in modalities}, soft


def _enlarge(x: Tensor, stride: int) -> Tensor:
    return x.repeat_interleave(stride, -1).repeat_interleave(stride, -2) if stride > 1 else x
