"""Decodes JPEGs to grey pixels, and reads what the headers of JPEG, JPEG-LS and JPEG 2000 streams claim."""

from __future__ import annotations

import io
import struct
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from distcxr.data.pixels.image_bytes import MAX_PIXELS, UnreadableImage

JPEG_START = b"\xff\xd8\xff"
_J2K_START, _SCAN, _END = b"\xff\x4f\xff\x51", b"\xff\xda", b"\xff\xd9"  # neither of the latter is in coded pixels
_MAX_SCANS = 100
_FRAMES = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}  # headers of JPEG's processes, and of JPEG-LS
_ALONE = {0x01, *range(0xD0, 0xD8)}  # markers without a length
_SIZES = struct.Struct(">HHIIIIIIIIHBBB")  # Lsiz, Rsiz; X, Y, offset, tile, tile offset; components; of the first one
_MAX_TILES = 65_535
_PADDING = 64  # bytes of it that may follow the end, and the marker


def decode_jpeg(data: bytes) -> NDArray[np.uint8]:
    """Decode a JPEG of any kind, CMYK among them, by Pillow's libjpeg, without the GIL.

    A JPEG holds no checksum: bytes that changed in the middle can give wrong pixels unnoticed, but one that was cut
    short, or ends in zeros, is found.

    Returns uint8 [H, W]. Raises UnreadableImage.
    """
    check_scans(data)
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


def check_scans(data: bytes) -> None:
    """Raise UnreadableImage for a JPEG that was cut short, or takes forever."""
    if data.count(_SCAN) > _MAX_SCANS:
        raise UnreadableImage(f"more than {_MAX_SCANS} scans: a JPEG has 1 to 20, and each goes over the whole image")
    # libjpeg fills in what is missing, and reports that only sometimes.
    if data.rfind(_END) < data.rfind(_SCAN):
        raise UnreadableImage(f"truncated: the file ends (at byte {len(data)}) without its end-of-image marker")


class StreamSize(NamedTuple):
    """What a stream's header claims, and decoders allocate."""

    height: int
    width: int
    components: int


def stream_size(stream: bytes) -> StreamSize:
    """Size of the image in a JPEG (any process, JPEG-LS among them) or JPEG 2000 (HTJ2K among them) stream.

    Raises UnreadableImage: another kind of stream, one that is cut short, or one with a header that makes no sense.
    """
    try:
        if stream.startswith(_J2K_START):
            return _of_jpeg2000(stream)
        if stream.startswith(JPEG_START):
            check_scans(stream)
            return _of_jpeg(stream)
    except (struct.error, IndexError) as error:
        raise UnreadableImage(f"truncated: {len(stream)} bytes of a compressed image") from error
    raise UnreadableImage("corrupt: its compressed pixels are neither JPEG nor JPEG 2000")


def _of_jpeg(stream: bytes) -> StreamSize:
    """From the frame's header, before which there are tables."""
    at = 2
    while True:
        if stream[at] != 0xFF:
            raise UnreadableImage(f"corrupt JPEG: no marker at byte {at}, where one has to be")
        marker = stream[at + 1]
        if marker in _FRAMES:
            return StreamSize(*struct.unpack_from(">HHB", stream, at + 5))
        if marker in (_END[1], _SCAN[1]):
            raise UnreadableImage("corrupt JPEG: no frame header before its pixels")
        if marker == 0xFF:  # padding
            at += 1
        elif marker in _ALONE:
            at += 2
        else:
            at += 2 + struct.unpack_from(">H", stream, at + 2)[0]


def _of_jpeg2000(stream: bytes) -> StreamSize:
    _, _, x, y, left, top, tile_x, tile_y, tile_left, tile_top, components, _, step_x, step_y = _SIZES.unpack_from(
        stream, len(_J2K_START)
    )
    if left or top or tile_left or tile_top or (step_x, step_y) != (1, 1):
        raise UnreadableImage("JPEG 2000 with an offset, or with fewer samples than pixels, which is not read")
    if not tile_x or not tile_y or -(-x // tile_x) * -(-y // tile_y) > _MAX_TILES:
        raise UnreadableImage("corrupt JPEG 2000: more tiles than its format allows")
    if _END not in stream[-_PADDING:]:  # OpenJPEG leaves what is missing grey
        raise UnreadableImage(f"truncated: its JPEG 2000 stream ends (at byte {len(stream)}) without its end marker")
    return StreamSize(y, x, components)
