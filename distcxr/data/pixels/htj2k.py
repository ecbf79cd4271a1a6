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
_CAPABILITIES, _STYLE, _STEPS, _COMMENT, _TILE = b"\xff\x50", b"\xff\x52", b"\xff\x5c", b"\xff\x64", b"\xff\x90"
_MOST_BITS = 30  # OpenJPH has ended with a segmentation fault at 31; lossless of 8 bits takes 11
_SEGMENTS = (b"\xff\x51", _CAPABILITIES, _STYLE, _STEPS, _COMMENT, b"\xff\x55")  # the last: lengths of tile parts
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

    Returns uint8 [H, W]. Raises UnreadableImage: it is cut short, corrupt, too large, in colour, not of 8 bits, or in
    several tiles.
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
    _check_segments(data)
    return height, width


def _check_segments(data: bytes) -> None:
    """Refuse a main header that OpenJPH would read beyond: it takes as many step sizes as the levels ask for, whether
    they are there or not."""
    found: dict[bytes, bytes] = {}
    at = 2
    while (kind := data[at : at + 2]) != _TILE:
        length = int.from_bytes(data[at + 2 : at + 4])
        body = data[at + 4 : at + 2 + length]
        if kind not in _SEGMENTS or length < 2 or len(body) != length - 2 or (kind in found and kind != _COMMENT):
            raise UnreadableImage(f"corrupt HTJ2K: no segment of its header begins at byte {at}, where one has to")
        found[kind] = body
        at += 2 + length
    style, steps = found.get(_STYLE, b""), found.get(_STEPS, b"")
    if len(style) < 10 or not steps or _CAPABILITIES not in found:
        raise UnreadableImage("corrupt HTJ2K: a segment of its header is missing")
    levels, has_precincts = style[5], style[0] & 1
    bytes_per_band = {0: 1, 2: 2}.get(steps[0] & 31)
    num_steps = 2 if bytes_per_band is None else (3 * levels + 1) * bytes_per_band
    blocks_fit = style[6] <= 8 and style[7] <= 8 and style[6] + style[7] <= 8
    if levels > 32 or not blocks_fit or len(style) != 10 + has_precincts * (levels + 1) or len(steps) != 1 + num_steps:
        raise UnreadableImage("corrupt HTJ2K: its header does not have what its number of levels asks for")
    most_bits = max(steps[1 :: bytes_per_band or 2]) >> 3  # of a coefficient
    if most_bits + (steps[0] >> 5) - 1 > _MOST_BITS:
        raise UnreadableImage(f"corrupt HTJ2K: coefficients of more than {_MOST_BITS} bits")


def check_available() -> None:
    """ValueError with the way out where this Python can't encode and decode HTJ2K."""
    try:
        encode_htj2k(np.zeros((1, 1), dtype=np.uint8))
    except (ImportError, AttributeError) as error:  # not there, too old, or built without OpenJPH
        raise ValueError(f"a pack needs imagecodecs with HTJ2K ({error}): install it with {_INSTALL}") from error


def _codecs() -> Any:
    import imagecodecs

    return imagecodecs
