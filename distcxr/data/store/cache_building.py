"""Making a decoded cache, and bringing one up to date.

Shapes: N images, S side.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distcxr.data.index import SampleIndex
from distcxr.data.pixels.resize import resize_grey
from distcxr.data.store.cache_format import DecodedCache
from distcxr.data.store.cache_resuming import UnfinishedCache
from distcxr.data.store.store_building import GOOD, Built, Report, StoreBuilder, building_in
from distcxr.data.store.store_files import CACHE, MADE, UNREADABLE, StoreError

logger = logging.getLogger(__name__)


def build_cache(
    index: SampleIndex, folder: Path, image_size: int, *, workers: int, report: Report = lambda *_: None
) -> Built:
    """Make the cache of all images of `index` in `folder`, or bring the one there up to date.

    Each image of an earlier cache is checked: its pixels' checksum, its file's size and modification time, and where
    only the time differs, the file's checksum. If all are right no pixels are written; otherwise a new file is, and
    running jobs keep the old one. Running it again after it was stopped, in whatever way, resumes it.

    Args:
        workers: threads; a file is decoded without the GIL.

    Raises:
        StoreError: another process builds it, the disk is full, or the folder can't be written.
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
