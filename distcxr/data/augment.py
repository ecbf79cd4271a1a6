"""Augmentation in two halves: parameters drawn on the host, pixels changed on the device.

A draw's parameters are a counter-based hash of (seed, epoch, position), so they do not depend on the loader, the
world size or on what ran before. The pixel half is pure functions of (pixels, parameters); it never looks at a
random generator and never waits for the device.

Shapes: B batch, C channels, S side of the loaded image, T side of what the model sees, P parameters (`COLUMNS`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from distcxr.data.order import hash64
from distcxr.recipe.augment import Augment, Statistics

COLUMNS = ("flip", "rotate_deg", "translate_x", "translate_y", "scale", "crop_x", "crop_y", "brightness", "contrast")
"""Parameters of a draw. flip is 0 or 1; translate in shares of the side; crop_x, crop_y in [0, 1] of the free range;
scale and contrast are factors; brightness is added to pixels in [0, 1]."""

_COLUMN_NUMBERS = np.arange(len(COLUMNS), dtype=np.uint64)
_IDENTITY = (0.0, 0.0, 0.0, 0.0, 1.0, 0.5, 0.5, 0.0, 1.0)
_AUGMENT_STREAM = 0xA06  # keeps these draws apart from the shuffle's, which hashes the same seed and epoch

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def draw_parameters(spec: Augment, *, seed: int, epoch: int, positions: NDArray[np.int64]) -> Tensor:
    """Augmentation parameters of the draws at `positions` of an epoch.

    Returns:
        float32 [B, P].
    """
    bits = hash64(seed, _AUGMENT_STREAM, epoch, positions.astype(np.uint64)[:, None], _COLUMN_NUMBERS)
    u = (bits >> np.uint64(11)) * 2.0**-53  # float64 [B, P] in [0, 1)
    # What has a range of plus or minus something, in one go: a call of numpy costs more than 64 draws.
    reach = {
        "rotate_deg": spec.rotate_deg, "translate_x": spec.translate, "translate_y": spec.translate,
        "brightness": spec.brightness, "contrast": spec.contrast,
    }  # fmt: skip
    around = (2 * u - 1) * [reach.get(name, 0.0) for name in COLUMNS]
    drawn = around.astype(np.float32)
    low, high = spec.scale
    flip, scale, crop_x, crop_y, contrast = map(COLUMNS.index, ("flip", "scale", "crop_x", "crop_y", "contrast"))
    drawn[:, flip] = u[:, flip] < spec.flip
    drawn[:, scale] = low + (high - low) * u[:, scale]
    drawn[:, [crop_x, crop_y]] = u[:, [crop_x, crop_y]]
    drawn[:, contrast] = 1 + around[:, contrast]
    return torch.from_numpy(drawn)


def identity_parameters(num: int) -> Tensor:
    """Parameters that change nothing, float32 [num, P]: crops are taken at the centre, as evaluation does."""
    return torch.tensor(_IDENTITY).repeat(num, 1)


@dataclass(frozen=True)
class DeviceTransform:
    """uint8 grey pixels and their parameters to the model's input, on whichever device they are.

    Attributes:
        spec: the recipe's section.
        mean, std: per channel, in [0, 1]; their length is the number of channels.
    """

    spec: Augment
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, pixels: Tensor, parameters: Tensor) -> Tensor:
        """
        Args:
            pixels: uint8 [B, 1, S, S].
            parameters: float32 [B, P].

        Returns:
            float32 [B, C, T, T], normalised.
        """
        column = dict(zip(COLUMNS, parameters.unbind(1), strict=True))
        image = pixels.float() / 255
        if self.spec.rotate_deg or self.spec.translate or self.spec.scale != (1.0, 1.0):
            image = warp(image, column["rotate_deg"], column["translate_x"], column["translate_y"], column["scale"])
        if self.spec.flip:
            image = flip(image, column["flip"])
        if self.spec.center_crop < 1:
            image = center_crop(image, round(image.shape[-1] * self.spec.center_crop))
        if self.spec.crop is not None:
            image = crop(image, column["crop_x"], column["crop_y"], self.spec.crop)
        if self.spec.brightness or self.spec.contrast:
            image = adjust(image, column["brightness"], column["contrast"])
        return normalize(image, self.mean, self.std)


def flip(image: Tensor, flipped: Tensor) -> Tensor:
    """Left-right flip of those images [B, 1, S, S] whose `flipped` [B] is 1; exact."""
    return torch.where(flipped.view(-1, 1, 1, 1) > 0.5, image.flip(-1), image)


def warp(image: Tensor, rotate_deg: Tensor, translate_x: Tensor, translate_y: Tensor, scale: Tensor) -> Tensor:
    """Rotation, zoom and shift [B] in one bilinear sampling; what comes from outside the image is black.

    Positive angles turn counter-clockwise, positive shifts move the content right and down by that share of the
    side, a scale over 1 enlarges. `grid_sample` gives the same bits for any batch size.
    """
    radians = rotate_deg * (math.pi / 180)
    cos, sin = torch.cos(radians) / scale, torch.sin(radians) / scale
    # The grid maps output to input coordinates in [-1, 1]: undo the shift first, then turn and zoom back.
    x, y = -2 * translate_x, -2 * translate_y
    rows = torch.stack([cos, -sin, cos * x - sin * y, sin, cos, sin * x + cos * y], dim=1)
    grid = functional.affine_grid(rows.view(-1, 2, 3), list(image.shape), align_corners=False)
    return functional.grid_sample(image, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def center_crop(image: Tensor, side: int) -> Tensor:
    """The central `side` pixels of images [B, 1, S, S]."""
    start = (image.shape[-1] - side) // 2
    return image[..., start : start + side, start : start + side]


def crop(image: Tensor, crop_x: Tensor, crop_y: Tensor, side: int) -> Tensor:
    """A square of `side` pixels of each image [B, 1, S, S]; 0.5 in `crop_x`, `crop_y` [B] is the centre."""
    free = image.shape[-1] - side
    span = torch.arange(side, device=image.device)
    columns = (crop_x * (free + 1)).floor().clamp(0, free).long()[:, None] + span  # [B, T]
    rows = (crop_y * (free + 1)).floor().clamp(0, free).long()[:, None] + span
    batch = torch.arange(len(image), device=image.device)[:, None, None]
    return image[batch, 0, rows[:, :, None], columns[:, None, :]].unsqueeze(1)


def adjust(image: Tensor, brightness: Tensor, contrast: Tensor) -> Tensor:
    """Contrast around mid-grey, then brightness, both [B]; clipped to [0, 1].

    Mid-grey rather than the image's mean: a mean over pixels is summed in another order for another batch size, and
    the same draw would then differ in its last bit between world sizes.
    """
    spread = (image - 0.5) * contrast.view(-1, 1, 1, 1) + 0.5
    return (spread + brightness.view(-1, 1, 1, 1)).clamp(0, 1)


def normalize(image: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Grey [B, 1, T, T] in [0, 1] to float32 [B, C, T, T], one channel for each mean."""
    # One number per channel, folded into a multiply and an add; filled on the device, so nothing is copied over.
    channels = [(image - m) / s for m, s in zip(mean, std, strict=True)]
    return torch.cat(channels, dim=1)


def channel_statistics(
    choice: Statistics | str, *, in_chans: int, measured: Statistics | None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std per channel for `augment.normalize`.

    Args:
        choice: the recipe's value.
        measured: the training split's own statistics; needed for `dataset` alone.
    """
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


def input_side(image_size: int, spec: Augment) -> int:
    """Side of what the model sees, in pixels."""
    return spec.crop if spec.crop is not None else round(image_size * spec.center_crop)
