"""A function of the user's own that changes training images: its random numbers, and whether it keeps to its contract.

Shapes: B batch, K random numbers.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distcxr.data.augment.grey_levels import WHITE
from distcxr.data.order import uniform
from distcxr.own_parts import broken, part
from distcxr.recipe.augmentation import Augment

_COLUMNS = tuple(f"random_{number}" for number in range(8))
_NUMBERS = np.arange(len(_COLUMNS), dtype=np.uint64)
_STREAM = 0xA07


def own_columns(spec: Augment) -> tuple[str, ...]:
    """Names of the parameters where there is such a function: numbers in [0, 1] for it."""
    return () if spec.function is None else _COLUMNS


def draw_own(spec: Augment, *, seed: int, epoch: int, positions: NDArray[np.uint64]) -> NDArray[np.float64]:
    """The numbers, [B, K]."""
    return uniform(seed, _STREAM, epoch, positions[:, None], _NUMBERS)


def check_own_augment(key: str, name: str, side: int) -> None:
    """Try a user's function on two images of `side` pixels.

    Raises PartError: it returns other than images of their shape, or an image that depends on more than itself and its
    random numbers: another number of ranks, or a resumed run, would see another one.
    """
    images = torch.linspace(0, WHITE, 2 * side * side).view(2, 1, side, side)
    random_BK = torch.linspace(0, 0.99, 2 * len(_NUMBERS)).view(2, -1)
    changed = _changed(name, images, random_BK)
    if not isinstance(changed, Tensor):
        raise broken(key, name, f"returned {type(changed).__name__}")
    if changed.shape != images.shape or changed.dtype != images.dtype:
        raise broken(key, name, f"returned {changed.dtype} {list(changed.shape)} for images {list(images.shape)}")
    if not bool(changed.isfinite().all()):
        raise broken(key, name, "returned grey levels that are not finite")
    if not torch.equal(changed, _changed(name, images, random_BK)):
        raise broken(key, name, "returned something else the second time: take all chance from `random`")
    alone = _changed(name, images[1:], random_BK[1:])
    if not torch.allclose(changed[1:], alone, rtol=0, atol=1e-2):  # grey levels
        raise broken(key, name, "returned an image that depends on others of the batch")


def _changed(name: str, images: Tensor, random_BK: Tensor) -> Tensor:
    with torch.no_grad():
        changed: Tensor = part(name)(images.clone(), random_BK.clone())
    return changed
