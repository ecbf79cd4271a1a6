"""What RandAugment's operations do to grey images, as PIL does it to 8-bit ones: whole grey levels in, whole ones out.

An image of a batch has one operation of a layer and all are computed for every image, so that nothing has to wait for
the device to find out which image needs what: a table of 256 grey levels, a sampling and a sharpening.

Shapes: B batch, T side, L layers.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from distcxr.data.augment.geometry import sampling_grid
from distcxr.data.augment.grey_levels import WHITE
from distcxr.data.augment.rand_augment import LAYER_COLUMNS, OPERATIONS

_LEVELS = 256
_SHARPNESS = OPERATIONS.index("Sharpness")


def change(grey: Tensor, parameters: Tensor, *, fill: float) -> Tensor:
    """Every layer's operation, one after the other.

    Args:
        grey: float32 [B, 1, T, T], 0 to 255; rounded to whole grey levels.
        parameters: float32 [B, L * 8], `LAYER_COLUMNS` of each layer.
        fill: grey level of what comes from outside the image.
    """
    levels = (grey + 0.5).floor()
    for layer in torch.split(parameters, len(LAYER_COLUMNS), dim=1):
        operation, value = layer[:, 0], layer[:, 1]
        levels = _looked_up(levels, operation, value)
        operation, value = operation.view(-1, 1, 1, 1), value.view(-1, 1, 1, 1)
        levels = torch.where(operation == _SHARPNESS, _sharpened(levels, value), levels)
        levels = torch.where(operation > _SHARPNESS, _moved(levels, layer[:, 2:], fill), levels)
    return levels


def _looked_up(levels: Tensor, operation: Tensor, value: Tensor) -> Tensor:
    """Grey levels [B, 1, T, T] by their images' tables; `operation` and `value` are [B]."""
    at = levels.flatten(1).long()
    counts = torch.zeros(len(at), _LEVELS, dtype=torch.int64, device=at.device)
    counts.scatter_add_(1, at, torch.ones_like(at))
    tables = _tables(counts, value[:, None])
    number = operation.long().where(operation < _SHARPNESS, 0)
    table = tables.gather(0, number.view(1, -1, 1).expand(1, -1, _LEVELS))[0]
    return table.float().gather(1, at).view_as(levels)


def _tables(counts: Tensor, value: Tensor) -> Tensor:
    """What every operation up to brightness makes of each grey level, float64 [9, B, 256].

    Args:
        counts: pixels of each grey level, int64 [B, 256].
        value: the operation's argument, float32 [B, 1].
    """
    level = torch.arange(_LEVELS, dtype=torch.float64, device=counts.device).expand(counts.shape)
    present, num = counts > 0, counts.sum(dim=1, keepdim=True)
    lowest = level.where(present, _LEVELS).amin(dim=1, keepdim=True)
    highest = level.where(present, -1).amax(dim=1, keepdim=True)
    scale = WHITE / (highest - lowest)  # infinite where there is one grey level
    stretched = (level * scale - lowest * scale).clamp(0, WHITE).trunc().where(highest > lowest, level)
    step = (num - counts.gather(1, highest.long())) // 255
    below = counts.cumsum(dim=1) - counts
    equalized = ((step // 2 + below) // step.clamp(min=1)).clamp(max=255).double().where(step > 0, level)
    posterized = (level / value).floor() * value
    added = (level + value).clamp(max=WHITE).where(level < _LEVELS // 2, level)
    solarized = level.where(level < value, WHITE - level)
    mean = ((counts * level).sum(dim=1, keepdim=True) / num + 0.5).floor()
    return torch.stack(
        [level, stretched, equalized, posterized, added, solarized, solarized, _blended(mean, level, value),
         _blended(torch.zeros_like(mean), level, value)]
    )  # fmt: skip


def _blended(plain: Tensor, levels: Tensor, factor: Tensor) -> Tensor:
    """From `plain`, at factor 0, over the image itself, at 1, and beyond; in float32, as PIL computes it."""
    plain, levels = plain.float(), levels.float()
    return (plain + factor * (levels - plain)).clamp(0, WHITE).trunc()


def _sharpened(levels: Tensor, factor: Tensor) -> Tensor:
    """Blurred or sharpened images; the outermost pixels stay, as PIL leaves them."""
    rows = levels[:, :, :-2] + levels[:, :, 1:-1] + levels[:, :, 2:]
    around = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]  # all nine; the one in the middle counts five times
    inner = levels[:, :, 1:-1, 1:-1]
    changed = levels.clone()
    changed[:, :, 1:-1, 1:-1] = _blended(((around + 4 * inner) / 13 + 0.5).floor(), inner, factor)
    return changed


def _moved(levels: Tensor, affine: Tensor, fill: float) -> Tensor:
    """Sampled bilinearly at `affine` [B, 6], rounded; `fill` where the place is outside the image."""
    grid = sampling_grid(affine, levels.shape[-1])
    inside = ((grid >= -1) & (grid < 1)).all(dim=3).unsqueeze(1)
    found = functional.grid_sample(levels, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return (found + 0.5).floor().where(inside, fill)
