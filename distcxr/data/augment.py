"""Augmentation in two halves: random parameters made on the host, pixels changed on the device.

The parameters of a sample are a counter-based hash of (seed, epoch, position), so they do not depend on the loader, the
world size or on what ran before. The pixel half is pure functions of (pixels, parameters); it never looks at a
random generator and never waits for the device. It multiplies no matrices and calls nothing else that autocast or TF32
would compute with fewer bits, so an image is the same under every precision.

Shapes: B batch, C channels, S side of the loaded image, T side of what the model sees, P parameters (`COLUMNS`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from distcxr.data.order import uniform
from distcxr.own_parts import broken, part
from distcxr.recipe.augmentation import Augment, Statistics

_RANDOM = ("flip", "rotate_deg", "translate_x", "translate_y", "scale", "crop_x", "crop_y", "brightness", "contrast")
_AFFINE = ("x_from_x", "y_from_x", "x_from_y", "y_from_y", "x_shift", "y_shift")
COLUMNS = _RANDOM + _AFFINE
"""Parameters of a sample. flip is 0 or 1; translate in shares of the side; crop_x, crop_y in [0, 1] of the free range;
scale and contrast are factors; brightness is added to pixels in [0, 1]. The others follow from these: where `warp`
finds an output pixel in the input, flip included, both in [-1, 1] from edge to edge."""

WARPED = slice(len(_RANDOM), None)
"""The columns that `warp` takes."""

_RANDOM_NUMBERS = np.arange(len(_RANDOM), dtype=np.uint64)
_IDENTITY = {"scale": 1.0, "crop_x": 0.5, "crop_y": 0.5, "contrast": 1.0}
_OWN_COLUMNS = tuple(f"random_{number}" for number in range(8))
"""Further parameters where there is a function of the user's own: numbers in [0, 1] for it."""
_OWN_NUMBERS = np.arange(len(_OWN_COLUMNS), dtype=np.uint64)
_OWN_STREAM = 0xA07
_AUGMENT_STREAM = 0xA06  # keeps these hashes apart from the shuffle's, of the same seed and epoch
_WHITE = 255.0

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def columns_of(spec: Augment) -> tuple[str, ...]:
    """Names of the parameters that `draw_parameters` makes."""
    return COLUMNS if spec.function is None else COLUMNS + _OWN_COLUMNS


def draw_parameters(spec: Augment, *, seed: int, epoch: int, positions: NDArray[np.int64]) -> Tensor:
    """Augmentation parameters, float32 [B, P], of the samples at `positions` of an epoch, int64 [B]; with a function of
    the user's own beside them its random numbers [B, 8]."""
    u = uniform(seed, _AUGMENT_STREAM, epoch, positions.astype(np.uint64)[:, None], _RANDOM_NUMBERS)  # [B, random]
    # All columns with a range of plus or minus something at once: a call of numpy costs more than 64 samples.
    reach = {
        "rotate_deg": spec.rotate_deg, "translate_x": spec.translate, "translate_y": spec.translate,
        "brightness": spec.brightness, "contrast": spec.contrast,
    }  # fmt: skip
    around = (2 * u - 1) * [reach.get(name, 0.0) for name in _RANDOM]
    values = around.astype(np.float32)
    low, high = spec.scale
    flip, scale, crop_x, crop_y, contrast = map(_RANDOM.index, ("flip", "scale", "crop_x", "crop_y", "contrast"))
    values[:, flip] = u[:, flip] < spec.flip
    values[:, scale] = low + (high - low) * u[:, scale]
    values[:, [crop_x, crop_y]] = u[:, [crop_x, crop_y]]
    values[:, contrast] = 1 + around[:, contrast]
    parameters = _with_affine(values)
    if spec.function is None:
        return parameters
    own = uniform(seed, _OWN_STREAM, epoch, positions.astype(np.uint64)[:, None], _OWN_NUMBERS)
    return torch.cat([parameters, torch.from_numpy(own.astype(np.float32))], dim=1)


def identity_parameters(num: int, **changed: float) -> Tensor:
    """The same parameters for `num` images, float32 [num, P]: they change nothing but what is `changed`, by the names
    of random columns. Crops are taken at the centre, as evaluation does."""
    row = np.array([[(_IDENTITY | changed).get(name, 0.0) for name in _RANDOM]], dtype=np.float32)
    return _with_affine(row).repeat(num, 1)


def _with_affine(values: NDArray[np.float32]) -> Tensor:
    """Random columns [B, 9], then those of the affine map, float32 [B, P]. The map is computed here, in float64, so
    that CPUs and GPUs sample at the same positions.

    Positive angles turn counter-clockwise, positive shifts move the content right and down by that share of the
    side, a scale over 1 enlarges; a flip comes last.
    """
    flip, degrees, translate_x, translate_y, scale = values[:, :5].astype(np.float64).T
    cos, sin = np.cos(np.radians(degrees)) / scale, np.sin(np.radians(degrees)) / scale
    # Output to input coordinates: undo the flip, then the shift, then turn and zoom back.
    x, y, mirror = -2 * translate_x, -2 * translate_y, 1 - 2 * flip
    affine = [cos * mirror, sin * mirror, -sin, cos, cos * x - sin * y, sin * x + cos * y]
    return torch.from_numpy(np.column_stack([values, *affine]).astype(np.float32))


def without_augmentation(spec: Augment) -> Augment:
    """The spec with crops and normalisation alone, as evaluation applies it."""
    changes = {name: field.default for name, field in Augment.model_fields.items() if name not in _NO_AUGMENTATION}
    return spec.model_copy(update=changes)


_NO_AUGMENTATION = ("center_crop", "crop", "normalize")


@dataclass(frozen=True)
class DeviceTransform:
    """uint8 grey pixels and their parameters to the model's input, on whichever device they are.

    What the spec does not ask for is not computed, whatever the parameters: without augmentation a pixel is exactly
    itself.
    """

    spec: Augment
    mean: tuple[float, ...]  # per channel, in [0, 1], as `std`; their length is the number of channels
    std: tuple[float, ...]

    def __call__(
        self,
        pixels: Tensor,
        parameters: Tensor,
        dtype: torch.dtype = torch.float32,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> Tensor:
        """
        Args:
            pixels: uint8 [B, 1, S, S].
            parameters: float32 [B, P], and the random numbers of a function of the user's own, which is not called
                without them: the identity's parameters have none.
            dtype: of the result, to which it is rounded once, at the end.

        Returns `dtype` [B, C, T, T], normalised.
        """
        own, parameters = parameters[:, len(COLUMNS) :], parameters[:, : len(COLUMNS)]
        spec, column = self.spec, dict(zip(COLUMNS, parameters.unbind(1), strict=True))
        grey = pixels.float()
        if spec.rotate_deg or spec.translate or spec.scale != (1.0, 1.0):
            grey = warp(grey, parameters[:, WARPED])  # flips, too
        elif spec.flip:
            grey = flip(grey, column["flip"])
        if spec.center_crop < 1:
            grey = center_crop(grey, round(grey.shape[-1] * spec.center_crop))
        if spec.crop is not None:
            grey = crop(grey, column["crop_x"], column["crop_y"], spec.crop)
        if spec.brightness or spec.contrast:
            grey = adjust(grey, column["brightness"], column["contrast"])
        if spec.function is not None and own.shape[1]:
            grey = part(spec.function)(grey, own)
        return normalize(grey, self.mean, self.std, dtype, memory_format)


def flip(image: Tensor, flipped: Tensor) -> Tensor:
    """Left-right flip of the images [B, 1, S, S] where `flipped` [B] is 1; exact."""
    return torch.where(flipped.view(-1, 1, 1, 1) > 0.5, image.flip(-1), image)


def warp(image: Tensor, affine: Tensor) -> Tensor:
    """Rotation, zoom, shift and flip in one bilinear sampling; what comes from outside the image is black.

    The grid is built element by element: `affine_grid` multiplies matrices, which autocast and TF32 round to 8 or 11
    bits, some 40 grey levels on a real X-ray. `grid_sample` gives the same bits for any batch size.

    Args:
        image: float32 [B, 1, S, S].
        affine: float32 [B, 6], the last columns of `COLUMNS`.
    """
    side = image.shape[-1]
    # float64 for what is B x S numbers only; the sum of both is rounded once more. What is left of the distance to
    # float64 is grid_sample's: .01 grey levels at most at 224 pixels a side, .02 at 512.
    centres = torch.arange(1 - side, side, 2, dtype=torch.float64, device=image.device) / side
    from_x, from_y, shift = (affine[:, None, None, at : at + 2] for at in (0, 2, 4))  # [B, 1, 1, 2]
    of_column = (from_x * centres.view(1, 1, side, 1)).float()
    of_row = (from_y * centres.view(1, side, 1, 1) + shift).float()
    grid = of_column + of_row
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


def adjust(grey: Tensor, brightness: Tensor, contrast: Tensor) -> Tensor:
    """Contrast around mid-grey, then brightness (a share of white), both [B]; grey levels stay within 0 to 255.

    Mid-grey rather than the image's mean: a mean over pixels is summed in another order for another batch size, and
    the same sample would then differ in its last bit between world sizes.
    """
    shift = (1 - contrast) * (_WHITE / 2) + brightness * _WHITE
    return (grey * contrast.view(-1, 1, 1, 1) + shift.view(-1, 1, 1, 1)).clamp(0, _WHITE)


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
    factor = [1 / (_WHITE * s) for s in std]
    shift = [-m / s for m, s in zip(mean, std, strict=True)]
    factor_C, shift_C = torch.tensor([factor, shift], device=device)
    return factor_C.view(1, -1, 1, 1), shift_C.view(1, -1, 1, 1)


def check_own_augment(key: str, name: str, side: int) -> None:
    """Try a user's function on two images of `side` pixels.

    Raises PartError: it returns other than images of their shape, or an image that depends on more than itself and its
    random numbers: another number of ranks, or a resumed run, would see another one.
    """
    images = torch.linspace(0, _WHITE, 2 * side * side).view(2, 1, side, side)
    random_BK = torch.linspace(0, 0.99, 2 * len(_OWN_NUMBERS)).view(2, -1)
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


def input_side(image_size: int, spec: Augment) -> int:
    """Side of what the model sees, in pixels."""
    return spec.crop if spec.crop is not None else round(image_size * spec.center_crop)
