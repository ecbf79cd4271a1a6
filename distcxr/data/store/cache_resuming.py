"""A cache that is being built: what a later call can take over after a kill or a power cut.

Shapes: N images, S side.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

from distcxr.data.store.store_building import check_space
from distcxr.data.store.store_files import CACHE, MADE, is_plain_name, look, read_json, write_json
from distcxr.regular import read_regular

_PIXELS = "pixels-{}.u8"
"""Name of the file with the pixels; a build writes into no other, whatever its JSON file names."""


class UnfinishedCache:
    """Rows that are written one by one, in any order, from several threads.

    Pixels and entries reach the disk in whatever order the system likes. So a row of an earlier call counts as done
    only if its entry has it so, its pixels have the checksum that the entry has, and its file is still the same.

    Attributes:
        entries: `Format.entry_type` [N], sorted by path.
        done: bool [N]; at first the rows that are done by an earlier call's entries, for `recheck` to confirm.
        pixels_name: name of the pixel file, which is its name in the whole cache, too.
    """

    def __init__(self, folder: Path, names: NDArray[np.bytes_], image_size: int) -> None:
        """Resume the build in `folder` if it was started for the same images and settings, or start one.

        Args:
            names: paths of the images, sorted.

        Raises:
            StoreError: too little space is free.
            OSError: the folder can't be written.
        """
        self._row_bytes = image_size**2
        self.entries = np.zeros(len(names), dtype=CACHE.entry_type(names.dtype.itemsize))
        self.entries["path"] = names
        settings = {
            "format": CACHE.version, "codec": CACHE.codec, "image_size": image_size,
            "names_sha256": hashlib.sha256(self.entries["path"].tobytes()).hexdigest(),
        }  # fmt: skip
        if not self._resume(folder, settings):
            CACHE.remove_files(folder, keep=CACHE.whole_files(folder))
            self._start(folder, settings)
        self.done: NDArray[np.bool_] = self.entries["state"] == MADE  # what can't be read is tried again

    def recheck(self, row: int, file: bytes) -> None:
        """Clear `done` of a row that can't be trusted."""
        pixels, entry = np.empty(self._row_bytes, dtype=np.uint8), self.entries[row]
        got = os.preadv(self._pixels, [pixels.data], row * self._row_bytes)
        whole = got == self._row_bytes and isal_zlib.crc32(pixels) == entry["pixels_crc"]
        self.done[row] = whole and look(file) == [entry["size"], entry["mtime_ns"]]

    def put(self, row: int, entry: Sequence[int], pixels: NDArray[np.uint8]) -> None:
        """Write a row: size, mtime_ns, source_crc and state of its entry, and its pixels uint8 [S*S]."""
        size, mtime_ns, source_crc, state = entry
        _write(self._pixels, pixels, row * self._row_bytes)
        path, pixels_crc = self.entries["path"][row], isal_zlib.crc32(pixels)
        self.entries[row] = (path, size, mtime_ns, source_crc, pixels_crc, state)
        _write(self._stored, self.entries[row : row + 1].view(np.uint8), row * self.entries.itemsize)

    def flush(self) -> None:
        """Wait until the pixels are on disk."""
        os.fsync(self._pixels)

    def close(self) -> None:
        """Close the files and leave them for a later call."""
        os.close(self._pixels)
        os.close(self._stored)

    def _resume(self, folder: Path, settings: dict[str, Any]) -> bool:
        try:
            found = read_json(folder / "building.json")
            data, _ = read_regular(folder / "building.entries")
            stored: NDArray[Any] = np.frombuffer(data, dtype=self.entries.dtype).copy()
            same = settings.items() <= found.items() and np.array_equal(stored["path"], self.entries["path"])
            if same and is_plain_name(found["pixels"]) and fnmatch(found["pixels"], _PIXELS.format("*")):
                self._open(folder, found["pixels"], os.O_RDWR)
                self.entries = stored
                return True
        except (OSError, ValueError, KeyError, TypeError):  # none, or not a whole one
            pass
        return False

    def _start(self, folder: Path, settings: dict[str, Any]) -> None:
        num_bytes = len(self.entries) * self._row_bytes
        check_space(folder, CACHE, num_bytes)
        (folder / "building.entries").write_bytes(self.entries.tobytes())
        self._open(folder, _PIXELS.format(secrets.token_hex(4)), os.O_RDWR | os.O_CREAT | os.O_EXCL)
        try:
            _reserve(self._pixels, num_bytes)
            write_json(folder / "building.json", settings | {"pixels": self.pixels_name})
        except BaseException:
            self.close()
            (folder / self.pixels_name).unlink()
            raise

    def _open(self, folder: Path, pixels_name: str, flags: int) -> None:
        self.pixels_name = pixels_name
        self._pixels = os.open(folder / pixels_name, flags | os.O_NOFOLLOW, 0o666)
        self._stored = os.open(folder / "building.entries", os.O_WRONLY)


def _write(fd: int, content: NDArray[np.uint8], offset: int) -> None:
    left = memoryview(np.ascontiguousarray(content).data).cast("B")
    while left:
        written = os.pwrite(fd, left, offset)
        left, offset = left[written:], offset + written


def _reserve(fd: int, num_bytes: int) -> None:
    """Take the space now: a full disk is an error before the decoding, not after."""
    try:
        os.posix_fallocate(fd, 0, num_bytes)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        os.ftruncate(fd, num_bytes)  # this file system can't promise space
