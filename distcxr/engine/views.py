"""Views of test-time augmentation: an image changed a little, judged again.

A view goes the way of training's augmentation, on the device and after loading, so it is the same with every loader.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

from torch import Tensor

from distcxr.data.augment import DeviceTransform, fixed_parameters


class View(NamedTuple):
    """What a view changes: keys of the recipe's `augment` that switch it on, and the parameter that it sets."""

    spec: dict[str, Any]
    column: str
    value: float


VIEWS = {
    "flip": View({"flip": 1.0}, "flip", 1.0),
    "zoom": View({"scale": (1.1, 1.1)}, "scale", 1.1),
    "rotate_left": View({"rotate_deg": 5.0}, "rotate_deg", 5.0),
    "rotate_right": View({"rotate_deg": 5.0}, "rotate_deg", -5.0),
}
"""By the names of `eval.tta`."""


def through(view: str, transform: DeviceTransform, parameters: Tensor) -> tuple[DeviceTransform, Tensor]:
    """The transform and parameters, float32 [B, P], that show the images of a batch through a view.

    Args:
        transform: of the plain image; whether training flips or turns makes no difference to the view.
        parameters: the identity's.
    """
    spec, column, value = VIEWS[view]
    changed = fixed_parameters(1, **{column: value}).to(parameters.device, non_blocking=True)
    return replace(transform, spec=transform.spec.model_copy(update=spec)), changed.expand(len(parameters), -1)
