"""Pictures of heat: grey stays grey, heat is coloured, boxes are where the list has them."""

from __future__ import annotations

import numpy as np
import pytest

from distcxr.explain.overlay import overlay


def test_without_heat_it_is_the_image_in_grey() -> None:
    ramp = np.tile(np.linspace(-3, 5, 64, dtype=np.float32), (64, 1))
    picture = overlay(ramp, np.zeros((64, 64), np.float32), side_px=64)
    assert picture.shape == (64, 64, 3) and picture.dtype == np.uint8
    assert (picture == picture[:, :, :1]).all() and picture.min() == 0 and picture.max() == 255
    assert np.array_equal(picture, overlay(ramp, side_px=64))


def test_heat_is_colour_where_it_is() -> None:
    heat = np.zeros((32, 32), np.float32)
    heat[8:16, 20:28] = 0.5
    picture = overlay(np.full((32, 32), 7, np.uint8), heat, side_px=320).astype(int)
    coloured = np.ptp(picture, axis=2) > 20
    rows, columns = np.nonzero(coloured)
    assert 75 <= rows.min() <= 85 and 155 <= rows.max() <= 165
    assert 195 <= columns.min() <= 205 and 275 <= columns.max() <= 285
    assert coloured[85:155, 205:275].all()


def test_more_heat_is_lighter() -> None:
    """So that it can be read in grey print."""
    heat = np.tile(np.linspace(0, 1, 100, dtype=np.float32), (100, 1))
    row = overlay(np.zeros((100, 100), np.uint8), heat, side_px=100)[50].astype(float)
    luma = row @ [0.299, 0.587, 0.114]
    assert (np.diff(luma) >= -0.6).all() and luma[-1] > 100


def test_boxes_frame_their_pixels() -> None:
    image = np.zeros((64, 64), np.float32)
    picture = overlay(image, boxes_K4=np.array([[16.0, 8.0, 48.0, 24.0], [60.0, 60.0, 64.0, 64.0]]), side_px=128)
    drawn = picture.any(axis=2)
    rows, columns = np.nonzero(drawn[:60, :110])
    assert (columns.min(), columns.max(), rows.min(), rows.max()) == (32, 95, 16, 47)
    assert not drawn[20:40, 40:90].any(), "a frame, not a patch"
    assert drawn[127, 120:].all() and drawn[120:, 127].all(), "a box at the border keeps its outer lines"


def test_a_box_smaller_than_a_pixel_is_still_drawn() -> None:
    assert overlay(np.zeros((512, 512)), boxes_K4=np.array([[511.6, 511.6, 512.0, 512.0]]), side_px=64).any()


def test_an_image_that_is_not_square_keeps_its_shape() -> None:
    assert overlay(np.zeros((20, 40)), np.zeros((20, 40), np.float32), side_px=100).shape == (50, 100, 3)


def test_unequal_shapes_are_named() -> None:
    with pytest.raises(ValueError, match=r"the heat map is \(4, 4\), the image \(8, 8\)"):
        overlay(np.zeros((8, 8)), np.zeros((4, 4), np.float32))
