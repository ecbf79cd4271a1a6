"""The recipe's `augment`: how images change on the device, and how they are normalised."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from distcxr.recipe.section import Fraction, FunctionName, PositiveInt, Section

_Zoom = Annotated[float, Field(ge=1e-3, le=1e3)]


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
    brightness: Fraction = 0.0
    """Added to pixels in [0, 1], drawn from plus or minus this."""
    contrast: Fraction = 0.0
    """Pixels are spread around mid-grey by a factor drawn from 1 plus or minus this."""
    function: FunctionName | None = None
    """`module:function`, your own change of training images, after the others (docs/own_parts.md)."""
    normalize: Literal["imagenet", "half", "dataset", "weights"] | Statistics = "imagenet"
    """ImageNet's statistics, 0.5 / 0.5, the training split's own (measured once), those that `model.weights` were
    trained with, or a mean and std."""

    @model_validator(mode="after")
    def _ordered(self) -> Augment:
        if self.scale[0] > self.scale[1]:
            raise ValueError(f"augment.scale must be [low, high], not {list(self.scale)}")
        return self
