"""Opening a pack, and what it says of each image.

Shapes: N images.
"""

from __future__ import annotations

import errno
import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distcxr.data.built import STAT_THREADS, look
from distcxr.data.index import SampleIndex
from distcxr.data.pack.files import UNREADABLE, PackError, from_bytes, read_meta, unusable
from distcxr.data.pixels.files import Part

_SHOWN = 3


class Pack:
    """An open pack. Holds all its shards open: they can be read to the end even if a new build replaces them.

    Attributes:
        folder: where it is.
        meta: what pack.json holds.
        entries: `entry_type` [N].
        root: folder that the paths are relative to.
        row_of: int64, the row of each sample of the index it was opened for.
    """

    def __init__(self, folder: Path) -> None:
        """Open a whole pack, without asking which images it holds.

        A shard that is damaged or cut short is no error here: its images are unreadable one by one.

        Raises:
            PackError: it is not there, not whole, or a file of it is missing.
        """
        self.folder, self.meta = folder, read_meta(folder)
        try:
            data = (folder / self.meta["entries"]).read_bytes()
        except OSError as error:
            raise unusable(folder, f"{error.filename} can't be read: {error.strerror}") from error
        if hashlib.sha256(data).hexdigest() != self.meta["entries_sha256"]:
            raise unusable(folder, f"{self.meta['entries']} is damaged")
        self.entries = from_bytes(data)
        self.root, self.row_of = Path(), np.arange(len(self.entries))
        self._pid, self._fds = os.getpid(), list[int]()
        self._shards = [str(folder / name) for name in self.meta["shards"]]
        try:
            for file in self._shards:
                self._fds.append(os.open(file, os.O_RDONLY))
        except OSError as error:
            self.close()
            if error.errno == errno.EMFILE:
                raise PackError(
                    f"the pack in {folder} has {len(self._shards)} files, more than this process may open beside "
                    "others: raise that limit (`ulimit -n 4096`)"
                ) from error
            raise unusable(
                folder,
                f"{error.filename} can't be read: {error.strerror}; where the image files are not, copy it again",
            ) from error

    @property
    def shards(self) -> list[str]:
        """Names of the shard files."""
        return list(self.meta["shards"])

    def path(self, row: int) -> str:
        """Path of the image of a row, relative to the data root."""
        return os.fsdecode(bytes(self.entries["path"][row]))

    def parts(self, sample_id: NDArray[np.int64]) -> list[Part]:
        """Where the codestreams of samples of the index are; for 64 of them 0.05 ms."""
        return self.parts_of_rows(self.row_of[sample_id])

    def parts_of_rows(self, rows: NDArray[np.int64]) -> list[Part]:
        """The same for rows of the pack."""
        entries = self.entries[rows]
        places = zip(*(entries[name].tolist() for name in ("shard", "offset", "num_bytes", "crc")), strict=True)
        parts = [Part(self._shards[shard], self._pid, self._fds[shard], *place) for shard, *place in places]
        for place in np.flatnonzero(entries["state"] == UNREADABLE).tolist():
            parts[place] = parts[place]._replace(reason=self.meta["unreadable"][self.path(rows[place])])
        return parts

    def check_sources(self) -> None:
        """Compare size and modification time of every source file that is there with what was packed.

        A pack serves without the files, too: of a folder that is not there, nothing is asked.

        Raises:
            PackError: some have changed.
        """
        rows = np.unique(self.row_of)
        folders = {bytes(path).rpartition(b"/")[0] for path in self.entries["path"][rows].tolist()}
        prefix = os.fsencode(self.root) + b"/"
        if not any(os.path.isdir(prefix + folder) for folder in folders):
            return
        with ThreadPoolExecutor(STAT_THREADS, thread_name_prefix="stat") as pool:
            changed = [row for part in pool.map(self._changed, np.array_split(rows, STAT_THREADS)) for row in part]
        if changed:
            raise unusable(
                self.folder,
                f"{len(changed):,} of {len(rows):,} images have changed since it was built, such as "
                f"{', '.join(self.path(row) for row in changed[:_SHOWN])}",
            )

    def close(self) -> None:
        """Close the shards."""
        while self._fds:
            os.close(self._fds.pop())

    def _changed(self, rows: NDArray[np.int64]) -> list[int]:
        entries, prefix = self.entries[rows], os.fsencode(self.root) + b"/"
        known = zip(entries["path"].tolist(), entries["size"].tolist(), entries["mtime_ns"].tolist(), strict=True)
        found = ((row, look(prefix + path), state) for row, (path, *state) in zip(rows.tolist(), known, strict=True))
        return [row for row, now, state in found if now not in (state, [-1, -1])]


def open_pack(folder: Path, index: SampleIndex) -> Pack:
    """Open the pack in `folder` for the images of `index`; it may hold others besides.

    Reads no image and looks at no source file; see `Pack.check_sources`.

    Raises:
        PackError: it can't be used, with the reason and the command that builds it.
    """
    pack = Pack(folder)
    names = pack.entries["path"]
    row_of = np.minimum(np.searchsorted(names, index.path), max(0, len(names) - 1)).astype(np.int64)
    foreign = names[row_of] != index.path if len(names) else np.ones(len(index), dtype=bool)
    if foreign.any():
        pack.close()
        shown = ", ".join(os.fsdecode(path) for path in index.path[foreign][:_SHOWN].tolist())
        raise unusable(folder, f"{foreign.sum():,} of {len(index):,} images are not in it, such as {shown}")
    pack.root, pack.row_of = index.root, row_of
    return pack
