"""Reads the bytes of an image from its own file or from a pack's, and defines the error of one that can't be read."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

from distcxr.regular import read_regular

MAX_PIXELS = 8192 * 8192
"""Largest width x height decoded; a few times the largest X-ray detector, and below Pillow's own warning."""
MAX_SIDE = 65_535
"""Longest side decoded, JPEG's own limit: undoing filters takes 64 bytes a column, a resize 16 more."""
SIGNATURE = b"\x89PNG\r\n\x1a\n"
"""The first eight bytes of a PNG."""
HARMLESS = frozenset({b"tIME", b"tEXt", b"pHYs", b"gAMA", b"cHRM", b"sRGB", b"bKGD"})
"""Kinds of a PNG's chunks that change no pixel of a grey image."""


class UnreadableImage(ValueError):
    """Why an image can't be read; the message is the reason alone, the caller adds the file's name."""


class Part(NamedTuple):
    """An image that is a piece of a larger file.

    It can be read as long as process `pid` holds that file open as `fd`, by this process and by others of its machine,
    even if the file is replaced or removed meanwhile.
    """

    file: str  # name of the larger file, for messages
    pid: int
    fd: int
    offset: int
    num_bytes: int
    crc: int  # CRC-32 of the piece
    reason: str = ""  # why the image can't be read whatever the piece holds


Source = str | Path | Part
"""Where the bytes of one image are."""

Locate = Callable[[NDArray[np.int64]], Sequence[Source]]
"""Sample ids [B] -> where the bytes of their images are, in that order: `SampleIndex.files` or `Pack.parts`."""


def too_large(height: int, width: int) -> bool:
    """Whether an image of this size is refused, before anything is allocated for it."""
    return height * width > MAX_PIXELS or max(height, width) > MAX_SIDE


def read_file(file: Source) -> tuple[bytes, os.stat_result]:
    """The bytes of an image and the state of its file from before they were read.
    Raises UnreadableImage: the system refuses, or a part is cut short or does not have its checksum."""
    if isinstance(file, Part):
        return _read_part(file)
    try:
        return read_regular(file)
    except (OSError, ValueError) as error:  # ValueError: no file's name has a zero byte
        raise UnreadableImage(f"the file can't be read: {getattr(error, 'strerror', None) or error}") from error


def _read_part(part: Part) -> tuple[bytes, os.stat_result]:
    if part.reason:
        raise UnreadableImage(part.reason)
    try:
        fd = part.fd if part.pid == os.getpid() else _borrowed(part.pid, part.fd, part.file)
        state = os.fstat(fd)
        # A forged table may claim any piece: what lies beyond the file's end is not asked for, it would be allocated.
        inside = 0 <= part.offset <= state.st_size and part.num_bytes >= 0
        data = os.pread(fd, min(part.num_bytes, state.st_size - part.offset), part.offset) if inside else b""
    except OSError as error:
        raise UnreadableImage(f"{part.file} can't be read: {error.strerror}") from error
    if len(data) != part.num_bytes or isal_zlib.crc32(data) != part.crc:
        what = "cut short" if len(data) < part.num_bytes else "damaged"
        raise UnreadableImage(f"{part.file} is {what} there; `distcxr pack RECIPE` repairs it")
    return data, state


@functools.cache
def _borrowed(pid: int, fd: int, file: str) -> int:
    """A file that another process holds open, opened here, once: opening it anew for every image would ask a network
    file system each time. At most as many as that process has."""
    try:
        return os.open(f"/proc/{pid}/fd/{fd}", os.O_RDONLY)
    except OSError:  # not permitted: by its name, which finds it unless it was replaced
        return os.open(file, os.O_RDONLY)
