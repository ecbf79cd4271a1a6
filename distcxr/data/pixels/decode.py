"""`decode_grey`: a PNG, JPEG, DICOM or HTJ2K file to grey pixels. For every loader it decides what can be read."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from distcxr.data.pixels import htj2k
from distcxr.data.pixels.dicom import decode_dicom, is_dicom
from distcxr.data.pixels.image_bytes import SIGNATURE, UnreadableImage
from distcxr.data.pixels.jpeg import JPEG_START, decode_jpeg
from distcxr.data.pixels.png import decode_png

_KEPT_BYTES = 60 << 20  # glibc ignores blocks of over 32 MB


def decode_grey(data: bytes) -> NDArray[np.uint8]:
    """Decode a PNG, JPEG, DICOM or HTJ2K codestream (a pack's), recognised by its first bytes, never by its name.

    Grey stays as it is, colours become ITU-R 601 luma as Pillow computes it. An orientation that EXIF asks for is not
    applied: pixels are taken as they are stored, as the label files' authors saw them. A DICOM is shown as its tags ask
    for, see `decode_dicom`.

    Returns uint8 [H, W]. Raises UnreadableImage: another kind of file, or a broken one.
    """
    if data.startswith(JPEG_START):
        return decode_jpeg(data)
    if data.startswith(htj2k.START):
        return htj2k.decode_htj2k(data)
    if data[: len(SIGNATURE)] == SIGNATURE[: len(data)]:
        return decode_png(data)
    if is_dicom(data):
        return decode_dicom(data)
    raise UnreadableImage("neither a PNG nor a JPEG nor a DICOM")


def load_kernels() -> None:
    """Load the compiled kernels, or compile them (5 s, once per machine), before threads or processes need them.

    And have freed memory used again: glibc returns blocks as large as an X-ray to the system, and getting the next one
    costs 700 page faults, 1.3 ms, an image. It keeps up to twice the largest mapped block that was freed.
    """
    import distcxr.data.pixels.chunk_kernels
    import distcxr.data.pixels.kernels  # noqa: F401

    np.empty(_KEPT_BYTES // 2, dtype=np.uint8)  # mapped, never touched, and freed at once
