"""The contact sheet: its layout, and captions that stay inside their tile."""

from __future__ import annotations

import numpy as np
import pytest

from distcxr.tracking.images import contact_sheet


@pytest.mark.parametrize(("num", "rows"), [(1, 1), (4, 1), (5, 2), (16, 4)])
def test_sheet_has_a_tile_for_each_image(num: int, rows: int) -> None:
    sheet = contact_sheet([np.full((32, 40, 3), 200, dtype=np.uint8)] * num, ["Mass"] * num)
    assert sheet.dtype == np.uint8 and sheet.shape == (rows * (32 + 66 + 6) + 6, 4 * 46 + 6, 3)
    assert (sheet[6:38, 6:46] == 200).all()


def test_long_captions_are_cut_inside_the_tile() -> None:
    blank = [np.zeros((160, 160, 3), dtype=np.uint8)] * 2
    long = ", ".join(["Atelectasis", "Consolidation", "Pleural Thickening", "Pneumothorax", "Cardiomegaly", "Edema"])
    sheet = contact_sheet(blank, [long, ""])
    caption = sheet[166:, :, 0]
    assert (caption[:, 6:166] > 200).any()  # something is written
    assert (caption[:, 168:] == sheet[0, 0, 0]).all()  # and nothing reaches the neighbour


def test_a_caption_keeps_its_lines() -> None:
    blank = [np.zeros((20, 200, 3), dtype=np.uint8)]
    one, two, four = (contact_sheet(blank, [text], lines=4) for text in ("A", "A\nB", "A\nB\nC\nD\nE"))
    inked = [[(sheet[28 + 22 * line : 44 + 22 * line] > 200).any() for line in range(4)] for sheet in (one, two, four)]
    assert inked == [[True, False, False, False], [True, True, False, False], [True] * 4]
