"""Counts the floating-point operations of one image in training."""

from __future__ import annotations

from functools import cache

import torch
from torch.utils.flop_counter import FlopCounterMode

from step_bench.data import build_network

_IMAGES = 2  # BatchNorm over a single position needs more than one


@cache
def flop_per_image(model: str, image_size: int) -> float:
    """Three times those of the forward pass, in convolutions and matrix products: nothing is computed, only counted.

    As is usual, what the first layer saves (no gradient of the images, about 1 %) is not taken off. The backward pass
    is not counted by itself: torch's counter takes convolutions with groups for full ones there (torch 2.11).
    """
    with torch.device("meta"):
        network = build_network(model, image_size, "meta")
        images = torch.empty(_IMAGES, 3, image_size, image_size)
    with FlopCounterMode(display=False) as counter:
        network(images)
    return 3 * counter.get_total_flops() / _IMAGES
