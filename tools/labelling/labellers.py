"""Labellers: transformers models that predict a modality from RGB images."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from torch import Tensor

from multimae.images.pixels import storage_dtype
from multimae.specs.errors import UserError
from multimae.specs.modalities import Modality
from tools.labelling.options import DepthKind, LabelModelOptions
from utils.training.stepper import Precision

Array = npt.NDArray[Any]
Size = tuple[int, int]
"""``(H, W)``."""

# Model types that predict depth, not its inverse, without a config field for it.
_DEPTH_TYPES = frozenset({"zoedepth", "depth_pro", "glpn"})
# Classes upsampled at a time; bounds memory for large images.
_CLASS_CHUNK = 16
_STRIDE = 32
_ROUNDING = 1e-5


class ClassCountError(UserError):
    """A model predicts another number of classes than the modality has."""


class Labeller(ABC):
    """A model that predicts one modality.

    Attributes:
        modality: The modality.
        about: Model and settings, recorded in the target folder.
        shapes: Input sizes.
    """

    def __init__(
        self,
        modality: Modality,
        name: str,
        short: int | None,
        device: torch.device,
        precision: Precision,
    ) -> None:
        """Load the model ``name``; ``short`` is the shorter side of its input."""
        self.modality, self.name = modality, name
        folder = _download_model(name)
        processor, model = self.load(folder)
        self.model = model.to(device).eval()
        self.config = model.config
        multiple = getattr(processor, "ensure_multiple_of", None) or 1
        self.shapes = input_shapes(processor, multiple if multiple > 1 else _STRIDE, short)
        self.device, self.precision = device, precision
        self.mean, self.std = (
            torch.tensor(getattr(processor, key), device=device).view(3, 1, 1)
            for key in ("image_mean", "image_std")
        )
        self.about: dict[str, object] = {
            "model": name,
            "revision": None if folder == Path(name) else folder.name,
            "short_side": self.shapes.short,
            "square": self.shapes.square,
        }

    @abstractmethod
    def load(self, folder: Path) -> tuple[Any, Any]:
        """Image processor and model."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Scores ``(B, C, h, w)`` in float32 for normalised images ``(B, 3, h, w)``."""

    @abstractmethod
    def image(self, scores: Tensor, size: Size) -> Array:
        """The image to store, of ``size``, from the scores ``(C, h, w)`` of one sample.

        Raises:
            ValueError: The scores are not finite.
        """

    @torch.inference_mode()
    def label(self, inputs: Tensor, sizes: Sequence[Size]) -> list[Array | str]:
        """Predict the images to store.

        Args:
            inputs: Resized images, uint8 ``(B, 3, h, w)``, B >= number of ``sizes``.
            sizes: Sizes of the stored images.

        Returns:
            For each size the image, or an error message.
        """
        x = inputs.to(self.device, non_blocking=True).float() / 255
        with self.precision.autocast():
            scores = self.forward((x - self.mean) / self.std)
        images: list[Array | str] = []
        for one, size in zip(scores, sizes, strict=False):
            try:
                images.append(self.image(one, size))
            except ValueError as err:
                images.append(str(err))
        return images


class DepthLabeller(Labeller):
    """Depth, near = small, scaled per image to the range that the modality stores.

    Depth models predict scale and shift poorly, and pre-training standardizes depth per image,
    which cancels any positive affine map. Inverse depth ``d`` is stored as ``max d - d``: it has
    the order of depth and stays bounded at infinity (sky, d = 0).
    """

    def __init__(
        self,
        modality: Modality,
        name: str,
        short: int | None,
        device: torch.device,
        precision: Precision,
        output: DepthKind = "auto",
    ) -> None:
        """Load the model; ``output`` is what it predicts. See :class:`Labeller`."""
        super().__init__(modality, name, short, device, precision)
        self.inverse = output == "inverse" or (
            output == "auto" and not _predicts_depth(self.config)
        )
        self.about["predicts"] = "inverse depth" if self.inverse else "depth"

    def load(self, folder: Path) -> tuple[Any, Any]:
        """Image processor and model."""
        from transformers import AutoModelForDepthEstimation

        return _processor(folder), AutoModelForDepthEstimation.from_pretrained(folder)

    def forward(self, x: Tensor) -> Tensor:
        """Raw prediction ``(B, 1, h, w)``."""
        predicted: Tensor = self.model(pixel_values=x).predicted_depth
        return predicted.float().unsqueeze(1)

    def image(self, scores: Tensor, size: Size) -> Array:
        """Depth from 0 (nearest) to the modality's ``max_value`` (farthest)."""
        depth = (
            F.interpolate(scores[None], size, mode="bicubic", antialias=True)[0, 0].cpu().double()
        )
        if not depth.isfinite().all():
            raise ValueError("the depth model predicts values that are not finite")
        if self.inverse:
            depth = -depth
        low, high = depth.aminmax()
        span = high - low
        if span <= _ROUNDING * depth.abs().max():  # constant, up to resizing errors
            span = span.new_tensor(torch.inf)
        share = (depth - low) / span
        stored = (share * self.modality.max_value).round().numpy()
        return stored.astype(storage_dtype(self.modality))


class ClassLabeller(Labeller):
    """Class id of every pixel, from a model that predicts masks with classes.

    Things and stuff are treated alike, as in the paper's pseudo labels: the score of a class is the
    sum over masks of (class probability) x (pixel probability), without the class "no object".
    No pixel is void.
    """

    def load(self, folder: Path) -> tuple[Any, Any]:
        """Image processor and model.

        Raises:
            ClassCountError: Its number of classes differs from the modality's.
        """
        from transformers import AutoModelForUniversalSegmentation

        model = AutoModelForUniversalSegmentation.from_pretrained(folder)
        classes, modality = int(model.config.num_labels), self.modality
        if classes != modality.num_classes:
            raise ClassCountError(
                f"{self.name} predicts {classes} classes, but modality '{modality.name}' has "
                f"num_classes {modality.num_classes}. Choose a --semseg_model with as many classes "
                f"(133: COCO panoptic), or set --modalities '{{{modality.name}: {{num_classes: "
                f"{classes}}}}}' here and in the pre-training config."
            )
        return _processor(folder), model

    @property
    def class_names(self) -> list[str] | None:
        """Class names by id, if the model has any."""
        by_id = {int(i): str(name) for i, name in (self.config.id2label or {}).items()}
        names = [by_id.get(i, "") for i in range(self.modality.num_classes)]
        named = all(names) and not all(n == f"LABEL_{i}" for i, n in enumerate(names))
        return names if named else None

    def forward(self, x: Tensor) -> Tensor:
        """Score of every class at the input's resolution."""
        out = self.model(pixel_values=x)
        classes = out.class_queries_logits.float().softmax(-1)[..., :-1]
        masks = out.masks_queries_logits.float()
        masks = F.interpolate(masks, x.shape[-2:], mode="bilinear").sigmoid()
        return torch.einsum("bqc,bqhw->bchw", classes, masks)

    def image(self, scores: Tensor, size: Size) -> Array:
        """Class of the highest score."""
        if not scores.isfinite().all():
            raise ValueError("the label model predicts values that are not finite")
        best = scores.new_full(size, -1.0)
        ids = torch.zeros(size, dtype=torch.int32, device=scores.device)
        for first in range(0, len(scores), _CLASS_CHUNK):
            part = scores[None, first : first + _CLASS_CHUNK]
            top, index = F.interpolate(part, size, mode="bilinear")[0].max(0)
            better = top > best
            ids = torch.where(better, index.int() + first, ids)
            best = torch.maximum(best, top)
        return ids.cpu().numpy().astype(storage_dtype(self.modality))


def build_labeller(
    modality: Modality, options: LabelModelOptions, device: torch.device, precision: Precision
) -> Labeller:
    """Build the labeller of a modality.

    Raises:
        UserError: transformers is not installed, or the model cannot be loaded or does not suit
            the modality.
    """
    name = options.semseg_model if modality.is_labels else options.depth_model
    flag = "--semseg_model" if modality.is_labels else "--depth_model"
    try:
        _silence_transformers()
        if modality.is_labels:
            return ClassLabeller(modality, name, options.semseg_size, device, precision)
        return DepthLabeller(
            modality, name, options.depth_size, device, precision, options.depth_output
        )
    except ImportError as err:
        raise UserError(
            f'pseudo labels need the transformers library ({err}): pip install ".[label]"'
        ) from err
    except (OSError, ValueError, HfHubHTTPError) as err:
        why = str(err).strip().split("\n")[0].rstrip(".")
        raise UserError(
            f"{flag} {name}: cannot be loaded ({why}). Give a folder with config.json, "
            "preprocessor_config.json and safetensors weights, or a name on huggingface.co. "
            "Without a network, use a folder made by `hf download NAME --local-dir FOLDER`."
        ) from err


def _silence_transformers() -> None:
    """Disable progress bars and warnings of the library."""
    import transformers

    logging: Any = transformers.logging
    logging.disable_progress_bar()
    logging.set_verbosity_error()


def _download_model(name: str) -> Path:
    """Return a local model folder, downloading it from the Hub if ``name`` is not a folder."""
    if Path(name).is_dir():
        return Path(name)
    return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors"]))


def _processor(folder: Path) -> Any:
    import transformers

    loader: Any = transformers.AutoImageProcessor
    return loader.from_pretrained(folder)


def _predicts_depth(config: Any) -> bool:
    kind = getattr(config, "depth_estimation_type", None)
    return kind == "metric" or config.model_type in _DEPTH_TYPES


def as_tensor(image: Any) -> Tensor:
    """A Pillow RGB image as uint8 ``(3, H, W)``."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


# Aspect ratios of inputs. Neighbours differ by < 21 %: images are distorted by half of that.
_RATIOS = (1.0, 7 / 6, 4 / 3, 3 / 2, 16 / 9, 2.1, 2.5, 3.0)
_DEFAULT_SIDE = 512


@dataclass(frozen=True)
class InputShapes:
    """Input sizes of a model: few, which lets images of many sizes share batches.

    Attributes:
        short: Shorter side in pixels.
        multiple: Both sides are multiples of this.
        square: Resize every image to a square, as the model was trained.
    """

    short: int
    multiple: int
    square: bool

    def input_size(self, width: int, height: int) -> tuple[int, int]:
        """Return ``(width, height)`` of the input for an image of the given size."""
        ratio = max(width, height) / min(width, height)
        nearest = 1.0 if self.square else min(_RATIOS, key=lambda r: abs(math.log(r / ratio)))
        short, long = self._round(self.short), self._round(self.short * nearest)
        return (long, short) if width >= height else (short, long)

    def _round(self, side: float) -> int:
        return max(1, round(side / self.multiple)) * self.multiple


def input_shapes(processor: Any, multiple: int, short: int | None) -> InputShapes:
    """Read the input sizes of a model from its image processor.

    Args:
        processor: Image processor of transformers.
        multiple: Both sides must be multiples of this.
        short: Shorter side, keeping the aspect ratio; ``None``: as the model was trained.
    """
    if short is not None:
        return InputShapes(short, multiple, square=False)
    size = getattr(processor, "size", None)
    shortest, longest, height, width = (
        getattr(size, key, None) for key in ("shortest_edge", "longest_edge", "height", "width")
    )
    if shortest:
        # Equal bounds mean a square, for models with a fixed position table.
        return InputShapes(int(shortest), multiple, square=shortest == longest)
    if height and width:
        keeps = bool(getattr(processor, "keep_aspect_ratio", False))
        return InputShapes(int(min(height, width)), multiple, square=not keeps)
    return InputShapes(_DEFAULT_SIDE, multiple, square=False)
