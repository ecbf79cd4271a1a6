"""An open store: which of its rows the images of an index have, and whether their files are still the same.

Shapes: N images.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from distcxr.data.index import SampleIndex
from distcxr.data.store.store_files import GONE, Format, StoreError, look
from distcxr.regular import open_regular

STAT_THREADS = 16
"""For looking at many source files: a network file system answers many at once."""

_SHOWN = 3


class OpenedStore:
    """What an open cache and an open pack have in common.

    It holds all its files open: they can be read to the end even if a new build replaces them.

    Attributes:
        settings: the content of its JSON file.
        entries: `Format.entry_type` [N].
        files: those with the images.
        locate: the file of a path in `entries`, known once it is opened for an index.
        row_of: int64, the row of each sample of the index it was opened for.
    """

    def __init__(self, format: Format, folder: Path) -> None:
        """Open a whole store, without asking which images it holds. Reads no image and looks at no source file.
        Raises StoreError: it is not there, not whole, or a file of it is missing."""
        self._format, self.folder = format, folder
        self.settings = format.read_settings(folder)
        self.entries = format.read_entries(folder, self.settings)
        self.locate: Callable[[bytes], bytes] = bytes
        self.row_of = np.arange(len(self.entries))
        self.files = [folder / name for name in format.content_files(self.settings)]
        self._fds = list[int]()
        try:
            for file in self.files:
                self._fds.append(open_regular(file)[0])
        except OSError as error:
            if error.errno == errno.EMFILE:
                self.close()
                raise StoreError(
                    f"the {format.title} in {folder} has {len(self.files)} files, more than this process may open "
                    "beside others: raise that limit (`ulimit -n 4096`)"
                ) from error
            advice = "; where the image files are not, copy it again" if format.stands_alone else ""
            raise self._refused(f"{error.filename} can't be read: {error.strerror}{advice}") from error

    def for_index(self, index: SampleIndex) -> Self:
        """Itself with the rows of an index's images; it may hold others besides.
        Raises StoreError: images are not in it; it is closed then."""
        names = self.entries["path"]
        row_of = np.minimum(np.searchsorted(names, index.path), max(0, len(names) - 1)).astype(np.int64)
        foreign = names[row_of] != index.path if len(names) else np.ones(len(index), dtype=bool)
        if foreign.any():
            shown = ", ".join(os.fsdecode(path) for path in index.path[foreign][:_SHOWN].tolist())
            raise self._refused(f"{foreign.sum():,} of {len(index):,} images are not in it, such as {shown}")
        self.locate, self.row_of = index.locate, row_of
        return self

    def path(self, row: int) -> str:
        """Path of the image of a row, relative to the data root."""
        return os.fsdecode(bytes(self.entries["path"][row]))

    def reason(self, row: int) -> str:
        """Why the image of a row could not be read when the store was built."""
        return str(self.settings["unreadable"].get(self.path(row), "it could not be read, for a reason not noted"))

    def check_sources(self) -> None:
        """Compare size and modification time of every source file with what was read: 0.4 s for 112,120, local.

        A pack serves without the files, too: it is compared with those that are there, and where no folder of them is,
        no file is looked for.

        Raises StoreError: some have changed.
        """
        rows = np.unique(self.row_of)
        if self._format.stands_alone:
            folders = {bytes(path).rpartition(b"/")[0] for path in self.entries["path"][rows].tolist()}
            if not any(os.path.isdir(self.locate(folder)) for folder in folders):
                return
        with ThreadPoolExecutor(STAT_THREADS, thread_name_prefix="stat") as pool:
            changed = [row for part in pool.map(self._changed, np.array_split(rows, STAT_THREADS)) for row in part]
        if changed:
            raise self.unusable(
                f"{len(changed):,} of {len(rows):,} images have changed since it was built, such as "
                f"{', '.join(self.path(row) for row in changed[:_SHOWN])}"
            )

    def unusable(self, why: str) -> StoreError:
        return self._format.unusable(self.folder, why)

    def _refused(self, why: str) -> StoreError:
        self.close()
        return self.unusable(why)

    def close(self) -> None:
        """Close the files. A memory map of one goes with the last array that uses it."""
        while self._fds:
            os.close(self._fds.pop())

    def _changed(self, rows: NDArray[np.int64]) -> list[int]:
        entries = self.entries[rows]
        allowed = [GONE] if self._format.stands_alone else []
        known = zip(entries["path"].tolist(), entries["size"].tolist(), entries["mtime_ns"].tolist(), strict=True)
        found = (
            (row, look(self.locate(path)), state) for row, (path, *state) in zip(rows.tolist(), known, strict=True)
        )
        return [row for row, now, state in found if now != state and now not in allowed]
