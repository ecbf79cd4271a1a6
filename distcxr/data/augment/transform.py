"""What a recipe's `augment` asks for: its parameters, and their effect on images, one after the other."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distcxr.data.augment.erasing import draw_erased, erase, erased_columns
from distcxr.data.augment.geometry import center_crop, crop, flip, smaller, warp
from distcxr.data.augment.grey_levels import WHITE, adjust, normalize
from distcxr.data.augment.mixing import draw_mixed, mix_images, mixed_columns, with_mixed_labels
from distcxr.data.augment.operations import change
from distcxr.data.augment.own_change import draw_own, own_columns
from distcxr.data.augment.rand_augment import draw_operations, operation_columns
from distcxr.data.batch import Batch
from distcxr.data.order import uniform
from distcxr.own_parts import part
from distcxr.recipe.augmentation import Augment

_RANDOM = ("flip", "rotate_deg", "translate_x", "translate_y", "scale", "crop_x", "crop_y", "brightness", "contrast")
_AFFINE = ("x_from_x", "y_from_x", "x_from_y", "y_from_y", "x_shift", "y_shift")
COLUMNS = _RANDOM + _AFFINE
"""Parameters of a sample. flip is 0 or 1; translate in shares of the side; crop_x, crop_y in [0, 1] of the free range;
scale and contrast are factors; brightness is added to pixels in [0, 1]. The others follow from these: where `warp`
finds an output pixel in the input, flip included, both in [-1, 1] from edge to edge."""

WARPED = slice(len(_RANDOM), None)
"""The columns that `warp` takes."""

_FURTHER = {
    "rand_augment": (operation_columns, draw_operations),
    "erase": (erased_columns, draw_erased),
    "mix": (mixed_columns, draw_mixed),
    "function": (own_columns, draw_own),
}
"""What has parameters of its own, after `COLUMNS` and in this order: their names, none where the recipe does not ask
for it, and the function that draws them."""

_RANDOM_NUMBERS = np.arange(len(_RANDOM), dtype=np.uint64)
_IDENTITY = {"scale": 1.0, "crop_x": 0.5, "crop_y": 0.5, "contrast": 1.0}
_STREAM = 0xA06  # keeps these hashes apart from the shuffle's, of the same seed and epoch


def columns_of(spec: Augment) -> tuple[str, ...]:
    """Names of the parameters that `draw_parameters` makes."""
    return COLUMNS + tuple(name for columns, _ in _FURTHER.values() for name in columns(spec))


def draw_parameters(spec: Augment, *, seed: int, epoch: int, positions: NDArray[np.int64]) -> Tensor:
    """Augmentation parameters, float32 [B, P], of the samples at `positions` of an epoch, int64 [B]."""
    at = positions.astype(np.uint64)
    u = uniform(seed, _STREAM, epoch, at[:, None], _RANDOM_NUMBERS)  # [B, random]
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
    further = [draw(spec, seed=seed, epoch=epoch, positions=at) for columns, draw in _FURTHER.values() if columns(spec)]
    parameters = _with_affine(values)
    return torch.cat([parameters, *(torch.from_numpy(one.astype(np.float32)) for one in further)], dim=1)


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


def parts_of(spec: Augment, parameters: Tensor) -> dict[str, Tensor]:
    """Parameters [B, P] by what they are for, `shape` for `COLUMNS`; what the recipe does not ask for, or the
    identity's parameters do not have, is not there."""
    widths = {"shape": len(COLUMNS)} | {name: len(columns(spec)) for name, (columns, _) in _FURTHER.items()}
    if parameters.shape[1] == len(COLUMNS):
        return {"shape": parameters}
    pieces = zip(widths, torch.split(parameters, list(widths.values()), dim=1), strict=True)
    return {name: piece for name, piece in pieces if piece.shape[1]}


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
            parameters: float32 [B, P]; of the identity's, RandAugment, erasing, mixing and a function of the user's
                own do nothing: these parameters have no columns for them.
            dtype: of the result, to which it is rounded once, at the end.

        Returns `dtype` [B, C, T, T], normalised.
        """
        spec, parts = self.spec, parts_of(self.spec, parameters)
        column = dict(zip(COLUMNS, parts["shape"].unbind(1), strict=True))
        grey = pixels.float()
        if spec.rotate_deg or spec.translate or spec.scale != (1.0, 1.0):
            grey = warp(grey, parts["shape"][:, WARPED])  # flips, too
        elif spec.flip:
            grey = flip(grey, column["flip"])
        if spec.center_crop < 1:
            grey = center_crop(grey, round(grey.shape[-1] * spec.center_crop))
        if spec.crop is not None:
            grey = crop(grey, column["crop_x"], column["crop_y"], spec.crop)
        if spec.train_size is not None:
            grey = smaller(grey, spec.train_size)
        if "rand_augment" in parts:
            grey = change(grey, parts["rand_augment"], fill=round(WHITE * sum(self.mean) / len(self.mean)))
        if spec.brightness or spec.contrast:
            grey = adjust(grey, column["brightness"], column["contrast"])
        if spec.function is not None and "function" in parts:
            grey = part(spec.function)(grey, parts["function"])
        if not {"erase", "mix"} & parts.keys():
            return normalize(grey, self.mean, self.std, dtype, memory_format)
        images = normalize(grey, self.mean, self.std)
        if "erase" in parts:
            images = erase(images, parts["erase"])
        if "mix" in parts:
            images = mix_images(images, parts["mix"])
        return images.to(dtype, memory_format=memory_format)

    def with_mixed_labels(self, batch: Batch) -> Batch:
        """The batch with labels as its images are mixed, see `mixing.with_mixed_labels`; itself where none are."""
        parts = parts_of(self.spec, batch.augment)
        if "mix" not in parts:
            return batch
        return with_mixed_labels(
            batch, parts["mix"], self.spec.train_size or input_side(batch.pixels.shape[-1], self.spec)
        )


def input_side(image_size: int, spec: Augment) -> int:
    """Side of what the model sees, in pixels; in training, where `train_size` is given, it is that."""
    return spec.crop if spec.crop is not None else round(image_size * spec.center_crop)


def evaluation_window(image_size: int, spec: Augment) -> tuple[int, int]:
    """What evaluation leaves of a loaded image: (first pixel, side), the same on both axes."""
    # Columns that carry their own number go through the crops themselves, so this can't drift away from them.
    numbers = torch.arange(image_size, device="cpu").expand(1, 1, image_size, image_size)
    if spec.center_crop < 1:
        numbers = center_crop(numbers, round(image_size * spec.center_crop))
    if spec.crop is not None:
        at = identity_parameters(1)[:, COLUMNS.index("crop_x")]  # crop_y is the same
        numbers = crop(numbers, at, at, spec.crop)
    return int(numbers[0, 0, 0, 0]), numbers.shape[-1]
