"""Opening a decoded cache and copying batches out of it.

Shapes: B batch, N images, S side.
"""

from __future__ import annotations

import hashlib
import io
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

from distcxr.data.built import STAT_THREADS, look
from distcxr.data.cache.files import read_meta, unusable
from distcxr.data.index import SampleIndex

_SHOWN = 3


class DecodedCache:
    """An open cache. Holds its files open: they can be read to the end even if a new build replaces them.

    Attributes:
        folder: where it is.
        image_size: S.
        meta: what cache.json holds.
        entries: `entry_type` [N].
        root: folder that the paths are relative to.
        row_of: int64, the cache row of each sample of the index it was opened for.
    """

    def __init__(self, folder: Path, image_size: int) -> None:
        """Open a whole cache made with these settings, without asking which images it holds.

        Raises:
            CacheError: it is not there, not whole, or made with other settings.
        """
        self.folder, self.image_size = folder, image_size
        self.meta = _settings_checked(folder, image_size)
        num, row_bytes = self.meta["num_images"], image_size * image_size
        self._bytes = num * row_bytes
        try:
            entries = (folder / self.meta["entries"]).read_bytes()
            self._fd = os.open(folder / self.meta["pixels"], os.O_RDONLY)
        except OSError as error:
            raise unusable(folder, f"{error.filename} can't be read: {error.strerror}") from error
        try:
            if hashlib.sha256(entries).hexdigest() != self.meta["entries_sha256"]:
                raise unusable(folder, f"{self.meta['entries']} is damaged")
            self.entries: NDArray[Any] = np.load(io.BytesIO(entries), allow_pickle=False)
            if len(self.entries) != num:
                raise unusable(folder, f"{self.meta['entries']} has {len(self.entries)} rows, not {num}")
            self._check_length()
        except BaseException:
            os.close(self._fd)
            raise
        self._pixels_NP = np.asarray(np.memmap(self.pixels_file, dtype=np.uint8, mode="r", shape=(num, row_bytes)))
        self._verified, self._all_verified = np.zeros(num, dtype=bool), False
        self.root, self.row_of = Path(), np.arange(num)

    @property
    def pixels_file(self) -> Path:
        """The file that holds the pixels."""
        return self.folder / str(self.meta["pixels"])

    def path(self, row: int) -> str:
        """Path of the image of a cache row, relative to the data root."""
        return os.fsdecode(bytes(self.entries["path"][row]))

    def reason(self, row: int) -> str:
        """Why the image of a cache row could not be read when the cache was built."""
        return str(self.meta["unreadable"][self.path(row)])

    def gather(self, rows: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        """Copy the images of cache rows into `out`, uint8 [B, S*S]; without the GIL, but for an image's first time.

        An image is compared with its CRC-32 the first time, and read with system calls, so that a bad disk is an
        error and not a bus error; that time it costs about three times as much. Afterwards it comes from the memory
        map, which is nearly as fast as memory and 1.4 times as fast as system calls. Start `out` at a multiple of 64
        bytes: other starts cost a quarter of the speed.

        Raises:
            RuntimeError: the file is damaged.
        """
        assert len(rows) == len(out)
        if not self._all_verified:
            if not self._verified[rows].all():
                self.gather_checked(rows, out)
                return
            self._all_verified = bool(self._verified.all())
        # A map that reaches beyond the file's end would end the process with a bus error.
        if os.fstat(self._fd).st_size < self._bytes:
            raise RuntimeError(str(unusable(self.folder, f"{self.meta['pixels']} was cut short while in use")))
        np.take(self._pixels_NP, rows, axis=0, out=out, mode="clip")  # mode="raise" would copy twice

    def gather_checked(self, rows: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        """`gather` with every checksum, whether or not it was compared before."""
        row_bytes = self.image_size**2
        for row in rows.tolist():  # the disk gets all of them at once, not one after the other
            os.posix_fadvise(self._fd, row * row_bytes, row_bytes, os.POSIX_FADV_WILLNEED)
        for pixels, row, crc in zip(out, rows.tolist(), self.entries["pixels_crc"][rows].tolist(), strict=True):
            try:
                got = os.preadv(self._fd, [pixels], row * row_bytes)
            except OSError as error:
                raise RuntimeError(f"{self.pixels_file} can't be read: {error.strerror}") from error
            if got != row_bytes or isal_zlib.crc32(pixels) != crc:
                raise RuntimeError(str(unusable(self.folder, f"the pixels of {self.path(row)} in it are damaged")))
        self._verified[rows] = True

    def check_sources(self) -> None:
        """Compare size and modification time of every source file with what was read: 0.4 s for 112,120, local.

        Raises:
            CacheError: some have changed.
        """
        rows = np.unique(self.row_of)
        parts = np.array_split(rows, STAT_THREADS)
        with ThreadPoolExecutor(STAT_THREADS, thread_name_prefix="stat") as pool:
            changed = [row for rows in pool.map(self._changed, parts) for row in rows]
        if changed:
            raise unusable(
                self.folder,
                f"{len(changed):,} of {len(rows):,} images have changed since it was built, such as "
                f"{', '.join(self.path(row) for row in changed[:_SHOWN])}",
            )

    def close(self) -> None:
        """Close the file. The map goes with the last array that uses it."""
        os.close(self._fd)

    def _changed(self, rows: NDArray[np.int64]) -> list[int]:
        entries, prefix = self.entries[rows], os.fsencode(self.root) + b"/"
        known = zip(entries["path"].tolist(), entries["size"].tolist(), entries["mtime_ns"].tolist(), strict=True)
        return [row for row, (path, *state) in zip(rows.tolist(), known, strict=True) if look(prefix + path) != state]

    def _check_length(self) -> None:
        length = os.fstat(self._fd).st_size
        if length != self._bytes:
            raise unusable(self.folder, f"{self.meta['pixels']} has {length:,} bytes instead of {self._bytes:,}")


def open_cache(folder: Path, index: SampleIndex, image_size: int) -> DecodedCache:
    """Open the cache in `folder` for the images of `index`; it may hold others besides.

    Reads no pixels and looks at no source file; see `DecodedCache.check_sources`.

    Raises:
        CacheError: it can't be used, with the reason and the command that builds it.
    """
    cache = DecodedCache(folder, image_size)
    names = cache.entries["path"]
    row_of = np.minimum(np.searchsorted(names, index.path), max(0, len(names) - 1)).astype(np.int64)
    foreign = names[row_of] != index.path if len(names) else np.ones(len(index), dtype=bool)
    if foreign.any():
        cache.close()
        shown = ", ".join(os.fsdecode(path) for path in index.path[foreign][:_SHOWN].tolist())
        raise unusable(folder, f"{foreign.sum():,} of {len(index):,} images are not in it, such as {shown}")
    cache.root, cache.row_of = index.root, row_of
    return cache


def _settings_checked(folder: Path, image_size: int) -> dict[str, Any]:
    meta = read_meta(folder)
    if meta["image_size"] != image_size:
        has = meta["image_size"]
        raise unusable(folder, f"its images have {has} pixels a side and data.image_size={image_size} is asked for")
    return meta
