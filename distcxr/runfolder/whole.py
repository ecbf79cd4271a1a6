"""Writes files atomically: after a kill, a full disk or a power cut a file is there whole or not at all.

    .NAME.<process>.part ──► flushed to the disk ──► renamed to NAME ──► the folder flushed

A rename that reaches the disk before the bytes would leave an empty file after a power cut; one that does not reach it
would leave the old file. A flush costs milliseconds on a local disk.
"""

from __future__ import annotations

import errno
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

_OF_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # such an error of a file that is open names none


@contextmanager
def being_written(path: Path) -> Iterator[Path]:
    """The name under which to write what becomes `path` when the block ends without an error.

    After an error, what was there stays, and nothing is left beside it.

    Raises:
        OSError: the file can't be written, flushed or renamed; it names the file, not the one beside it.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        flush(part)
        part.replace(path)
    except BaseException as error:
        with suppress(OSError):
            part.unlink()
        if isinstance(error, OSError):
            name = error.filename
            if error.errno in _OF_WRITING if name is None else os.fsdecode(name) == str(part):
                error.filename = str(path)
        raise
    flush(path.parent)


@contextmanager
def not_fatal(path: Path, then: str) -> Iterator[None]:
    """Log that a file can't be written and what follows from it, in place of an OSError that would end the run."""
    try:
        yield
    except OSError as error:
        logger.warning(f"{path} can't be written ({error.strerror or error}): {then}")


def remove_parts(folder: Path) -> None:
    """Remove what writers left here that were killed; to be called by whoever alone may write into the folder."""
    for part in folder.glob(".*.part"):
        with suppress(OSError):  # a folder is a checkpoint's, which the next write of it replaces
            part.unlink()


def write_whole(path: Path, text: str, *, errors: str = "strict") -> None:
    """Write a text file in UTF-8, whole or not at all; `errors` as for `open`, for text that is not Unicode."""
    with being_written(path) as part:
        part.write_text(text, encoding="utf-8", errors=errors, newline="")


def write_json(path: Path, content: Any, *, indent: int = 1) -> None:
    """Write strict JSON, whole or not at all.

    Raises:
        ValueError: a number in it is not finite.
    """
    write_whole(path, json.dumps(content, indent=indent, allow_nan=False) + "\n")


def flush(path: Path) -> None:
    """Wait until a file's or a folder's content is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL or not path.is_dir():  # some network file systems flush no folders
            raise
    finally:
        os.close(descriptor)
