"""Heat maps and boxes drawn over the X-ray, as pixels that a report can embed.

Shapes: H, W of the network's input, P side of the picture.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

_STOPS = (0.0, 0.35, 0.7, 1.0)
_COLOURS = ((80, 18, 123), (183, 55, 121), (252, 137, 97), (255, 220, 60))
"""Violet to yellow, ever lighter, so that it reads in grey print and by colour-blind eyes."""
_MOST_OPAQUE = 0.6
_BOX = (64, 224, 208)


def overlay(
    image_HW: NDArray[np.generic],
    heat_HW: NDArray[np.float32] | None = None,
    boxes_K4: NDArray[np.float64] | None = None,
    *,
    side_px: int = 320,
) -> NDArray[np.uint8]:
    """The image in grey, heat over it in colour, boxes around.

    Args:
        image_HW: numbers in any range, stretched from darkest to brightest; what the network saw can be looked at.
        heat_HW: in [0, 1], as `gradcam` makes it; 0 leaves the image as it is. None draws no heat.
        boxes_K4: (x0, y0, x1, y1) in pixels of the image.
        side_px: the picture's longer side.

    Returns uint8 [P, P, 3], or less on the shorter side.
    """
    height, width = image_HW.shape
    scale = side_px / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    grey = image_HW.astype(np.float32)
    low, high = float(grey.min()), float(grey.max())
    stretched = ((grey - low) * (255 / max(high - low, 1e-6))).astype(np.uint8)
    pixels = np.asarray(Image.fromarray(stretched).resize(size, Image.Resampling.BILINEAR), dtype=np.float32)
    picture = np.repeat(pixels[:, :, None], 3, axis=2)
    if heat_HW is not None:
        if heat_HW.shape != image_HW.shape:
            raise ValueError(f"the heat map is {heat_HW.shape}, the image {image_HW.shape}: they have to be alike")
        enlarged = Image.fromarray(heat_HW.astype(np.float32)).resize(size, Image.Resampling.BILINEAR)
        heat = np.asarray(enlarged, dtype=np.float32).clip(0, 1)
        colour = np.stack([np.interp(heat, _STOPS, channel) for channel in zip(*_COLOURS, strict=True)], axis=2)
        opacity = _MOST_OPAQUE * heat[:, :, None]
        picture = (picture * (1 - opacity) + colour * opacity).astype(np.float32)
    drawn = Image.fromarray(picture.round().clip(0, 255).astype(np.uint8))
    if boxes_K4 is not None:
        pen = ImageDraw.Draw(drawn)
        for x0, y0, x1, y1 in (boxes_K4 * scale).tolist():
            left, top = min(int(x0), size[0] - 1), min(int(y0), size[1] - 1)
            # At least a pixel wide, and its right and lower lines inside the picture.
            right, bottom = max(left, min(round(x1), size[0]) - 1), max(top, min(round(y1), size[1]) - 1)
            pen.rectangle((left, top, right, bottom), outline=_BOX, width=max(1, round(side_px / 160)))
    return np.asarray(drawn)
