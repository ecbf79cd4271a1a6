"""The contact sheet: its layout, and captions that stay inside their tile."""

from __future__ import annotations

import numpy as np
import pytest

from distcxr.tracking.images import contact_sheet


@pytest.mark.parametrize(("num", "rows"), [(1, 1), (4, 1), (5, 2), (16, 4)])
def test_sheet_has_a_tile_for_each_image(num: int, rows: int) -> None:
    sheet = contact_sheet(np.random.default_rng(0).random((num, 32, 32), dtype=np.float32), ["Mass"] * num)
    assert sheet.dtype == np.uint8 and sheet.shape == (rows * 232 + 6, 4 * 166 + 6, 3)


def test_images_are_stretched_to_their_own_range() -> None:
    image = np.linspace(-2.1, 2.6, 32 * 32, dtype=np.float32).reshape(1, 32, 32)
    tile = contact_sheet(image, ["x"])[6:166, 6:166, 0]
    assert tile.min() <= 1 and tile.max() >= 254


def test_long_captions_are_cut_inside_the_tile() -> None:
    blank = np.zeros((2, 8, 8), dtype=np.float32)
    long = ", ".join(["Atelectasis", "Consolidation", "Pleural Thickening", "Pneumothorax", "Cardiomegaly", "Edema"])
    sheet = contact_sheet(blank, [long, ""])
    caption = sheet[166:, :, 0]
    assert (caption[:, 6:166] > 200).any()  # something is written
    assert (caption[:, 168:] == sheet[0, 0, 0]).all()  # and nothing reaches the neighbour
