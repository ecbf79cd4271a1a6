"""The cache: every image decoded and resized, and copying batches out of it.

S is `data.image_size`, the size before `augment.crop`: a margin for random crops is a larger image_size.

Shapes: B batch, N images, S side.
"""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

from distcxr.data.index import SampleIndex
from distcxr.data.store.opened_store import OpenedStore
from distcxr.data.store.store_files import CACHE
from distcxr.recipe.data import Data
from distcxr.runfolder.whole import being_written

_EXPORT_ROWS = 256


class DecodedCache(OpenedStore):
    """An open cache of images of `image_size`, S."""

    def __init__(self, folder: Path, image_size: int) -> None:
        """Open a whole cache made with these settings, without asking which images it holds.
        Raises StoreError: it is not there, not whole, or made with other settings."""
        super().__init__(CACHE, folder)
        self.image_size = image_size
        num, self._row_bytes = len(self.entries), image_size**2
        self._bytes = num * self._row_bytes
        has, length = self.settings.get("image_size"), os.fstat(self._fds[0]).st_size
        if has != image_size:
            raise self._refused(f"its images have {has} pixels a side and data.image_size={image_size} is asked for")
        if length != self._bytes:
            raise self._refused(f"{self.files[0].name} has {length:,} bytes instead of {self._bytes:,}")
        self._pixels_NP = np.asarray(np.memmap(self.files[0], dtype=np.uint8, mode="r", shape=(num, self._row_bytes)))
        self._verified, self._all_verified = np.zeros(num, dtype=bool), False

    def gather(self, rows: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        """Copy the images of cache rows into `out`, uint8 [B, S*S]; without the GIL, but for an image's first time.

        An image is compared with its CRC-32 the first time, and read with system calls, so that a bad disk is an
        error and not a bus error; that time it costs about three times as much. Afterwards it comes from the memory
        map, which is nearly as fast as memory and 1.4 times as fast as system calls. Start `out` at a multiple of 64
        bytes: other starts cost a quarter of the speed.

        Raises RuntimeError: the file is damaged.
        """
        assert len(rows) == len(out)
        if not self._all_verified:
            if not self._verified[rows].all():
                self._gather_checked(rows, out)
                return
            self._all_verified = bool(self._verified.all())
        # A map that reaches beyond the file's end would end the process with a bus error.
        if os.fstat(self._fds[0]).st_size < self._bytes:
            raise RuntimeError(str(self.unusable(f"{self.files[0].name} was cut short while in use")))
        np.take(self._pixels_NP, rows, axis=0, out=out, mode="clip")  # mode="raise" would copy twice

    def content(self, row: int) -> NDArray[np.uint8] | None:
        """The pixels of a row, uint8 [S*S], compared with their checksum; None when they are damaged."""
        pixels = np.empty(self._row_bytes, dtype=np.uint8)
        try:
            self._gather_checked(np.array([row]), pixels[None])
        except RuntimeError:
            return None
        return pixels

    def _gather_checked(self, rows: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        """`gather` with every checksum, whether or not it was compared before."""
        fd, row_bytes = self._fds[0], self._row_bytes
        for row in rows.tolist():  # the disk gets all of them at once, not one after the other
            os.posix_fadvise(fd, row * row_bytes, row_bytes, os.POSIX_FADV_WILLNEED)
        for pixels, row, crc in zip(out, rows.tolist(), self.entries["pixels_crc"][rows].tolist(), strict=True):
            try:
                got = os.preadv(fd, [pixels], row * row_bytes)
            except OSError as error:
                raise RuntimeError(f"{self.files[0]} can't be read: {error.strerror}") from error
            if got != row_bytes or isal_zlib.crc32(pixels) != crc:
                raise RuntimeError(str(self.unusable(f"the pixels of {self.path(row)} in it are damaged")))
        self._verified[rows] = True


def export_npy(folder: Path, image_size: int, file: Path) -> int:
    """Write the whole cache in `folder` as an array uint8 [N, S, S] that `numpy.load(file, mmap_mode="r")` opens, every
    image compared with its checksum, and beside it `<file>.txt`: the N paths, one a line. Returns N.

    Raises StoreError: there is no whole cache of this size. RuntimeError: it is damaged. OSError: the disk is full.
    """
    with closing(DecodedCache(folder, image_size)) as cache:
        num = len(cache.entries)
        header = {"descr": "|u1", "fortran_order": False, "shape": (num, image_size, image_size)}
        with being_written(file) as part, part.open("wb") as stream:
            np.lib.format.write_array_header_1_0(stream, header)
            for start in range(0, num, _EXPORT_ROWS):
                rows = np.arange(start, min(start + _EXPORT_ROWS, num))
                pixels = np.empty((len(rows), image_size**2), dtype=np.uint8)
                cache.gather(rows, pixels)
                stream.write(pixels.data)
        with being_written(file.with_name(f"{file.name}.txt")) as part:
            part.write_bytes(b"".join(path + b"\n" for path in cache.entries["path"].tolist()))
    return num


def cache_folder(data: Data, root: Path) -> Path:
    """Where the cache of a recipe's `data` section is: `data.cache.path`, or a folder in the data root, one for each
    choice of members of a joint data set."""
    if data.cache.path is not None:
        return data.cache.path.expanduser()
    name = "+".join([*(member.title for member in data.members), f"{data.image_size}px"])
    return root / "distcxr-cache" / name


def open_cache(folder: Path, index: SampleIndex, image_size: int) -> DecodedCache:
    """Open the cache in `folder` for the images of `index`; it may hold others besides.
    Raises StoreError: it can't be used, with the reason and the command that builds it."""
    return DecodedCache(folder, image_size).for_index(index)
