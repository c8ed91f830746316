"""``--fast_decode``: faster decoding of photos, with nearly the same values.

A photo is decoded after its view is drawn: libjpeg skips frequencies above the resolution of the
view and the smoothing of subsampled colours. PyTorch's 8-bit kernel resizes instead of Pillow.
"""

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from multimae.images.pixels import Array, ImageError, Pixels
from multimae.images.readers import jpeg_size
from multimae.images.views import UndecodedImage, View, cut
from multimae.nn.tokens import Size
from multimae.specs.modalities import Modality

_MIN_REDUCTION = 2  # libjpeg gains little from scales between 1/2 and 1


class LazyPhoto(UndecodedImage):
    """An 8-bit RGB image that is decoded when a view is cut out of it.

    Attributes:
        shape: ``(H, W, 3)``.
    """

    def __init__(self, path: str, stored: bytes | Array, size: Size) -> None:
        """``stored``: bytes of a JPEG file, or its pixels."""
        self.path, self._stored = path, stored
        self.shape = (*size, 3)

    def decode(self, min_height: float, min_width: float) -> Array:
        """Decode at the smallest libjpeg scale with at least this height and width.

        Raises:
            ImageError: The file is damaged.
        """
        if not isinstance(self._stored, bytes):
            return self._stored
        import simplejpeg

        reduced: dict[str, Any] = {}
        if 2 * min_height <= self.shape[0] and 2 * min_width <= self.shape[1]:
            reduced = {
                "min_height": math.ceil(min_height),
                "min_width": math.ceil(min_width),
                "min_factor": _MIN_REDUCTION,
            }
        try:
            return cast(
                Array, simplejpeg.decode_jpeg(self._stored, "RGB", fastupsample=True, **reduced)
            )
        except ValueError as err:
            raise ImageError(
                f"{self.path}: cannot be read ({err}). Replace it, or remove the sample."
            ) from err

    def cut(self, modality: Modality, view: View, out: Size) -> Tensor:
        """Cut a view, up to small differences.

        Returns:
            uint8 ``(3, h, w)``.

        Raises:
            ImageError: The file is damaged.
        """
        (full_h, full_w), (h, w) = view.image_size, self.shape[:2]
        # The scale at which the view has at least the output's resolution.
        image = self.decode(out[0] * full_h / view.height, out[1] * full_w / view.width)
        if image.shape[:2] != (h, w) or (full_h, full_w) != (h, w):
            return cut(image, modality, view, out)
        box = image[view.top : view.top + view.height, view.left : view.left + view.width]
        pixels = torch.from_numpy(box).permute(2, 0, 1)[None]
        resized = F.interpolate(pixels, out, mode=modality.interpolation, antialias=True)[0].numpy()
        resized = resized[:, ::-1] if view.vflip else resized
        return torch.from_numpy(np.array(resized[..., ::-1] if view.flip else resized, order="C"))


def lazy_photo(
    path: str, modality: Modality, stored: bytes | Array, patch_size: int
) -> Pixels | None:
    """A :class:`LazyPhoto` in place of pixels; ``None`` for anything but an RGB photo."""
    smooth = modality.interpolation != "nearest" and not (
        modality.hflip_negate or modality.vflip_negate
    )
    if not (modality.is_photo and smooth):
        return None
    if isinstance(stored, bytes):
        size = jpeg_size(stored)
    else:
        size = (stored.shape[0], stored.shape[1]) if stored.ndim == 3 else None
    if size is None or min(size) < max(1, patch_size // modality.stride):
        return None
    return cast(Pixels, LazyPhoto(path, stored, size))
