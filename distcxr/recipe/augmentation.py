"""The recipe's `augment`: how images change on the device, and how they are normalised."""

from __future__ import annotations

import re
from typing import Annotated, Literal, NamedTuple

from pydantic import Field, field_validator, model_validator

from distcxr.recipe.section import Fraction, FunctionName, PositiveInt, Section

_Zoom = Annotated[float, Field(ge=1e-3, le=1e3)]
_Alpha = Annotated[float, Field(ge=0, le=100)]
_RANGES = {"m": (0, 10), "mstd": (0, 10), "inc": (0, 1), "n": (1, 10)}
"""Of the numbers in `augment.rand_augment`."""


class RandAugment(NamedTuple):
    """What `augment.rand_augment` asks for."""

    magnitude: float  # 0 to 10
    noise: float  # standard deviation of an operation's magnitude
    increasing: bool  # whether every operation is stronger the higher the magnitude is
    layers: int  # operations that are chosen for an image


class Statistics(Section):
    """Mean and standard deviation of grey values, each in [0, 1]."""

    mean: Fraction
    """Subtracted from pixels in [0, 1]."""
    std: Annotated[float, Field(ge=1e-6, le=1)]
    """Divides what is left; below a millionth it would make infinity of a pixel."""


class Augment(Section):
    """How images change on the device. A sample of an epoch gets the same change with any loader and any world size."""

    flip: Fraction = 0.0
    """Probability of a left-right flip."""
    rotate_deg: Annotated[float, Field(ge=0, le=180)] = 0.0
    """Rotation is drawn from plus or minus this many degrees."""
    translate: Fraction = 0.0
    """Shift along each axis, drawn from plus or minus this share of the side."""
    scale: tuple[_Zoom, _Zoom] = (1.0, 1.0)
    """Zoom is drawn from this range; over 1 enlarges."""
    center_crop: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the side kept around the centre, in training and evaluation."""
    crop: PositiveInt | None = None
    """Side of a crop in pixels: at a random position in training, at the centre in evaluation."""
    train_size: PositiveInt | None = None
    """Side in pixels that training images are made smaller to, on the device and after crops; validation and test see
    the whole size. Of a stage: training at 224 px first, then at `data.image_size`, is faster than all of it there. For
    networks that take images of any size."""
    brightness: Fraction = 0.0
    """Added to pixels in [0, 1], drawn from plus or minus this."""
    contrast: Fraction = 0.0
    """Pixels are spread around mid-grey by a factor drawn from 1 plus or minus this."""
    function: FunctionName | None = None
    """`module:function`, your own change of training images, after the others (docs/own_parts.md)."""
    rand_augment: str | None = None
    """RandAugment in timm's notation, after the changes above but brightness and contrast: `m6-mstd0.5-inc1` is
    magnitude 6 of 10 with noise of standard deviation .5 (0) and operations that grow with the magnitude (inc0: timm's
    older scales); `n2`, which is the default, chooses two operations for an image (docs/augmentation.md)."""
    erase: Fraction = 0.0
    """Probability that a rectangle of the image is filled with the mean of `normalize`, after everything but mixing."""
    erase_area: tuple[Fraction, Fraction] = (0.02, 1 / 3)
    """The rectangle's share of the area is drawn from this range."""
    mixup: _Alpha = 0.0
    """Mixup: pairs of images are averaged, with shares drawn from Beta(alpha, alpha), and so are their labels; this is
    alpha, 0 for none. A label is known where both images' are. Needs an even number of images on each device, and a
    loss that takes labels between 0 and 1."""
    cutmix: _Alpha = 0.0
    """CutMix: a rectangle of each of the two images comes from the other; this is alpha, the rest as for `mixup`."""
    mix_prob: Fraction = 1.0
    """Probability that a pair is mixed."""
    mix_switch: Fraction = 0.5
    """With both, the probability of CutMix where a pair is mixed."""
    normalize: Literal["imagenet", "half", "dataset", "weights"] | Statistics = "imagenet"
    """ImageNet's statistics, 0.5 / 0.5, the training split's own (measured once), those that `model.weights` were
    trained with, or a mean and std."""

    @model_validator(mode="after")
    def _ordered(self) -> Augment:
        if self.scale[0] > self.scale[1]:
            raise ValueError(f"augment.scale must be [low, high], not {list(self.scale)}")
        if not 0 < self.erase_area[0] <= self.erase_area[1]:
            raise ValueError(f"augment.erase_area must be [low, high] with low over 0, not {list(self.erase_area)}")
        return self

    @field_validator("rand_augment")
    @classmethod
    def _in_notation(cls, text: str | None) -> str | None:
        if text is not None:
            _parsed(text)
        return text

    @property
    def operations(self) -> RandAugment | None:
        """`rand_augment`, parsed."""
        return None if self.rand_augment is None else _parsed(self.rand_augment)

    @property
    def mixes(self) -> str:
        """The key that mixes images, `mixup` or `cutmix`; empty where none does."""
        return "mixup" if self.mixup else "cutmix" if self.cutmix else ""


def _parsed(text: str) -> RandAugment:
    """timm's notation, with or without `rand-` before it; what it leaves out is as timm has it."""
    found = {"m": 10.0, "mstd": 0.0, "inc": 0.0, "n": 2.0}
    for part in text.removeprefix("rand-").split("-"):
        match = re.fullmatch(r"(m|mstd|inc|n)(\d+(?:\.\d+)?)", part)
        if match is None:
            raise ValueError(
                f"augment.rand_augment={text}: {part!r} is not m, mstd, inc or n with a number, as in m6-mstd0.5-inc1"
            )
        key, value, (low, high) = match[1], float(match[2]), _RANGES[match[1]]
        whole = key in ("inc", "n")
        if not low <= value <= high or (whole and value % 1):
            kind = "a whole number" if whole else "a number"
            raise ValueError(f"augment.rand_augment={text}: {key} has to be {kind} from {low} to {high}")
        found[key] = value
    return RandAugment(found["m"], found["mstd"], bool(found["inc"]), int(found["n"]))
