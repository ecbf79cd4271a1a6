"""A disk that is full, gone or failing: one sentence that names the path, the bytes needed and the bytes free."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_NUMBERED = re.compile(r"\((?:os error )?(\d{1,3})\)")
"""As safetensors and torch's shared memory report what the kernel refused: `No space left on device (28)`."""
_ADVICE = (
    "What was saved before is intact. See to the disk, then start the same command again: it resumes from the newest "
    "checkpoint"
)
_FULL = (errno.ENOSPC, errno.EDQUOT)
_OF_A_DISK = (*_FULL, errno.EIO, errno.EROFS, errno.ESTALE)


class StorageError(OSError):
    """The disk does not take what is written: not the recipe's fault, and the same command may work later."""


@contextmanager
def storage_errors(target: Path, needed: int) -> Iterator[None]:
    """Turn what the disk refuses within the block into a StorageError.

    Args:
        target: what is being written.
        needed: bytes that it takes.
    """
    try:
        yield
    except StorageError:
        raise
    except Exception as error:
        number = _errno_behind(error)
        if number is None:
            raise
        free = "" if (left := free_bytes(target.parent)) is None else f", {in_units(left)} free"
        quota = " (a quota may hold the rest back)" if number in _FULL and (left or 0) > needed else ""
        raise StorageError(
            f"{target} can't be written: {os.strerror(number)}; {in_units(needed)} needed{free}{quota}. {_ADVICE}"
        ) from error


def of_the_disk(error: BaseException) -> str | None:
    """A sentence for an error that a disk is to blame for, wherever it comes up; None for others."""
    if isinstance(error, StorageError):
        return str(error)
    number, name = _errno_behind(error), getattr(error, "filename", None)
    if number == errno.ENOENT and name is not None and not Path(os.fsdecode(name)).parent.is_dir():
        return f"{Path(os.fsdecode(name)).parent} is gone: its disk is no longer there, or it was removed. {_ADVICE}"
    if number not in _OF_A_DISK:
        return None
    return f"{'a file of the run' if name is None else name} can't be written: {os.strerror(number)}. {_ADVICE}"


def check_space(target: Path, needed: int) -> None:
    """Refuse to begin to write `target` where its `needed` bytes don't fit on the disk.

    Raises:
        StorageError: there is less free than needed, or the folder is gone.
    """
    free = free_bytes(target.parent)
    if free is None:
        raise StorageError(f"{target} can't be written: its folder is gone; {in_units(needed)} needed. {_ADVICE}")
    if free < needed:
        raise StorageError(
            f"{target} does not fit on the disk: {in_units(needed)} needed, {in_units(free)} free. {_ADVICE}"
        )


def free_bytes(folder: Path) -> int | None:
    """Bytes free on the disk of a folder; None where it is not there."""
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None


def in_units(num_bytes: int) -> str:
    """Bytes as people write them: `92.3 MB`."""
    value = float(num_bytes)
    for unit in ("bytes", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def _errno_behind(error: BaseException) -> int | None:
    """The system's number of what went wrong; torch.save and safetensors hide it in errors of their own."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno is not None:
            return seen.errno
        for number in map(int, _NUMBERED.findall(str(seen))):
            if os.strerror(number) in str(seen):
                return number
        seen = seen.__cause__ or seen.__context__
    return None
