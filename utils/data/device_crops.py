"""``--device_crops``: crops, resizing and flips of photos on the device instead of in the loader.

Loader processes hand over the stored pixels of each crop box, padded to the largest of the batch;
:meth:`UncutBatch.to` resizes a batch after the copy to the device. Applies to 8-bit grey and RGB
images that are interpolated. All others are cut by the loader: a nearest-neighbour cut copies fewer
bytes than its crop box has.

The arithmetic is Pillow's, columns first, in fixed point: weights are multiples of 2**-22, applied
as two parts whose products with 8-bit values have exact sums in float32 (and TF32) in any order. So
a sample has the loader's values, on every device and in every batch.

Shape legend: b batch, c channels, h, w height and width of the padded boxes, y, x of the output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from multimae.images.pixels import Pixels, size_of, storage_dtype
from multimae.images.views import View, stored_box
from multimae.nn.tokens import Size
from multimae.specs.errors import UserError
from multimae.specs.modalities import Modality
from utils.data.batches import BadSample, Batch, Sample
from utils.data.transforms import JointTransform

MAX_RATIO = 8
"""Boxes with more pixels than this multiple of the output are resized by the loader."""
_CHUNK = 32  # samples resized at a time, to bound memory


class Box(NamedTuple):
    """An exact crop box inside the stored pixels of a sample, in pixels, and its flips."""

    left: float
    top: float
    width: float
    height: float
    stored_width: float
    stored_height: float
    flip: float = 0.0
    vflip: float = 0.0


class Resize(NamedTuple):
    """How a modality is resized: output ``(h, w)`` and interpolation."""

    out: Size
    interpolation: str

    def __call__(self, stored_bhwc: Tensor, boxes: Tensor) -> Tensor:
        """Cut and resize stored pixels.

        Args:
            stored_bhwc: uint8 (b, h, w, c), padded at the bottom and on the right.
            boxes: float64 (b, 8), fields of :class:`Box`.

        Returns:
            uint8 (b, c, y, x).
        """
        pairs = zip(*(torch.split(x, _CHUNK) for x in (stored_bhwc, boxes)), strict=True)
        with torch.autocast(stored_bhwc.device.type, enabled=False):
            return torch.cat([self._resize(*pair) for pair in pairs])

    def _resize(self, stored_bhwc: Tensor, boxes: Tensor) -> Tensor:
        _, h, w, c = stored_bhwc.shape
        kernel = _KERNELS[self.interpolation]
        left, top, width, height, stored_w, stored_h, flip, vflip = boxes.unbind(1)
        columns = _weights(kernel, left, width, stored_w, flip, self.out[1], w)
        rows = _weights(kernel, top, height, stored_h, vflip, self.out[0], h)
        x = stored_bhwc.permute(0, 3, 1, 2).contiguous().float().flatten(1, 2)
        narrow = _round(*(x @ part.mT for part in columns)).view(len(boxes), c, h, -1)
        return _round(*(part[:, None] @ narrow for part in rows)).to(torch.uint8)


def _round(coarse: Tensor, fine: Tensor) -> Tensor:
    """The 8-bit value nearest to the sum of two parts, halves up; exact."""
    floor = (coarse + 0.5).floor()
    return (floor + (coarse + 0.5 - floor + fine).floor()).clamp(0, 255)


def _weights(
    kernel: Callable[[Tensor], Tensor],
    start: Tensor,
    length: Tensor,
    stored: Tensor,
    flip: Tensor,
    out: int,
    padded: int,
) -> tuple[Tensor, Tensor]:
    """Weights of the stored pixels in every output pixel, along one axis.

    Args:
        kernel: Weight by distance from the centre of the output pixel.
        start: (b,) start of the box.
        length: (b,) its length.
        stored: (b,) number of stored pixels; padding has no weight.
        flip: (b,) whether to mirror the output.
        out: Number of output pixels.
        padded: Number of stored pixels and padding.

    Returns:
        float32 (b, out, padded): multiples of 2**-10, and what is left, multiples of 2**-22.
    """
    i, pixels = (torch.arange(n, dtype=torch.float64, device=start.device) for n in (out, padded))
    i = torch.where(flip[:, None] > 0, out - 1 - i, i)
    scale = (length / out)[:, None]
    centres = start[:, None] + (i + 0.5) * scale
    # Antialiasing: where the output is smaller, the kernel spans as many more stored pixels.
    distance = (pixels + 0.5 - centres[..., None]) / scale.clamp_min(1.0)[..., None]
    weights = kernel(distance.abs()) * (pixels < stored[:, None])[:, None]
    weights = weights / weights.sum(dim=-1, keepdim=True) * 2.0**22
    weights = (weights.abs() + 0.5).floor() * weights.sign() / 2.0**22  # halves away from zero
    coarse = (weights * 2.0**10).round() / 2.0**10
    return coarse.float(), (weights - coarse).float()


def _bilinear(x: Tensor) -> Tensor:
    return (1 - x).clamp_min(0)


def _bicubic(x: Tensor) -> Tensor:
    """Keys' cubic convolution with a = -1/2 (IEEE ASSP 29, 1981)."""
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


_KERNELS = {"bilinear": _bilinear, "bicubic": _bicubic}


def is_resized(m: Modality) -> bool:
    """Whether the device resizes a modality: interpolated 8-bit grey or RGB."""
    is_8_bit = storage_dtype(m) == np.uint8 and m.num_channels in (1, 3)
    negated = m.hflip_negate or m.vflip_negate
    return is_8_bit and m.interpolation != "nearest" and not negated


def problems(device: str, *, fast_decode: bool) -> Iterator[str]:
    """Options that ``--device_crops`` excludes."""
    if fast_decode:
        yield "device_crops: fast_decode resizes in the loader; use one of the two"
    if torch.device(device).type == "mps":
        yield "device_crops: needs float64, which the device mps lacks; use cuda or cpu"


@dataclass
class UncutBatch(Batch):
    """A batch whose photos are resized when it is copied to the device.

    ``images`` holds ``NAME/stored`` (b, h, w, c) and ``NAME/box`` for each of ``resizes``.
    """

    resizes: Mapping[str, Resize] = field(default_factory=dict)

    def __reduce__(self) -> tuple[Any, ...]:
        """As a batch, with ``resizes``."""
        return _uncut, (self.resizes, *super().__reduce__())

    def to(self, device: torch.device | str) -> Batch:
        """Copy to ``device``; crop, resize and flip there."""
        moved = super().to(device)
        images = dict(moved.images)
        for name, resize in self.resizes.items() if images else ():
            images[name] = resize(images.pop(f"{name}/stored"), images.pop(f"{name}/box"))
        return Batch(images, self.names, self.bad, self.sample_indices, moved.present)


def _uncut(resizes: Mapping[str, Resize], build: Callable[..., Batch], args: Any) -> UncutBatch:
    return UncutBatch(**vars(build(*args)), resizes=resizes)


class DeviceCrops(JointTransform):
    """Draws the views of another transform and leaves photos uncut; see the module."""

    def __init__(self, transform: JointTransform) -> None:
        """Choose the modalities.

        Raises:
            UserError: The device would resize none of them.
        """
        super().__init__(transform.modalities, transform.input_size)
        self.transform = transform
        h, w = self.input_size
        self.resizes = {
            m.name: Resize((h // m.stride, w // m.stride), m.interpolation)
            for m in self.modalities
            if is_resized(m)
        }
        if not self.resizes:
            names = ", ".join(f"'{m.name}'" for m in self.modalities)
            raise UserError(
                f"device_crops: the device resizes 8-bit grey and RGB images with bilinear or "
                f"bicubic interpolation, and none of {names} is one. Drop --device_crops."
            )

    def draw_view(self, size: Size) -> View:
        """View of the other transform."""
        return self.transform.draw_view(size)

    def __call__(self, pixels: Mapping[str, Pixels]) -> dict[str, Tensor]:
        """Tensors of a sample: as of the other transform, photos as stored pixels and box."""
        view = self.draw_view(max(size_of(p) for p in pixels.values()))
        images = {}
        for m in self.modalities:
            found, resize = pixels.get(m.name), self.resizes.get(m.name)
            if resize is not None and found is not None and _fits(found, view, resize.out):
                stored, box = _boxed(found, view)
            else:
                cut = self._placeholder(m) if found is None else self._cut(found, m, view)
                if resize is None:
                    images[m.name] = cut
                    continue
                (h, w), stored = resize.out, cut.permute(1, 2, 0)
                box = Box(0.0, 0.0, w, h, w, h)  # of the output's size: not changed
            images[f"{m.name}/stored"] = stored
            images[f"{m.name}/box"] = torch.tensor(box, dtype=torch.float64)
        return images

    def sample_bytes(self) -> int:
        """Size of a sample with the largest boxes that the loader hands over."""
        photos = (self._placeholder(m).nbytes for m in self.modalities if m.name in self.resizes)
        return super().sample_bytes() + MAX_RATIO * sum(photos)

    def collate(self, samples: Sequence[Sample | BadSample]) -> Batch:
        """Pad stored pixels to the largest of the batch and stack the samples."""
        good = [s.images for s in samples if isinstance(s, Sample)]
        for key in (f"{name}/stored" for name in self.resizes if good):
            h, w = (max(images[key].shape[side] for images in good) for side in (0, 1))
            for images in good:
                x = images[key]
                images[key] = F.pad(x, (0, 0, 0, w - x.shape[1], 0, h - x.shape[0]))
        return UncutBatch(**vars(super().collate(samples)), resizes=self.resizes)


def _fits(pixels: Pixels, view: View, out: Size) -> bool:
    """Whether the box of a view is small enough to be handed over."""
    (left, top, right, bottom), _ = stored_box(size_of(pixels), view)
    return (right - left) * (bottom - top) <= MAX_RATIO * out[0] * out[1]


def _boxed(pixels: Pixels, view: View) -> tuple[Tensor, Box]:
    """Stored pixels (h, w, c) that a view touches, and its exact box in them."""
    outer, exact = stored_box(size_of(pixels), view)
    left, top, right, bottom = np.array(exact, np.float32)  # as Pillow computes
    if isinstance(pixels, Image.Image):
        array = np.array(pixels.crop(outer))
    else:
        array = pixels[outer[1] : outer[3], outer[0] : outer[2]]
    array = array if array.flags.writeable else array.copy()
    h, w = array.shape[:2]
    box = Box(left, top, right - left, bottom - top, w, h, view.flip, view.vflip)
    return torch.from_numpy(array.reshape(h, w, -1)), box
