"""A contact sheet: training images in rows, each with its labels as a caption."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from distcxr.runfolder.whole import being_written

_TILE_PX = 160
_CAPTION_PX = 66
_CAPTION_LINES = 3
_FONT_PX = 18  # TensorBoard shows the sheet at less than half its size
_GAP_PX = 6
_BACKGROUND = (24, 24, 28)
_INK = (235, 235, 235)


def contact_sheet(images_BHW: NDArray[np.float32], captions: Sequence[str], columns: int = 4) -> NDArray[np.uint8]:
    """Images in rows, each with its caption below, as uint8 [H, W, 3].

    Each image, float32 in any range, is stretched to its own darkest and brightest value, so that what the model sees
    after normalisation can be looked at. Long captions wrap, and are cut after three lines.
    """
    rows = -(-len(images_BHW) // columns)
    cell_h = _TILE_PX + _CAPTION_PX + _GAP_PX
    sheet = Image.new("RGB", (columns * (_TILE_PX + _GAP_PX) + _GAP_PX, rows * cell_h + _GAP_PX), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=_FONT_PX)
    for number, (pixels, caption) in enumerate(zip(images_BHW, captions, strict=True)):
        row, column = divmod(number, columns)
        x, y = _GAP_PX + column * (_TILE_PX + _GAP_PX), _GAP_PX + row * cell_h
        low, high = float(pixels.min()), float(pixels.max())
        grey = ((pixels - low) * (255 / max(high - low, 1e-6))).astype(np.uint8)
        sheet.paste(Image.fromarray(grey).resize((_TILE_PX, _TILE_PX)).convert("RGB"), (x, y))
        draw.multiline_text((x, y + _TILE_PX + 2), _wrapped(caption, draw, font), fill=_INK, font=font, spacing=2)
    return np.asarray(sheet)


def save_sheet(path: Path, sheet_HW3: NDArray[np.uint8]) -> None:
    """Write a sheet as a PNG file, whole or not at all; OSError where the disk does not take it."""
    with being_written(path) as part:
        Image.fromarray(sheet_HW3).save(part, format="PNG")


def _wrapped(caption: str, draw: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """The caption in at most three lines that fit a tile; what does not fit is cut with an ellipsis."""

    def fits(line: str) -> bool:
        return draw.textlength(line, font=font) <= _TILE_PX

    lines = [""]
    for word in caption.split(" "):
        longer = f"{lines[-1]} {word}".strip()
        if fits(longer):
            lines[-1] = longer
        elif len(lines) < _CAPTION_LINES:
            lines.append(word)
        else:
            while not fits(f"{lines[-1]} …"):
                lines[-1] = lines[-1][:-1]
            lines[-1] += " …"
            break
    return "\n".join(lines)
