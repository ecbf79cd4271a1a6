"""Opens regular files alone, and reads no more than a limit.

What a data set or a run folder names may be anything: opening a pipe waits for ever, and `/dev/zero` never ends. Opened
without waiting and looked at before the first byte, they are an OSError with a reason, as a missing file is.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

MOST_BYTES = 1 << 30
"""More than any image or table: MIMIC's largest table has 60 MB."""

_PIECE_BYTES = 1 << 20
_MOST_FOLD, _SMALL_BYTES = 200, 16 << 20


def most_unpacked(packed_bytes: int) -> int:
    """How many bytes so many compressed ones may stand for: tables and labels shrink to a fiftieth, bombs to a
    thousandth."""
    return min(MOST_BYTES, max(_SMALL_BYTES, _MOST_FOLD * packed_bytes))


def open_regular(path: str | bytes | Path) -> tuple[int, os.stat_result]:
    """A descriptor to read a file with, and its state. Costs 1 us more than `os.open` alone.

    Raises:
        OSError: it can't be opened, or is a folder, a pipe or a device.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        state = os.fstat(descriptor)
        if not stat.S_ISREG(state.st_mode):
            is_folder = stat.S_ISDIR(state.st_mode)
            reason = os.strerror(errno.EISDIR) if is_folder else "it is a pipe or a device, not a file"
            raise OSError(errno.EISDIR if is_folder else errno.EINVAL, reason, path)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor, state


def read_regular(path: str | bytes | Path, most_bytes: int = MOST_BYTES) -> tuple[bytes, os.stat_result]:
    """The bytes of a file and its state from before they were read.

    Raises:
        OSError: as `open_regular`, or it is larger than `most_bytes`.
    """
    descriptor, state = open_regular(path)
    try:
        if state.st_size > most_bytes:
            raise _too_large(path, most_bytes)
        data = os.read(descriptor, state.st_size + 1)
        if len(data) == state.st_size:
            return data, state
        pieces, total = [data], len(data)  # it is growing, or of a system that answers in pieces
        while piece := os.read(descriptor, _PIECE_BYTES):
            pieces.append(piece)
            total += len(piece)
            if total > most_bytes:
                raise _too_large(path, most_bytes)
        return b"".join(pieces), state
    finally:
        os.close(descriptor)


def _too_large(path: str | bytes | Path, most_bytes: int) -> OSError:
    return OSError(errno.EFBIG, f"it is larger than the {most_bytes:,} bytes allowed", path)
