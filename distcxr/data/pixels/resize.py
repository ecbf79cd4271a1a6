"""Resizing of grey images: Pillow's antialiased bilinear, which every loader has to match within one grey level."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray


def resize_grey(image_HW: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Resize to a square of `size` pixels: uint8 [size, size]; the image itself where it has that size.

    A triangle filter as wide as the reduction, its weights renormalised at the border: Pillow's bilinear, except that
    Pillow rounds between the two axes and this does not, so they differ by at most one grey level. A non-square image
    is squashed, each axis scaled by its own factor: nothing is cropped, so no finding at the rim is lost. NIH's images
    are all square. Holds the GIL for microseconds.
    """
    if image_HW.shape == (size, size):
        return image_HW
    from distcxr.data.pixels.kernels import resize

    height, width = image_HW.shape
    resized = np.empty((size, size), dtype=np.uint8)
    resize(np.ascontiguousarray(image_HW), *axis_filter(height, size), *axis_filter(width, size), resized)
    return resized


def resize_rim(image_HW: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """The outermost pixels of `resize_grey`'s result alone, uint8 [4, size]: top, bottom, left, right."""
    from distcxr.data.pixels.kernels import resize

    rows, columns = axis_filter(image_HW.shape[0], size), axis_filter(image_HW.shape[1], size)
    rim = np.empty((4, size), dtype=np.uint8)
    for side, end in enumerate((slice(0, 1), slice(size - 1, size))):
        resize(image_HW, *(table[end] for table in rows), *columns, rim[side : side + 1])
        start, count, weight = (table[end] for table in columns)
        strip = np.ascontiguousarray(image_HW[:, start[0] : start[0] + count[0]])
        resize(strip, *rows, np.zeros_like(start), count, weight, rim[2 + side].reshape(size, 1))
    return rim


@functools.lru_cache(maxsize=256)
def axis_filter(length: int, size: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Along one axis: first source pixel [S] and number of them [S], and their weights [S, taps] that sum to one."""
    from distcxr.data.pixels.kernels import WEIGHT_BITS

    scale = length / size
    radius = max(scale, 1.0)
    centre = (np.arange(size) + 0.5) * scale
    start = np.maximum((centre - radius + 0.5).astype(np.int64), 0)
    count = np.minimum((centre + radius + 0.5).astype(np.int64), length) - start
    source = start[:, None] + np.arange(count.max())
    weight = np.clip(1 - np.abs(source + 0.5 - centre[:, None]) / radius, 0, None)
    weight[source >= (start + count)[:, None]] = 0
    weight /= weight.sum(axis=1, keepdims=True)
    units = np.round(weight * 2**WEIGHT_BITS).astype(np.int64)
    units[np.arange(size), units.argmax(axis=1)] += 2**WEIGHT_BITS - units.sum(axis=1)  # flat areas stay as they are
    return start, count, units
