"""Turns, shifts, zooms, flips, crops and rectangles of images [B, 1, S, S], each sample by its own parameters."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def flip(image: Tensor, flipped: Tensor) -> Tensor:
    """Left-right flip of the images [B, 1, S, S] where `flipped` [B] is 1; exact."""
    return torch.where(flipped.view(-1, 1, 1, 1) > 0.5, image.flip(-1), image)


def warp(image: Tensor, affine: Tensor) -> Tensor:
    """Rotation, zoom, shift and flip in one bilinear sampling; what comes from outside the image is black.

    Args:
        image: float32 [B, 1, S, S].
        affine: float32 [B, 6], see `sampling_grid`.
    """
    grid = sampling_grid(affine, image.shape[-1])
    return functional.grid_sample(image, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def sampling_grid(affine: Tensor, side: int) -> Tensor:
    """Where each output pixel is found in the input, x and y in [-1, 1] from edge to edge, float32 [B, S, S, 2].

    The grid is built element by element: `affine_grid` multiplies matrices, which autocast and TF32 round to 8 or 11
    bits, some 40 grey levels on a real X-ray. `grid_sample` gives the same bits for any batch size.

    Args:
        affine: float32 [B, 6]: x from x, y from x, x from y, y from y, shift of x, shift of y.
        side: S, in pixels.
    """
    # float64 for what is B x S numbers only; the sum of both is rounded once more. What is left of the distance to
    # float64 is grid_sample's: .01 grey levels at most at 224 pixels a side, .02 at 512.
    centres = torch.arange(1 - side, side, 2, dtype=torch.float64, device=affine.device) / side
    from_x, from_y, shift = (affine[:, None, None, at : at + 2] for at in (0, 2, 4))  # [B, 1, 1, 2]
    of_column = (from_x * centres.view(1, 1, side, 1)).float()
    of_row = (from_y * centres.view(1, side, 1, 1) + shift).float()
    return of_column + of_row


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


def smaller(image: Tensor, side: int) -> Tensor:
    """The images [B, 1, S, S] at `side` pixels, each the weighted mean of those that it covers (antialiased)."""
    return functional.interpolate(image, size=(side, side), mode="bilinear", antialias=True)


def rectangle(edges: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Which rows, bool [B, S, 1], and which columns, bool [B, 1, S], have their centre within a sample's rectangle.

    Args:
        edges: float32 [B, 4]: top, bottom, left and right in shares of the side; the last of each pair is outside.
        side: S, in pixels.
    """
    centres = (torch.arange(side, device=edges.device) + 0.5) / side
    top, bottom, left, right = edges[:, :, None].unbind(1)  # [B, 1] each
    rows, columns = (top <= centres) & (centres < bottom), (left <= centres) & (centres < right)
    return rows.unsqueeze(2), columns.unsqueeze(1)
