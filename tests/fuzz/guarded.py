"""Arrays that end, or begin, where memory does: a compiled loop that reads a byte too far ends the process."""

from __future__ import annotations

import ctypes
import functools
import mmap

import numpy as np
from numpy.typing import NDArray

PAGE = mmap.PAGESIZE
_ROOM, _NO_ACCESS = 16 << 20, 0


@functools.cache
def _region(name: str) -> NDArray[np.uint8]:
    """`_ROOM` bytes between two pages that can't be touched; one a name, used again by each input."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    memory = mmap.mmap(-1, _ROOM + 2 * PAGE)
    whole = np.frombuffer(memory, dtype=np.uint8)
    for start in (whole.ctypes.data, whole.ctypes.data + PAGE + _ROOM):
        if libc.mprotect(start, PAGE, _NO_ACCESS):
            raise OSError(ctypes.get_errno(), "mprotect")
    return whole[PAGE : PAGE + _ROOM]


def before_a_wall(name: str, data: bytes | int) -> NDArray[np.uint8]:
    """The bytes, or so many of them, behind which no memory is."""
    size = data if isinstance(data, int) else len(data)
    array = _region(name)[_ROOM - size :]
    assert len(array) == size
    array[:] = 0xA5 if isinstance(data, int) else np.frombuffer(data, dtype=np.uint8)
    return array


def behind_a_wall(name: str, data: bytes | int) -> NDArray[np.uint8]:
    """The same, before which no memory is."""
    size = data if isinstance(data, int) else len(data)
    array = _region(name)[:size]
    assert len(array) == size
    array[:] = 0xA5 if isinstance(data, int) else np.frombuffer(data, dtype=np.uint8)
    return array


FITS = _ROOM
"""Largest array."""
