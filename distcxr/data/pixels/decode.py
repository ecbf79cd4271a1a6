"""`decode_grey`: a PNG, JPEG or HTJ2K file to grey pixels. For every loader it decides what can be read."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from distcxr.data.pixels import htj2k
from distcxr.data.pixels.image_bytes import MAX_PIXELS, SIGNATURE, UnreadableImage
from distcxr.data.pixels.png import decode_png

_JPEG_START, _JPEG_SCAN, _JPEG_END = b"\xff\xd8\xff", b"\xff\xda", b"\xff\xd9"  # the latter not in coded pixels
_MAX_SCANS = 100
_KEPT_BYTES = 60 << 20  # glibc ignores blocks of over 32 MB


def decode_grey(data: bytes) -> NDArray[np.uint8]:
    """Decode a PNG, JPEG or HTJ2K codestream (a pack's), recognised by its first bytes, never by its name.

    Grey stays as it is, colours become ITU-R 601 luma as Pillow computes it. An orientation that EXIF asks for is not
    applied: pixels are taken as they are stored, as the label files' authors saw them.

    Returns uint8 [H, W]. Raises UnreadableImage: another kind of file, or a broken one.
    """
    if data.startswith(_JPEG_START):
        return _decode_jpeg(data)
    if data.startswith(htj2k.START):
        return htj2k.decode_htj2k(data)
    if data[: len(SIGNATURE)] != SIGNATURE[: len(data)]:
        raise UnreadableImage("neither a PNG nor a JPEG")
    return decode_png(data)


def _decode_jpeg(data: bytes) -> NDArray[np.uint8]:
    """Decode a JPEG of any kind, CMYK among them, by Pillow's libjpeg, without the GIL.

    A JPEG holds no checksum: bytes that changed in the middle can give wrong pixels unnoticed, but one that was cut
    short, or ends in zeros, is found.
    """
    if data.count(_JPEG_SCAN) > _MAX_SCANS:
        raise UnreadableImage(f"more than {_MAX_SCANS} scans: a JPEG has 1 to 20, and each goes over the whole image")
    # libjpeg fills in what is missing, and reports that only sometimes.
    if data.rfind(_JPEG_END) < data.rfind(_JPEG_SCAN):
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


def load_kernels() -> None:
    """Load the compiled kernels, or compile them (5 s, once per machine), before threads or processes need them.

    And have freed memory used again: glibc returns blocks as large as an X-ray to the system, and getting the next one
    costs 700 page faults, 1.3 ms, an image. It keeps up to twice the largest mapped block that was freed.
    """
    import distcxr.data.pixels.chunk_kernels
    import distcxr.data.pixels.kernels  # noqa: F401

    np.empty(_KEPT_BYTES // 2, dtype=np.uint8)  # mapped, never touched, and freed at once
