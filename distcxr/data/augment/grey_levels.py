"""Brightness and contrast of grey images [B, 1, S, S], and their normalisation to the network's channels."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from distcxr.recipe.augmentation import Statistics

WHITE = 255.0

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def adjust(grey: Tensor, brightness: Tensor, contrast: Tensor) -> Tensor:
    """Contrast around mid-grey, then brightness (a share of white), both [B]; grey levels stay within 0 to 255.

    Mid-grey rather than the image's mean: a mean over pixels is summed in another order for another batch size, and
    the same sample would then differ in its last bit between world sizes.
    """
    shift = (1 - contrast) * (WHITE / 2) + brightness * WHITE
    return (grey * contrast.view(-1, 1, 1, 1) + shift.view(-1, 1, 1, 1)).clamp(0, WHITE)


def normalize(
    grey: Tensor,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Tensor:
    """Grey levels [B, 1, T, T], 0 to 255, to `dtype` [B, C, T, T], one channel for each mean: one pass over memory."""
    factor, shift = _normalization(mean, std, grey.device)
    shape = (len(grey), len(mean), *grey.shape[2:])
    out = torch.empty(shape, dtype=dtype, device=grey.device, memory_format=memory_format)
    return torch.addcmul(shift, grey, factor, out=out)


@lru_cache(maxsize=32)
def _normalization(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """What a grey level is multiplied with, and what is added, float32 [1, C, 1, 1]; kept, as copying it to a GPU
    waits for the GPU."""
    factor = [1 / (WHITE * s) for s in std]
    shift = [-m / s for m, s in zip(mean, std, strict=True)]
    factor_C, shift_C = torch.tensor([factor, shift], device=device)
    return factor_C.view(1, -1, 1, 1), shift_C.view(1, -1, 1, 1)


def channel_statistics(
    choice: Statistics | str, *, in_chans: int, measured: Statistics | None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std per channel for `augment.normalize`; `dataset` alone needs `measured`, the training split's own."""
    if choice == "imagenet":
        mean, std = IMAGENET
        if in_chans == 1:
            return (sum(mean) / 3,), (sum(std) / 3,)
        return mean, std
    if choice == "half":
        return (0.5,) * in_chans, (0.5,) * in_chans
    own = measured if choice == "dataset" else choice
    assert isinstance(own, Statistics)
    return (own.mean,) * in_chans, (own.std,) * in_chans
