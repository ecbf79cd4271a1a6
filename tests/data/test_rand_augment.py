"""RandAugment does to grey images what timm and PIL do to 8-bit ones, and draws as timm draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from timm.data import auto_augment as timm_augment

from distcxr.data.augment.operations import change
from distcxr.data.augment.rand_augment import OPERATIONS, draw_operations
from distcxr.recipe.augmentation import Augment

PUBLISHED = Augment(rand_augment="m6-mstd0.5-inc1")
FILL = 115
EXACT = OPERATIONS[1:10]  # tables and sharpness; the rest sample between pixels


def xrays() -> NDArray[np.uint8]:
    """Noise, a dark gradient with few grey levels, one grey level and nearly one: uint8 [4, 37, 37]."""
    rng = np.random.default_rng(0)
    gradient = (np.add.outer(np.arange(37), np.arange(37)) // 3 + 40).astype(np.uint8)
    flat = np.full((37, 37), 90, dtype=np.uint8)
    nearly = flat.copy()
    nearly[3, 4] = 201
    return np.stack([rng.integers(0, 256, (37, 37), dtype=np.uint8), gradient, flat, nearly])


def by_timm(
    name: str, image: NDArray[np.uint8], strength: float, sign: float, *, increasing: bool
) -> NDArray[np.uint8]:
    known = {"TranslateX": "TranslateXRel", "TranslateY": "TranslateYRel"}
    grown = ("Posterize", "Solarize", "Color", "Contrast", "Brightness", "Sharpness")
    title = known.get(name, name + ("Increasing" if increasing and name in grown else ""))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timm_augment, "_randomly_negate", lambda value: sign * value)
        op = timm_augment.AugmentOp(
            title, prob=1.0, magnitude=strength,
            hparams={"img_mean": FILL, "interpolation": Image.Resampling.BILINEAR},
        )  # fmt: skip
        return np.asarray(op(Image.fromarray(image)))


@pytest.mark.parametrize("increasing", [True, False])
@pytest.mark.parametrize("strength", [3, 6, 9])
def test_an_operation_does_what_timms_does(strength: int, increasing: bool) -> None:
    spec = Augment(rand_augment=f"m{strength}-n1-inc{increasing:d}")
    drawn = draw_operations(spec, seed=0, epoch=0, positions=np.arange(3000, dtype=np.uint64))
    images = xrays()
    for number, name in enumerate(OPERATIONS):
        if name == "Color":
            continue
        rows = drawn[drawn[:, 0] == number]
        for sign in (-1, 1):
            centre = 1 if name in ("Contrast", "Brightness", "Sharpness") and increasing else 0
            row = next((row for row in rows if sign * (row[1] - centre) >= 0), rows[0])
            own_sign = -1 if row[1] < centre else 1
            parameters = torch.from_numpy(np.repeat(row[None], len(images), axis=0)).float()
            out = change(torch.from_numpy(images).float()[:, None], parameters, fill=FILL)[:, 0].numpy()
            theirs = np.stack([by_timm(name, one, strength, own_sign, increasing=increasing) for one in images]).astype(
                np.float64
            )
            gap = np.abs(out - theirs)
            if name in EXACT:
                assert gap.max() == 0, (name, row[1])
            else:  # places in float32: a grey level that lies between two may be rounded to the other
                assert np.mean(gap <= 1) > 0.998, (name, row[1], np.mean(gap > 1), gap.max())
