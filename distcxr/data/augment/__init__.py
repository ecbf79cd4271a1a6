"""Augmentation in two halves: random parameters made on the host, pixels changed on the device.

    transform.py     what a recipe's `augment` asks for, one after the other
    geometry.py      turns, shifts, crops and rectangles
    grey_levels.py   brightness, contrast, normalisation
    rand_augment.py  RandAugment's choices; operations.py what each does to pixels
    erasing.py       random erasing
    mixing.py        mixup and CutMix, of images and of labels
    own_change.py    a function of the user's own, tried

The parameters of a sample are a counter-based hash of (seed, epoch, position), so they do not depend on the loader, the
world size or on what ran before. The pixel half is pure functions of (pixels, parameters); it never looks at a
random generator and never waits for the device. It multiplies no matrices and calls nothing else that autocast or TF32
would compute with fewer bits, so an image is the same under every precision.

Shapes: B batch, C channels, S side of the loaded image, T side of what the model sees, P parameters (`columns_of`).
"""

from distcxr.data.augment.transform import (
    COLUMNS,
    WARPED,
    DeviceTransform,
    columns_of,
    draw_parameters,
    evaluation_window,
    identity_parameters,
    input_side,
    without_augmentation,
)

__all__ = [
    "COLUMNS",
    "WARPED",
    "DeviceTransform",
    "columns_of",
    "draw_parameters",
    "evaluation_window",
    "identity_parameters",
    "input_side",
    "without_augmentation",
]
