"""JPEG bytes to grey pixels, by Pillow's libjpeg."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from distcxr.data.pixels.image_bytes import MAX_PIXELS, UnreadableImage

START = b"\xff\xd8\xff"
"""The first bytes of every JPEG."""

_MAX_SCANS = 100
_SCAN, _END = b"\xff\xda", b"\xff\xd9"  # neither occurs in the coded pixels themselves


def decode_jpeg(data: bytes) -> NDArray[np.uint8]:
    """Decode a JPEG of any kind to grey.

    A grey file is returned as it is; colours, CMYK among them, become ITU-R 601 luma as Pillow computes it. Runs
    without the GIL. A JPEG holds no checksum: bytes that changed in the middle can give wrong pixels
    unnoticed, but one that was cut short, or ends in zeros, is found.

    Returns:
        uint8 [H, W].

    Raises:
        UnreadableImage: it is cut short, not a JPEG that Pillow decodes, or too large.
    """
    if data.count(_SCAN) > _MAX_SCANS:
        raise UnreadableImage(f"more than {_MAX_SCANS} scans: a JPEG has 1 to 20, and each goes over the whole image")
    # libjpeg fills in what is missing, and reports that only sometimes.
    if data.rfind(_END) < data.rfind(_SCAN):
        raise UnreadableImage(f"truncated: the file ends (at byte {len(data)}) without its end-of-image marker")
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UnreadableImage(f"its size is {image.width} x {image.height}, more than {MAX_PIXELS} pixels")
            return np.array(image if image.mode == "L" else image.convert("L"))
    except (MemoryError, UnreadableImage):
        raise
    except UnidentifiedImageError as error:  # its message is an address in memory
        raise UnreadableImage("corrupt JPEG: its header makes no sense") from error
    except Exception as error:
        raise UnreadableImage(f"corrupt JPEG: {error}") from error
