"""A contact sheet: pictures in rows, each with a caption below."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from distcxr.runfolder.whole import being_written

_LINE_PX = 22
_FONT_PX = 18  # TensorBoard shows the sheet at less than half its size
_GAP_PX = 6
_NO_BREAK = "\N{NO-BREAK SPACE}"
_BACKGROUND = (24, 24, 28)
_INK = (235, 235, 235)


def contact_sheet(
    tiles: Sequence[NDArray[np.uint8]], captions: Sequence[str], *, columns: int = 4, lines: int = 3
) -> NDArray[np.uint8]:
    """Tiles in rows, each with its caption below, as uint8 [H, W, 3].

    Args:
        tiles: uint8 [h, w, 3] each, one size.
        captions: what is too long for a line wraps, not at a no-break space; what is too long for `lines` lines is cut.
    """
    tile_h, tile_w, _ = tiles[0].shape
    rows = -(-len(tiles) // columns)
    cell_h, cell_w = tile_h + lines * _LINE_PX + _GAP_PX, tile_w + _GAP_PX
    sheet = Image.new("RGB", (columns * cell_w + _GAP_PX, rows * cell_h + _GAP_PX), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=_FONT_PX)
    for number, (tile, caption) in enumerate(zip(tiles, captions, strict=True)):
        row, column = divmod(number, columns)
        x, y = _GAP_PX + column * cell_w, _GAP_PX + row * cell_h
        sheet.paste(Image.fromarray(tile), (x, y))
        for line, text in enumerate(_wrapped(caption, tile_w, lines, draw, font)):
            place = x, y + tile_h + 2 + line * _LINE_PX
            draw.text(place, text.replace(_NO_BREAK, " "), fill=_INK, font=font)  # the font has no other space
    return np.asarray(sheet)


def save_sheet(path: Path, sheet_HW3: NDArray[np.uint8]) -> None:
    """Write a sheet as a PNG file, whole or not at all; OSError where the disk does not take it."""
    with being_written(path) as part:
        Image.fromarray(sheet_HW3).save(part, format="PNG")


def _wrapped(
    caption: str, width_px: int, num_lines: int, draw: ImageDraw.ImageDraw,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> list[str]:  # fmt: skip
    """The caption in lines that fit; what does not fit is cut with an ellipsis."""

    def fits(line: str) -> bool:
        return draw.textlength(line.replace(_NO_BREAK, " "), font=font) <= width_px

    lines: list[str] = []
    for given in caption.splitlines():
        lines.append("")
        for word in given.split(" "):
            longer = f"{lines[-1]} {word}".strip()
            if fits(longer) or not lines[-1]:
                lines[-1] = longer
            else:
                lines.append(word)
    shown = lines[:num_lines]
    for number, line in enumerate(shown):
        if number + 1 == num_lines < len(lines) or not fits(line):
            while not fits(f"{line} …"):
                line = line[:-1]
            shown[number] = f"{line} …"
    return shown
