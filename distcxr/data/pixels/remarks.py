"""What is unusual of an image for a chest X-ray's file: nothing here changes a pixel, or refuses one.

    bytes, grey ──► remarks ──► sentences for the person who asked about this image

Shapes: H, W of the image.
"""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from distcxr.data.pixels.dicom import is_dicom
from distcxr.data.pixels.dicom_remarks import dicom_remarks
from distcxr.data.pixels.image_bytes import SIGNATURE

_DEPTH_AT, _COLOUR_AT = 24, 25  # of a PNG's header chunk, which comes first
_COLOURFUL = 12  # grey levels between the strongest and the weakest channel: JPEG's own noise has 1 to 3
_LOOKED_AT_PX = 64
_LONG = 2


def remarks(data: bytes, grey_HW: NDArray[np.uint8], size: int) -> list[str]:
    """Sentences about an image that can be read; none for what X-ray data sets are made of.

    Costs nothing for a grey image of 8 bits, a second decoding, in thumbnail size, for one with colours, and a second
    parsing for a DICOM.

    Args:
        data: the file's bytes, and `grey_HW` what `decode_grey` made of them.
        size: side in pixels that the network is shown.
    """
    height, width = grey_HW.shape
    found = []
    brightest = int(grey_HW.max())
    if min(height, width) < size / 2:
        found.append(f"tiny: {width} x {height} pixels, enlarged to {size} x {size}")
    elif max(height, width) >= _LONG * min(height, width):
        found.append(f"{width} x {height} pixels, squashed to a square")
    if _is_png(data) and data[_DEPTH_AT] == 16 and brightest < 128:
        bits = 8 + brightest.bit_length()
        found.append(
            f"{bits} bits of a 16-bit PNG are used, and its upper 8 bits are what is read, in training too: grey "
            f"levels 0 to {brightest} are left of it. Stretch it to 16 bits first (value << {16 - bits})"
        )
    elif brightest == grey_HW.min():
        found.append("all of it is one grey level")
    if is_dicom(data):
        return found + dicom_remarks(data)
    if (chroma := _chroma(data)) >= _COLOURFUL:
        found.append(f"a colour photo? Its channels are {chroma:.0f} of 255 levels apart on average; X-rays are grey")
    if _is_png(data) and b"acTL" in data[: data.find(b"IDAT")]:
        found.append("animated: its first frame was read")
    return found


def _is_png(data: bytes) -> bool:
    return data.startswith(SIGNATURE)


def _chroma(data: bytes) -> float:
    """Mean distance of the strongest and the weakest channel, 0 to 255; 0 for a file that holds grey alone."""
    if _is_png(data) and data[_COLOUR_AT] in (0, 4):
        return 0.0
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
            if image.mode in ("L", "1"):
                return 0.0
            image.draft("RGB", (_LOOKED_AT_PX, _LOOKED_AT_PX))  # a JPEG is decoded at an eighth of its size
            image.info.pop("transparency", None)
            small = np.asarray(image.convert("RGB").reduce(max(1, min(image.size) // _LOOKED_AT_PX)), dtype=np.int16)
    except Exception:  # it was decoded before; another decoder's opinion is not worth a failure
        return 0.0
    return float(np.ptp(small, axis=2).mean())
