"""Making a decoded cache, bringing one up to date, and resuming a build after a kill or a power cut.

Shapes: N images, S side.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import secrets
import threading
from collections.abc import Sequence
from contextlib import closing
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

from distcxr.data.index import SampleIndex
from distcxr.data.pixels.resize import resize_grey
from distcxr.data.store.cache_format import DecodedCache
from distcxr.data.store.store_building import GOOD, Built, Report, StoreBuilder, building_in, check_space
from distcxr.data.store.store_files import (
    CACHE,
    MADE,
    UNREADABLE,
    StoreError,
    is_plain_name,
    look,
    read_json,
    write_json,
)
from distcxr.regular import read_regular

logger = logging.getLogger(__name__)

_PIXELS = "pixels-{}.u8"
"""Name of the file with the pixels; a build writes into no other, whatever its JSON file names."""


def build_cache(
    index: SampleIndex, folder: Path, image_size: int, *, workers: int, report: Report = lambda *_: None
) -> Built:
    """Make the cache of all images of `index` in `folder`, or bring the one there up to date, with `workers` threads.

    Each image of an earlier cache is checked: its pixels' checksum, its file's size and modification time, and where
    only the time differs, the file's checksum. If all are right no pixels are written; otherwise a new file is, and
    running jobs keep the old one. Running it again after it was stopped, in whatever way, resumes it.

    Raises StoreError: another process builds it, the disk is full, or the folder can't be written.
    """
    with building_in(folder, CACHE, num_bytes=len(index) * image_size**2):
        return _CacheBuilder(index, folder, image_size, workers, report).run()


class _CacheBuilder(StoreBuilder):
    def __init__(self, index: SampleIndex, folder: Path, image_size: int, workers: int, report: Report) -> None:
        super().__init__(CACHE, index, folder, workers, report)
        self._image_size = image_size
        self._names = np.unique(index.path)  # sorted
        self._reasons: dict[str, str] = {}
        self._lock = threading.Lock()

    def run(self) -> Built:
        try:
            old = DecodedCache(self._folder, self._image_size)
        except StoreError as error:
            if (self._folder / CACHE.json_name).exists():
                logger.info("%s", error)
            self._build(None, {})
        else:
            with closing(old):
                self._update(old)
        built = self.finish()
        built.num_bytes = built.num_images * self._image_size**2
        return built

    def _update(self, old: DecodedCache) -> None:
        paths = old.entries["path"]
        conditions = self.check([(old, row) for row in range(len(paths))])
        right = np.isin(conditions, GOOD)
        self._reasons = dict(old.settings["unreadable"])
        self._built.num_changed = int((conditions == "changed").sum())
        self._built.num_damaged = int((conditions == "damaged").sum())
        self._built.num_new = int((~np.isin(self._names, paths)).sum())
        if not right.all() or self._built.num_new:
            self._build(old, {bytes(paths[row]): row for row in np.flatnonzero(right).tolist()})
        elif (conditions == "touched").any():  # a copied dataset, for one: only the entries are written
            self._write(old.entries, old.files[0].name)

    def _build(self, old: DecodedCache | None, right: dict[bytes, int]) -> None:
        """Write a new file: rows of `old` that are right, by path, are copied, the others are decoded."""
        unfinished = UnfinishedCache(self._folder, self._names, self._image_size)
        paths = unfinished.entries["path"]

        def recheck(row: int) -> None:
            unfinished.recheck(row, self.file(bytes(paths[row])))

        def make(row: int) -> None:
            path = bytes(paths[row])
            if old is not None and path in right and (pixels := old.content(right[path])) is not None:
                entry = old.entries[right[path]]
                unfinished.put(row, [entry[key] for key in ("size", "mtime_ns", "source_crc", "state")], pixels)
                return
            size, mtime_ns, crc, image, reason = self.read(path)
            if image is None:
                pixels, state = np.zeros(self._image_size**2, dtype=np.uint8), UNREADABLE
            else:
                pixels, state = resize_grey(image, self._image_size).reshape(-1), MADE
            unfinished.put(row, [size, mtime_ns, crc, state], pixels)
            with self._lock:
                self._built.num_made += 1
                if image is None:
                    self._reasons[os.fsdecode(path)] = reason

        with closing(unfinished):
            self.each("checking what was done before", recheck, np.flatnonzero(unfinished.done))
            self._built.num_resumed = int(unfinished.done.sum())
            self.each("decoding", make, np.flatnonzero(~unfinished.done))
            unfinished.flush()
        self._write(unfinished.entries, unfinished.pixels_name)

    def _write(self, entries: NDArray[Any], pixels_name: str) -> None:
        sources = [entries[column].tobytes() for column in ("path", "size", "source_crc")]
        CACHE.write(
            self._folder, entries, self._reasons, image_size=self._image_size, pixels=pixels_name,
            sources_sha256=hashlib.sha256(b"".join(sources)).hexdigest(),
        )  # fmt: skip


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
        """Resume the build of images with these paths, sorted, if it was started for the same images and settings; or
        start one.
        Raises StoreError where too little space is free, OSError where the folder can't be written."""
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
