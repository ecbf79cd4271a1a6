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

FILL = 115
TABLES_AND_SHARPNESS = OPERATIONS[1:10]  # exact; the rest sample between pixels
OF_TIMM = {"TranslateX": "TranslateXRel", "TranslateY": "TranslateYRel"}
INCREASING = ("Posterize", "Solarize", "Color", "Contrast", "Brightness", "Sharpness")


def images() -> NDArray[np.uint8]:
    """Noise, a gradient with few grey levels, one grey level, and nearly one: uint8 [4, 37, 37]."""
    gradient = (np.add.outer(np.arange(37), np.arange(37)) // 3 + 40).astype(np.uint8)
    flat = np.full((37, 37), 90, dtype=np.uint8)
    nearly = flat.copy()
    nearly[3, 4] = 201
    return np.stack([np.random.default_rng(0).integers(0, 256, (37, 37), dtype=np.uint8), gradient, flat, nearly])


@pytest.mark.parametrize(("strength", "increasing"), [(3, True), (6, True), (6, False)])
def test_an_operation_does_what_timms_does(strength: int, increasing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = Augment(rand_augment=f"m{strength}-n1-inc{increasing:d}")
    drawn = draw_operations(spec, seed=0, epoch=0, positions=np.arange(1000, dtype=np.uint64))
    hparams = {"img_mean": FILL, "interpolation": Image.Resampling.BILINEAR}
    grey = torch.from_numpy(images()).float().unsqueeze(1)
    for number, name in enumerate(OPERATIONS):
        if name == "Color":
            continue
        middle = 1 if name in ("Contrast", "Brightness", "Sharpness") and increasing else 0
        rows = drawn[drawn[:, 0] == number]
        title = OF_TIMM.get(name, name + ("Increasing" if increasing and name in INCREASING else ""))
        op = timm_augment.AugmentOp(title, prob=1.0, magnitude=strength, hparams=hparams)
        for row in (rows[rows[:, 1].argmin()], rows[rows[:, 1].argmax()]):  # with either sign, where it has one
            sign = -1 if row[1] < middle else 1
            monkeypatch.setattr(timm_augment, "_randomly_negate", lambda value, sign=sign: sign * value)
            ours = change(grey, torch.from_numpy(np.tile(row, (4, 1))).float(), fill=FILL)[:, 0].numpy()
            theirs = np.stack([np.asarray(op(Image.fromarray(one))) for one in images()]).astype(np.float64)
            gap = np.abs(ours - theirs)
            if name in TABLES_AND_SHARPNESS:
                assert gap.max() == 0, (name, row[1])
            else:  # places in float32: a value halfway between grey levels, or an edge, may fall on the other side
                assert np.mean(gap <= 1) > 0.998, (name, row[1], gap.max())


def test_layers_follow_one_another_and_what_is_not_applied_changes_nothing() -> None:
    invert, none = (float(OPERATIONS.index(name)) for name in ("Invert", "Color"))
    still = [0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0]
    layers = torch.tensor([[invert, *still, invert, *still], [none, *still, invert, *still], [none, *still] * 2])
    grey = torch.from_numpy(images())[:3].float().unsqueeze(1)
    out = change(grey, layers, fill=0)
    assert torch.equal(out[0], grey[0]) and torch.equal(out[1], 255 - grey[1]) and torch.equal(out[2], grey[2])


def test_operations_and_strengths_are_drawn_as_timm_draws_them() -> None:
    spec = Augment(rand_augment="rand-m6-mstd0.5-inc1")
    assert spec.operations == (6, 0.5, True, 2) and Augment(rand_augment="m9-n3").operations == (9, 0, False, 3)
    drawn = draw_operations(spec, seed=0, epoch=0, positions=np.arange(30_000, dtype=np.uint64)).reshape(-1, 2, 8)
    for layer in (0, 1):
        counts = np.bincount(drawn[:, layer, 0].astype(int), minlength=len(OPERATIONS)) / len(drawn)
        assert counts[1:] == pytest.approx(np.full(14, 0.5 / 15), abs=0.005)
    degrees = drawn[drawn[..., 0] == OPERATIONS.index("Rotate")][:, 1]
    assert np.abs(degrees).mean() == pytest.approx(18, abs=0.1) and np.abs(degrees).std() == pytest.approx(1.5, abs=0.1)
    assert (degrees > 0).mean() == pytest.approx(0.5, abs=0.05)
    together = drawn[:, 0, 0] > 0, drawn[:, 1, 0] > 0
    assert np.mean(together[0] & together[1]) == pytest.approx((14 / 30) ** 2, abs=0.01)  # layers are independent
