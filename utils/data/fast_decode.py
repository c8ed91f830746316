"""``--fast_decode``: photographs at nearly the same values, in a fraction of the time.

The view is known before the photograph is decoded: libjpeg leaves out the frequencies that a
smaller view does not show, and the smoothing of colours that are stored at half the resolution.
PyTorch's 8-bit kernel resizes instead of Pillow.
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
from multimae.images.views import View, cut
from multimae.nn.tokens import Size
from multimae.specs.modalities import Modality

_SMALLEST = 2  # of DCT scaling: at least 1/2


class Photo:
    """An 8-bit RGB image that is decoded when a view is cut out of it.

    Attributes:
        shape: ``(H, W, 3)``.
    """

    def __init__(self, path: str, stored: bytes | Array, size: Size) -> None:
        """``stored``: a JPEG file, or its pixels."""
        self.path, self._stored = path, stored
        self.shape = (*size, 3)

    def at_least(self, height: float, width: float) -> Array:
        """Pixels, at the smallest scale of libjpeg with that many rows and columns.

        Raises:
            ImageError: The file is damaged.
        """
        if not isinstance(self._stored, bytes):
            return self._stored
        import simplejpeg

        reduced: dict[str, Any] = {}
        if 2 * height <= self.shape[0] and 2 * width <= self.shape[1]:
            reduced = {
                "min_height": math.ceil(height),
                "min_width": math.ceil(width),
                "min_factor": _SMALLEST,
            }
        try:
            return cast(
                Array, simplejpeg.decode_jpeg(self._stored, "RGB", fastupsample=True, **reduced)
            )
        except ValueError as err:
            raise ImageError(
                f"{self.path}: cannot be read ({err}). Replace it, or remove the sample."
            ) from err


def as_photo(
    path: str, modality: Modality, stored: bytes | Array, patch_size: int
) -> Pixels | None:
    """A :class:`Photo`, which transforms take like pixels; ``None`` for whatever else it is."""
    smooth = modality.interpolation != "nearest" and not modality.hflip_negate
    if not (modality.is_photo and smooth):
        return None
    if isinstance(stored, bytes):
        size = jpeg_size(stored)
    else:
        size = (stored.shape[0], stored.shape[1]) if stored.ndim == 3 else None
    if size is None or min(size) < max(1, patch_size // modality.stride):
        return None
    return cast(Pixels, Photo(path, stored, size))


def cut_photo(photo: Photo, modality: Modality, view: View, out: Size) -> Tensor:
    """As :func:`multimae.images.views.cut`, up to small differences.

    Returns:
        uint8 ``(3, h, w)``.

    Raises:
        ImageError: The file is damaged.
    """
    (of_h, of_w), (h, w) = view.image_size, photo.shape[:2]
    # As many rows and columns of the whole image as give the view no fewer than it is asked for.
    image = photo.at_least(out[0] * of_h / view.height, out[1] * of_w / view.width)
    if image.shape[:2] != (h, w) or (of_h, of_w) != (h, w):
        return cut(image, modality, view, out)
    box = image[view.top : view.top + view.height, view.left : view.left + view.width]
    pixels = torch.from_numpy(box).permute(2, 0, 1)[None]
    resized = F.interpolate(pixels, out, mode=modality.interpolation, antialias=True)[0].numpy()
    return torch.from_numpy(np.array(resized[..., ::-1] if view.flip else resized, order="C"))
