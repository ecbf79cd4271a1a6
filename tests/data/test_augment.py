"""Augmentation: parameters are a hash of the draw, pixels change by pure functions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from nih_files import real_xrays
from PIL import Image
from torch.nn import functional

from distcxr.data.augment import (
    COLUMNS,
    DeviceTransform,
    draw_parameters,
    evaluation_window,
    identity_parameters,
    input_side,
    without_augmentation,
)
from distcxr.data.augment.geometry import center_crop, crop, flip, warp
from distcxr.data.augment.grey_levels import adjust, channel_statistics, normalize
from distcxr.recipe.augmentation import Augment, Statistics

FULL = Augment(
    flip=0.5, rotate_deg=10, translate=0.1, scale=(0.8, 1.2), crop=24, brightness=0.1, contrast=0.2, normalize="half"
)


def images(num: int, side: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (num, 1, side, side), dtype=torch.uint8, generator=generator)


def test_a_sample_has_the_same_parameters_in_any_batch() -> None:
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


def test_training_sees_smaller_images_and_evaluation_does_not() -> None:
    pixels, spec = images(4, 64), Augment(train_size=16, normalize="half")
    smaller = DeviceTransform(spec, (0.0,), (1 / 255,))(pixels, identity_parameters(4))
    expected = [Image.fromarray(one[0].numpy()).resize((16, 16), Image.Resampling.BILINEAR) for one in pixels]
    assert np.abs(smaller[:, 0].numpy() - np.stack([np.asarray(one) for one in expected])).max() <= 1
    whole = DeviceTransform(without_augmentation(spec), (0.0,), (1 / 255,))(pixels, identity_parameters(4))
    assert torch.equal(whole, pixels.float())


def test_evaluation_of_a_full_recipe_is_a_centre_crop_to_the_bit() -> None:
    pixels, spec = images(4), without_augmentation(FULL)
    assert (spec.crop, spec.normalize, spec.flip, spec.scale) == (24, "half", 0.0, (1.0, 1.0))
    out = DeviceTransform(spec, (0.0,), (1 / 255,))(pixels, identity_parameters(4))
    assert torch.equal(out, pixels[..., 4:28, 4:28].float())


def test_identity_parameters_hardly_move_a_pixel_in_training_either() -> None:
    pixels = images(4)
    out = DeviceTransform(FULL, (0.0,), (1 / 255,))(pixels, identity_parameters(4))
    assert torch.allclose(out, pixels[..., 4:28, 4:28].float(), rtol=0, atol=0.002)


def in_float64(spec: Augment, pixels: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
    """Grey levels [B, T, T] as the words of `COLUMNS` have them, by PyTorch's own sampler and matrices."""
    column = dict(zip(COLUMNS, parameters.double().T, strict=True))
    radians, scale = torch.deg2rad(column["rotate_deg"]), column["scale"]
    turn = torch.stack([radians.cos(), -radians.sin(), radians.sin(), radians.cos()], dim=1).view(-1, 2, 2)
    turn = turn / scale.view(-1, 1, 1)
    shift = turn @ torch.stack([-2 * column["translate_x"], -2 * column["translate_y"]], dim=1)[..., None]
    grid = functional.affine_grid(torch.cat([turn, shift], dim=2), list(pixels.shape), align_corners=False)
    image = functional.grid_sample(pixels.double(), grid, padding_mode="zeros", align_corners=False)
    image = torch.where(column["flip"].view(-1, 1, 1, 1) > 0.5, image.flip(-1), image)
    assert spec.crop is not None
    image = crop(image, column["crop_x"].float(), column["crop_y"].float(), spec.crop) / 255
    contrast, brightness = column["contrast"].view(-1, 1, 1, 1), column["brightness"].view(-1, 1, 1, 1)
    return ((image - 0.5) * contrast + 0.5 + brightness).clamp(0, 1)[:, 0] * 255


@pytest.mark.parametrize("side", [224, 512])
def test_training_sees_what_float64_computes(side: int) -> None:
    spec = FULL.model_copy(update={"crop": side - 16})
    xrays = [Image.open(file).convert("L").resize((side, side)) for file in real_xrays(every=30)]
    pixels = torch.from_numpy(np.stack([np.asarray(xray) for xray in xrays])).unsqueeze(1).repeat(8, 1, 1, 1)
    parameters = draw_parameters(spec, seed=3, epoch=0, positions=np.arange(len(pixels)))
    seen = DeviceTransform(spec, (0.0,), (1 / 255,))(pixels, parameters)[:, 0]
    gap = (seen.double() - in_float64(spec, pixels, parameters)).abs()
    assert gap.max() < 0.01 * side / 224, gap.max()  # float32 places are coarser on a larger image


@pytest.mark.parametrize("precision", ["bf16 autocast", "tf32"])
def test_reduced_precision_around_it_changes_no_bit(precision: str) -> None:
    transform = DeviceTransform(FULL, (0.5,) * 3, (0.25,) * 3)
    pixels, parameters = images(8), draw_parameters(FULL, seed=0, epoch=0, positions=np.arange(8))
    plain = transform(pixels, parameters)
    kept = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else kept)
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16 autocast"):
            assert torch.equal(transform(pixels, parameters), plain)
    finally:
        torch.set_float32_matmul_precision(kept)


@pytest.mark.parametrize("channels", [1, 3])
def test_it_is_rounded_once_and_laid_out_as_asked(channels: int) -> None:
    transform = DeviceTransform(FULL, (0.4,) * channels, (0.3,) * channels)
    pixels, parameters = images(3), draw_parameters(FULL, seed=0, epoch=0, positions=np.arange(3))
    whole = transform(pixels, parameters)
    short = transform(pixels, parameters, torch.bfloat16, torch.channels_last)
    assert short.dtype == torch.bfloat16 and short.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(short, whole.bfloat16())


def test_flip_is_exact_and_only_where_asked() -> None:
    image = images(2).float()
    out = flip(image, torch.tensor([1.0, 0.0]))
    assert torch.equal(out[0], image[0].flip(-1)) and torch.equal(out[1], image[1])


def test_warp_turns_shifts_and_zooms_in_the_documented_directions() -> None:
    image = torch.zeros(1, 1, 33, 33)
    image[0, 0, 16, 26] = 1  # right of the centre

    def brightest(**changed: float) -> tuple[int, int]:
        return divmod(int(warp(image, identity_parameters(1, **changed)[:, -6:]).argmax()), 33)

    assert brightest() == (16, 26)
    assert brightest(rotate_deg=90) == (6, 16)  # counter-clockwise: from the right to the top
    assert brightest(translate_x=-10 / 33) == (16, 16)
    assert brightest(translate_y=5 / 33) == (21, 26)
    assert brightest(scale=1.5) == (16, 31)
    assert brightest(flip=1) == (16, 6)
    assert brightest(flip=1, translate_x=-5 / 33) == (16, 11)  # the flip comes last


def test_crop_reaches_both_edges() -> None:
    image = images(3, side=10).float()
    places = torch.tensor([0.0, 0.5, 1.0])
    out = crop(image, places, places, 4)
    assert torch.equal(out[0], image[0, :, :4, :4])
    assert torch.equal(out[1], center_crop(image, 4)[1])
    assert torch.equal(out[2], image[2, :, 6:, 6:])


def test_brightness_and_contrast() -> None:
    grey = torch.tensor([127.5, 153.0, 229.5]).view(1, 1, 1, 3)
    out = adjust(grey, torch.tensor([0.1]), torch.tensor([2.0]))
    assert torch.allclose(out.flatten(), torch.tensor([153.0, 204.0, 255.0]))


def test_normalisation() -> None:
    out = normalize(torch.full((2, 1, 4, 4), 127.5), (0.5, 0.25), (0.5, 0.125))
    assert out.shape == (2, 2, 4, 4)
    assert torch.allclose(out[:, 0], torch.zeros(2, 4, 4), atol=1e-6)
    assert torch.allclose(out[:, 1], torch.full((2, 4, 4), 2.0))
    own = Statistics(mean=0.3, std=0.2)
    assert channel_statistics("dataset", in_chans=1, measured=own) == ((0.3,), (0.2,))
    assert channel_statistics(own, in_chans=3, measured=None) == ((0.3,) * 3, (0.2,) * 3)
    assert channel_statistics("imagenet", in_chans=3, measured=None)[0] == (0.485, 0.456, 0.406)
    assert channel_statistics("half", in_chans=1, measured=None) == ((0.5,), (0.5,))


def test_percent_centre_crop() -> None:
    spec = Augment(center_crop=0.75, normalize="half")
    out = DeviceTransform(spec, (0.0,), (1 / 255,))(images(1), identity_parameters(1))
    assert out.shape[-1] == input_side(32, spec) == 24
    assert torch.equal(out, images(1)[..., 4:28, 4:28].float())


def test_the_window_is_the_centre() -> None:
    assert evaluation_window(256, Augment()) == (0, 256)
    assert evaluation_window(256, Augment(crop=224)) == (16, 224)
    assert evaluation_window(256, Augment(center_crop=0.5)) == (64, 128)
    assert evaluation_window(256, Augment(center_crop=0.5, crop=64)) == (32 + 64, 64)
