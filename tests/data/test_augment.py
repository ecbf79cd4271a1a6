"""Augmentation: parameters are a hash of the draw, pixels change by pure functions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from distcxr.data.augment import (
    COLUMNS,
    DeviceTransform,
    adjust,
    center_crop,
    channel_statistics,
    crop,
    draw_parameters,
    flip,
    identity_parameters,
    input_side,
    normalize,
    warp,
)
from distcxr.recipe.augment import Augment, Statistics

FULL = Augment(
    flip=0.5, rotate_deg=10, translate=0.1, scale=(0.8, 1.2), crop=24, brightness=0.1, contrast=0.2, normalize="half"
)


def images(num: int, side: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (num, 1, side, side), dtype=torch.uint8, generator=generator)


def test_a_draw_has_the_same_parameters_in_any_company() -> None:
    together = draw_parameters(FULL, seed=1, epoch=3, positions=np.arange(100))
    alone = draw_parameters(FULL, seed=1, epoch=3, positions=np.array([57]))
    assert torch.equal(together[57], alone[0])
    assert not torch.equal(together, draw_parameters(FULL, seed=1, epoch=4, positions=np.arange(100)))
    assert not torch.equal(together, draw_parameters(FULL, seed=2, epoch=3, positions=np.arange(100)))


def test_parameters_fill_their_ranges() -> None:
    drawn = dict(zip(COLUMNS, draw_parameters(FULL, seed=0, epoch=0, positions=np.arange(20_000)).T, strict=True))
    assert abs(drawn["flip"].mean() - 0.5) < 0.02
    for name, low, high in (
        ("rotate_deg", -10, 10), ("translate_x", -0.1, 0.1), ("scale", 0.8, 1.2), ("crop_y", 0, 1),
        ("brightness", -0.1, 0.1), ("contrast", 0.8, 1.2),
    ):  # fmt: skip
        assert low <= drawn[name].min() < low + 0.02 * (high - low)
        assert high - 0.02 * (high - low) < drawn[name].max() <= high + 1e-6
    correlation = np.corrcoef(drawn["translate_x"], drawn["translate_y"])[0, 1]
    assert abs(correlation) < 0.03


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_bits_do_not_depend_on_the_batch(batch_size: int) -> None:
    transform = DeviceTransform(FULL, (0.5,) * 3, (0.5,) * 3)
    pixels, parameters = images(8), draw_parameters(FULL, seed=0, epoch=0, positions=np.arange(8))
    whole = transform(pixels, parameters)
    assert whole.shape == (8, 3, 24, 24)
    parts = [
        transform(pixels[at : at + batch_size], parameters[at : at + batch_size]) for at in range(0, 8, batch_size)
    ]
    assert torch.equal(torch.cat(parts), whole)


def test_nothing_asked_changes_nothing() -> None:
    pixels = images(4)
    out = DeviceTransform(Augment(), (0.0,), (1.0,))(pixels, identity_parameters(4))
    assert torch.equal(out, pixels.float() / 255)


def test_evaluation_with_full_recipe_is_a_centre_crop() -> None:
    pixels = images(4)
    out = DeviceTransform(FULL, (0.0,), (1.0,))(pixels, identity_parameters(4))
    assert torch.allclose(out, pixels[..., 4:28, 4:28].float() / 255, atol=1e-5)


def test_flip_is_exact_and_only_where_asked() -> None:
    image = images(2).float()
    out = flip(image, torch.tensor([1.0, 0.0]))
    assert torch.equal(out[0], image[0].flip(-1)) and torch.equal(out[1], image[1])


def test_warp_turns_shifts_and_zooms_the_way_it_says() -> None:
    image = torch.zeros(1, 1, 33, 33)
    image[0, 0, 16, 26] = 1  # right of the centre
    zero, one = torch.zeros(1), torch.ones(1)

    def brightest(**changed: torch.Tensor) -> tuple[int, int]:
        values = {"rotate_deg": zero, "translate_x": zero, "translate_y": zero, "scale": one} | changed
        return divmod(int(warp(image, **values).argmax()), 33)

    assert brightest() == (16, 26)
    assert brightest(rotate_deg=torch.tensor([90.0])) == (6, 16)  # counter-clockwise: from the right to the top
    assert brightest(translate_x=torch.tensor([-10 / 33])) == (16, 16)
    assert brightest(translate_y=torch.tensor([5 / 33])) == (21, 26)
    assert brightest(scale=torch.tensor([1.5])) == (16, 31)


def test_crop_reaches_both_edges() -> None:
    image = images(3, side=10).float()
    places = torch.tensor([0.0, 0.5, 1.0])
    out = crop(image, places, places, 4)
    assert torch.equal(out[0], image[0, :, :4, :4])
    assert torch.equal(out[1], center_crop(image, 4)[1])
    assert torch.equal(out[2], image[2, :, 6:, 6:])


def test_brightness_and_contrast() -> None:
    image = torch.tensor([0.5, 0.6, 0.9]).view(1, 1, 1, 3)
    out = adjust(image, torch.tensor([0.1]), torch.tensor([2.0]))
    assert torch.allclose(out.flatten(), torch.tensor([0.6, 0.8, 1.0]))


def test_normalisation() -> None:
    out = normalize(torch.full((2, 1, 4, 4), 0.5), (0.5, 0.25), (0.5, 0.125))
    assert out.shape == (2, 2, 4, 4)
    assert torch.equal(out[:, 0], torch.zeros(2, 4, 4)) and torch.equal(out[:, 1], torch.full((2, 4, 4), 2.0))
    own = Statistics(mean=0.3, std=0.2)
    assert channel_statistics("dataset", in_chans=1, measured=own) == ((0.3,), (0.2,))
    assert channel_statistics(own, in_chans=3, measured=None) == ((0.3,) * 3, (0.2,) * 3)
    assert channel_statistics("imagenet", in_chans=3, measured=None)[0] == (0.485, 0.456, 0.406)
    assert channel_statistics("half", in_chans=1, measured=None) == ((0.5,), (0.5,))


def test_percent_centre_crop() -> None:
    spec = Augment(center_crop=0.75, normalize="half")
    out = DeviceTransform(spec, (0.0,), (1.0,))(images(1), identity_parameters(1))
    assert out.shape[-1] == input_side(32, spec) == 24
    assert torch.equal(out, images(1)[..., 4:28, 4:28].float() / 255)
