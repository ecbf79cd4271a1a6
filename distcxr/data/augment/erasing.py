"""Random erasing (Zhong et al., AAAI 2020) with timm's choices: one rectangle of a share of the area, filled with the
mean that `augment.normalize` subtracts.

Shapes: B batch, C channels, T side.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from distcxr.data.augment.geometry import rectangle
from distcxr.data.order import uniform
from distcxr.recipe.augmentation import Augment

_COLUMNS = ("erase_top", "erase_bottom", "erase_left", "erase_right")
_TRIES = 10
_ASPECT = 0.3  # height / width is between this and its inverse, evenly on a logarithmic scale
_NUMBERS = np.arange(3 + 2 * _TRIES, dtype=np.uint64)
_STREAM = 0xA08


def erased_columns(spec: Augment) -> tuple[str, ...]:
    """Names of the parameters: edges in shares of the side, all 0 where nothing is erased."""
    return _COLUMNS if spec.erase else ()


def draw_erased(spec: Augment, *, seed: int, epoch: int, positions: NDArray[np.uint64]) -> NDArray[np.float64]:
    """The rectangle of each sample, [B, 4]: the first of ten that fits into the image, or none, as timm chooses."""
    u = uniform(seed, _STREAM, epoch, positions[:, None], _NUMBERS)
    low, high = spec.erase_area
    area = low + (high - low) * u[:, 3 : 3 + _TRIES]
    aspect = np.exp(math.log(_ASPECT) * (2 * u[:, 3 + _TRIES :] - 1))
    heights, widths = np.sqrt(area * aspect), np.sqrt(area / aspect)
    fits = (heights < 1) & (widths < 1)
    first = fits.argmax(axis=1), np.arange(len(u))
    height, width = heights[first[::-1]], widths[first[::-1]]
    top, left = u[:, 1] * (1 - height), u[:, 2] * (1 - width)
    erased = (u[:, 0] < spec.erase) & fits.any(axis=1)
    return np.where(erased, [top, top + height, left, left + width], 0.0).T


def erase(images: Tensor, edges: Tensor) -> Tensor:
    """Normalised images [B, C, T, T] with 0, the mean, in the rectangles `edges` [B, 4]; changes them in place."""
    rows, columns = rectangle(edges, images.shape[-1])
    return images.masked_fill_((rows & columns).unsqueeze(1), 0.0)
