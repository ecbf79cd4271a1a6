"""Resizing of grey images: Pillow's antialiased bilinear, which every loader has to match within one grey level."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def resize_grey(image_HW: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Resize to a square of `size` pixels: uint8 [size, size], possibly read-only.

    A triangle filter as wide as the reduction, its weights renormalised at the border, rounded to uint8 after each
    axis. A non-square image is squashed, each axis scaled by its own factor: nothing is cropped, so no finding at
    the rim is lost. NIH's images are all square.
    """
    if image_HW.shape == (size, size):
        return image_HW
    image = Image.fromarray(image_HW)
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, reducing_gap=None))
