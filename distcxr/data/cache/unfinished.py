"""A build that is under way or was cut short: what can be gone on with after a kill or a power cut."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

from distcxr.data.built import look, read_json, shown_size, write_json
from distcxr.data.cache.files import CODEC, DECODED, FORMAT, CacheError, entry_type, remove_files


class Unfinished:
    """Rows that are written one by one, in any order, from several threads.

    Pixels and entries reach the disk in whatever order the system likes. So a row of an earlier call counts as done
    only if its entry says so, its pixels have the checksum that the entry has, and its file is still the same.

    Attributes:
        entries: `entry_type` [N], sorted by path.
        done: bool [N]; at first the rows that an earlier call's entries say are done, for `recheck` to confirm.
        pixels_name: name of the pixel file, which is its name in the whole cache, too.
    """

    def __init__(self, folder: Path, names: NDArray[np.bytes_], image_size: int, keep: tuple[str, ...]) -> None:
        """Go on with the build in `folder` if it was started for the same images and settings, or start one.

        Args:
            names: paths of the images, sorted.
            keep: files of a whole cache, which must stay.

        Raises:
            CacheError: too little space is free.
            OSError: the folder can't be written.
        """
        self._row_bytes = image_size**2
        self.entries = np.zeros(len(names), dtype=entry_type(names.dtype.itemsize))
        self.entries["path"] = names
        settings = {
            "format": FORMAT, "codec": CODEC, "image_size": image_size,
            "names_sha256": hashlib.sha256(self.entries["path"].tobytes()).hexdigest(),
        }  # fmt: skip
        if not self._go_on(folder, settings):
            remove_files(folder, keep)
            self._start(folder, settings)
        self.done: NDArray[np.bool_] = self.entries["state"] == DECODED  # what can't be read is tried again

    def recheck(self, row: int, file: str) -> None:
        """Clear `done` of a row that can't be trusted."""
        pixels, entry = np.empty(self._row_bytes, dtype=np.uint8), self.entries[row]
        got = os.preadv(self._pixels, [pixels.data], row * self._row_bytes)
        whole = got == self._row_bytes and isal_zlib.crc32(pixels) == entry["pixels_crc"]
        self.done[row] = whole and look(file) == [entry["size"], entry["mtime_ns"]]

    def put(self, row: int, entry: Any, pixels: NDArray[np.uint8]) -> None:
        """Write a row: its entry, without the path and the checksum of its pixels uint8 [S*S], and those."""
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

    def _go_on(self, folder: Path, settings: dict[str, Any]) -> bool:
        try:
            found = read_json(folder / "building.json")
            stored: NDArray[Any] = np.fromfile(folder / "building.entries", dtype=self.entries.dtype)
            same = settings.items() <= found.items() and (stored["path"] == self.entries["path"]).all()
            if same:
                self._open(folder, found["pixels"], os.O_RDWR)
                self.entries = stored
        except (OSError, ValueError, KeyError, TypeError):  # none, or not a whole one
            return False
        return bool(same)

    def _start(self, folder: Path, settings: dict[str, Any]) -> None:
        num_bytes = len(self.entries) * self._row_bytes
        free = shutil.disk_usage(folder).free
        if num_bytes > free:
            raise CacheError(
                f"{folder}: the cache takes {shown_size(num_bytes)} and {shown_size(free)} is free there: make room, "
                "or set data.cache.path to another folder"
            )
        (folder / "building.entries").write_bytes(self.entries.tobytes())
        self._open(folder, f"pixels-{secrets.token_hex(4)}.u8", os.O_RDWR | os.O_CREAT | os.O_EXCL)
        try:
            _reserve(self._pixels, num_bytes)
            write_json(folder / "building.json", settings | {"pixels": self.pixels_name})
        except BaseException:
            self.close()
            (folder / self.pixels_name).unlink()
            raise

    def _open(self, folder: Path, pixels_name: str, flags: int) -> None:
        self.pixels_name = pixels_name
        self._pixels = os.open(folder / pixels_name, flags, 0o666)
        self._stored = os.open(folder / "building.entries", os.O_WRONLY)


def _write(fd: int, content: NDArray[np.uint8], offset: int) -> None:
    left = memoryview(np.ascontiguousarray(content).data).cast("B")
    while left:
        written = os.pwrite(fd, left, offset)
        left, offset = left[written:], offset + written


def _reserve(fd: int, num_bytes: int) -> None:
    """Take the space now: a full disk is said before the decoding, not after."""
    try:
        os.posix_fallocate(fd, 0, num_bytes)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        os.ftruncate(fd, num_bytes)  # this file system can't promise space
