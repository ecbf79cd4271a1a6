"""RandAugment's choices (Cubuk et al., 2020), as timm draws them: which operations, how strong, in which direction.

An image gets `layers` operations, each one of timm's fifteen with the same probability and applied with probability
.5. All fifteen are in, as EVA-X's scripts for ChestX-ray14 have them (`rand-m6-mstd0.5-inc1`): inversion and
solarisation, too, however unlike an X-ray an inverted one is. `Color` changes nothing of a grey image in three equal
channels, so it is drawn, and does nothing.

Shapes: B batch, L layers.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from distcxr.data.order import uniform
from distcxr.recipe.augmentation import Augment

OPERATIONS = (
    "Color", "AutoContrast", "Equalize", "Posterize", "SolarizeAdd", "Solarize", "Invert", "Contrast", "Brightness",
    "Sharpness", "Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY",
)  # fmt: skip
"""By number: 0 does nothing, and stands for what is not applied; 1 to 8 look every grey level up in a table; then
sharpness; the rest move pixels."""

LAYER_COLUMNS = ("operation", "value", "x_from_x", "y_from_x", "x_from_y", "y_from_y", "x_shift", "y_shift")
"""Parameters of a layer: the operation's number, its argument, and where each output pixel is found in the input."""

_NUMBERS = np.arange(5, dtype=np.uint64)
_STREAM = 0xA0A
_PROBABILITY = 0.5
_STRONGEST = 10.0


def operation_columns(spec: Augment) -> tuple[str, ...]:
    """Names of the parameters."""
    layers = spec.operations.layers if spec.operations else 0
    return tuple(f"{name}_{layer}" for layer in range(1, layers + 1) for name in LAYER_COLUMNS)


def draw_operations(spec: Augment, *, seed: int, epoch: int, positions: NDArray[np.uint64]) -> NDArray[np.float64]:
    """`LAYER_COLUMNS` of every layer, [B, L * 8]."""
    chosen = spec.operations
    assert chosen is not None
    layers = np.arange(chosen.layers, dtype=np.uint64)
    u = np.moveaxis(uniform(seed, _STREAM, epoch, positions[:, None, None], layers[:, None], _NUMBERS), 2, 0)
    operation = np.where(u[1] < _PROBABILITY, np.floor(u[0] * len(OPERATIONS)), 0).astype(np.int64)
    normal = np.sqrt(-2 * np.log1p(-u[2])) * np.cos(2 * np.pi * u[3])  # Box and Muller
    strength = np.clip(chosen.magnitude + chosen.noise * normal, 0, _STRONGEST) / _STRONGEST
    signed = np.where(u[4] < 0.5, -strength, strength)
    value = _arguments(strength, signed, increasing=chosen.increasing)
    value = np.take_along_axis(np.stack(np.broadcast_arrays(*value)), operation[None], axis=0)[0]
    columns = np.stack([operation, value, *_moves(operation, value)], axis=2)  # [B, L, 8]
    return columns.reshape(len(positions), -1)


def _arguments(
    strength: NDArray[np.float64], signed: NDArray[np.float64], *, increasing: bool
) -> list[NDArray[np.float64]]:
    """timm's argument of every operation by its number, for strengths in [0, 1], with a sign and without, [B, L].

    Of `Posterize` the width of a step in grey levels, 2 to the bits that are dropped; one bit is left at least, where
    timm leaves none of magnitudes near the ends: a black image with labels. `Invert` solarises from 0 on.
    """
    nothing = np.zeros_like(strength)
    bits, threshold = np.floor(strength * 4), np.minimum(256, np.floor(strength * 256))
    factor = 1.8 * strength + 0.1
    if increasing:
        bits, threshold, factor = 4 - bits, 256 - threshold, np.maximum(0.1, 1 + 0.9 * signed)
    added = np.minimum(128, np.floor(strength * 110))
    by_name = {
        "Posterize": 2 ** (8 - np.maximum(bits, 1)), "SolarizeAdd": added, "Solarize": threshold, "Contrast": factor,
        "Brightness": factor, "Sharpness": factor, "Rotate": 30 * signed, "ShearX": 0.3 * signed,
        "ShearY": 0.3 * signed, "TranslateX": 0.45 * signed, "TranslateY": 0.45 * signed,
    }  # fmt: skip
    return [by_name.get(name, nothing) for name in OPERATIONS]


def _moves(operation: NDArray[np.int64], value: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """The six last of `LAYER_COLUMNS`, [B, L] each, from edge to edge in [-1, 1]; shears are around the top left
    corner, as PIL's are."""
    of = {name: np.where(operation == OPERATIONS.index(name), value, 0) for name in OPERATIONS[10:]}
    turn = np.radians(of["Rotate"])
    shear_x, shear_y = of["ShearX"], of["ShearY"]
    return [
        np.cos(turn), np.sin(turn) + shear_y, shear_x - np.sin(turn), np.cos(turn),
        2 * of["TranslateX"] + shear_x, 2 * of["TranslateY"] + shear_y,
    ]  # fmt: skip
