"""HTJ2K (high-throughput JPEG 2000, ISO/IEC 15444-15), lossless: grey pixels to a codestream and back, by OpenJPH.

A codestream is what GPUs decode (nvJPEG2000) without the file format around it.
"""

from __future__ import annotations

import functools
import struct
import sys
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distcxr.data.pixels.image_bytes import MAX_PIXELS, MAX_SIDE, UnreadableImage, too_large

START = b"\xff\x4f\xff\x51"
"""What every codestream begins with: start of codestream, then the marker of the sizes."""

_INSTALL = "`pip install 'imagecodecs>=2026.1.1'`"
_SIZES = struct.Struct(">HHIIIIIIIIH")  # Lsiz, Rsiz, then X, Y, offset, tile, tile offset; number of components
_swallowed = threading.local()
_COMPONENT = struct.Struct(">BBB")  # precision - 1 (the high bit: signed), and steps between samples


def encode_htj2k(image_HW: NDArray[np.uint8]) -> bytes:
    """A lossless codestream of an image, uint8 [H, W] of at least one pixel; without the GIL."""
    assert image_HW.dtype == np.uint8 and image_HW.ndim == 2 and image_HW.size
    return bytes(_codecs().htj2k_encode(np.ascontiguousarray(image_HW), reversible=True))


def decode_htj2k(data: bytes) -> NDArray[np.uint8]:
    """Decode a codestream of one 8-bit component and one tile, lossless or not; without the GIL.

    The sizes it claims are checked here, because OpenJPH believes them. It holds no checksum: bytes that changed in the
    midst of it can give wrong pixels that nobody notices. A pack has a checksum of its own for every image.

    Returns:
        uint8 [H, W].

    Raises:
        UnreadableImage: it is cut short, corrupt, too large, in colour, not of 8 bits, or in several tiles.
    """
    height, width = check_header(data)
    _notice_swallowed_errors()
    _swallowed.any = False
    try:
        image = _codecs().htj2k_decode(data)
    except ImportError as error:
        raise UnreadableImage(f"HTJ2K, which takes imagecodecs to read: {_INSTALL}") from error
    except _codecs().Htj2kError as error:
        raise UnreadableImage(f"corrupt HTJ2K: {error}") from error
    if _swallowed.any:
        raise UnreadableImage("corrupt HTJ2K: OpenJPH stopped in the midst of it")
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.size != height * width:
        raise UnreadableImage("corrupt HTJ2K: its pixels are not those that its header claims")
    pixels: NDArray[np.uint8] = image.reshape(height, width)
    return pixels


@functools.cache
def _notice_swallowed_errors() -> None:
    """imagecodecs can't raise from the loop that copies lines: Python reports an error there as unraisable, and half an
    image is returned. From here on such a report is kept for the thread that decodes; all others go where they went."""
    before = sys.unraisablehook

    def report(unraisable: sys.UnraisableHookArgs) -> None:
        if isinstance(unraisable.object, str) and unraisable.object.startswith("imagecodecs._htj2k"):
            _swallowed.any = True
        else:
            before(unraisable)

    sys.unraisablehook = report


def check_header(data: bytes) -> tuple[int, int]:
    """Height and width of a codestream that `decode_htj2k` would take by its header; UnreadableImage otherwise."""
    at = len(START)
    if not data.startswith(START):
        raise UnreadableImage("no HTJ2K codestream")
    if len(data) < at + _SIZES.size + _COMPONENT.size:
        raise UnreadableImage(f"truncated: {len(data)} bytes of an HTJ2K codestream")
    length, _, width, height, *offsets, tile_width, tile_height, tile_x, tile_y, num_components = _SIZES.unpack_from(
        data, at
    )
    if not width or not height or too_large(height, width):
        limits = f"1 to {MAX_PIXELS} pixels, {MAX_SIDE} on a side"
        raise UnreadableImage(f"its size is {width} x {height}; {limits} can be decoded")
    if num_components != 1:
        raise UnreadableImage(f"an HTJ2K codestream with {num_components} components; only grey ones are read")
    bits, *steps = _COMPONENT.unpack_from(data, at + _SIZES.size)
    if bits != 7:
        kind = "signed" if bits & 0x80 else "unsigned"
        raise UnreadableImage(f"an HTJ2K codestream of {(bits & 0x7F) + 1} bits, {kind}; only 8, unsigned, are read")
    one_tile = (tile_width, tile_height) == (width, height) and not any((*offsets, tile_x, tile_y))
    if length != _SIZES.size + _COMPONENT.size or steps != [1, 1] or not one_tile:
        raise UnreadableImage("an HTJ2K codestream in tiles, with an offset or with fewer samples than pixels")
    if not data.endswith(b"\xff\xd9"):
        raise UnreadableImage(f"truncated: the codestream ends (at byte {len(data)}) without its end marker")
    return height, width


def check_available() -> None:
    """ValueError with the way out where this Python can't encode and decode HTJ2K."""
    try:
        encode_htj2k(np.zeros((1, 1), dtype=np.uint8))
    except (ImportError, AttributeError) as error:  # not there, too old, or built without OpenJPH
        raise ValueError(f"a pack needs imagecodecs with HTJ2K ({error}): install it with {_INSTALL}") from error


def _codecs() -> Any:
    import imagecodecs

    return imagecodecs
