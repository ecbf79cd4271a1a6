"""Mixup (Zhang et al., ICLR 2018) and CutMix (Yun et al., ICCV 2019) of images with several labels.

Positions 2k and 2k + 1 of an epoch are mixed with each other, each with the other's share: timm's mode `pair`. Both are
in the same global batch, on the same rank and in the same micro-batch, as long as a device holds an even number of
images; so a sample's partner and share are functions of (seed, epoch, position) on any number of ranks.

Shapes: B batch, C channels or findings, T side, M columns of metadata.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distcxr.data.augment.geometry import rectangle
from distcxr.data.batch import Batch
from distcxr.data.order import BatchPlan, uniform
from distcxr.recipe.augmentation import Augment

_COLUMNS = ("mix_own", "mix_top", "mix_bottom", "mix_left", "mix_right")
_NUMBERS = np.arange(7, dtype=np.uint64)
_STREAM = 0xA09


def mixed_columns(spec: Augment) -> tuple[str, ...]:
    """Names of the parameters: the sample's own share in mixup, 1 without; edges of what CutMix takes from its partner
    in shares of the side, all 0 without."""
    return _COLUMNS if spec.mixes else ()


def draw_mixed(spec: Augment, *, seed: int, epoch: int, positions: NDArray[np.uint64]) -> NDArray[np.float64]:
    """How each sample is mixed, [B, 5]; as its partner is."""
    u = uniform(seed, _STREAM, epoch, positions[:, None] // np.uint64(2), _NUMBERS).T
    is_mixed = u[0] < spec.mix_prob
    is_cut = is_mixed & (u[1] < (spec.mix_switch if spec.mixup and spec.cutmix else float(spec.cutmix > 0)))
    own = _symmetric_beta(np.where(is_cut, spec.cutmix or 1.0, spec.mixup or 1.0), *u[2:5])
    half = np.sqrt(1 - own) / 2  # of the rectangle's sides; it may reach over the edges
    edges = np.clip([u[5] - half, u[5] + half, u[6] - half, u[6] + half], 0, 1)
    return np.column_stack([np.where(is_mixed & ~is_cut, own, 1.0), np.where(is_cut, edges, 0.0).T])


def _symmetric_beta(
    alpha: NDArray[np.float64], u: NDArray[np.float64], v: NDArray[np.float64], w: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Beta(alpha, alpha) of three uniform numbers in [0, 1).

    Source: Devroye, "Random variate generation in one line of code", Winter Simulation Conference 1996.
    """
    with np.errstate(over="ignore", divide="ignore"):  # a small alpha gives infinity, and so 0 or 1
        spread = (1 - u) ** (-1 / alpha) - 1
        offset = 0.5 / np.sqrt(1 + 1 / (spread * np.cos(2 * np.pi * v) ** 2))
    beta: NDArray[np.float64] = np.where(w < 0.5, 0.5 - offset, 0.5 + offset)
    return beta


def check_pairs(spec: Augment, plan: BatchPlan) -> None:
    """ValueError where images are mixed and a device holds an odd number of them at once: one had no partner."""
    size = plan.per_device_batch_size
    if spec.mixes and size % 2:
        raise ValueError(
            f"augment.{spec.mixes}={getattr(spec, spec.mixes):g} mixes pairs of images on one device, which holds "
            f"{size}, an odd number: set train.per_device_batch_size to an even one, with a "
            "train.global_batch_size that it divides"
        )


def mix_images(images: Tensor, parameters: Tensor) -> Tensor:
    """Images [B, C, T, T] mixed with their partners by parameters [B, 5]; B is even."""
    partners = _swapped(images)
    own = parameters[:, 0].view(-1, 1, 1, 1)
    rows, columns = rectangle(parameters[:, 1:], images.shape[-1])
    # 1 and 0 times finite numbers: what is not mixed stays as it is, to the bit.
    return torch.where((rows & columns).unsqueeze(1), partners, own * images + (1 - own) * partners)


def with_mixed_labels(batch: Batch, parameters: Tensor, side: int) -> Batch:
    """The batch with labels and metadata as its images of `side` pixels are mixed: weighed by each sample's share of
    the pixels, which `rectangle` counts.

    The targets become float32. A label is known where it is for every sample that has a share: a guess for the other
    would be taught as a label.
    """
    rows, columns = rectangle(parameters[:, 1:], side)
    cut = rows.sum(dim=(1, 2)) * columns.sum(dim=(1, 2)) / side**2
    own = (parameters[:, 0] * (1 - cut)).unsqueeze(1)

    def mixed(values: Tensor) -> Tensor:
        values = values.float()
        return own * values + (1 - own) * _swapped(values)

    mask = torch.where(own > 0, batch.mask, 1) * torch.where(own < 1, _swapped(batch.mask), 1)
    return replace(batch, targets=mixed(batch.targets), mask=mask, metadata=mixed(batch.metadata))


def _swapped(values: Tensor) -> Tensor:
    """Every row [B, ...] in its partner's place."""
    return values.reshape(len(values) // 2, 2, *values.shape[1:]).flip(1).reshape(values.shape)
