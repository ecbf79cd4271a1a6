"""Image files as bytes, and the error of one that can't be read."""

from __future__ import annotations

import os
from pathlib import Path

MAX_PIXELS = 8192 * 8192
"""Largest width x height decoded; a few times the largest X-ray detector, and below Pillow's own warning."""


class UnreadableImage(ValueError):
    """Why an image can't be read; the message is the reason alone, the caller adds the file's name."""


def read_file(file: str | Path) -> tuple[bytes, os.stat_result]:
    """The bytes of `file` and its state from before they were read; `UnreadableImage` when the system refuses."""
    try:
        with open(file, "rb") as stream:
            state = os.fstat(stream.fileno())
            return stream.read(), state
    except OSError as error:
        raise UnreadableImage(f"the file can't be read: {error.strerror}") from error
