"""The pack: every image at full size, lossless, in a few hundred files, and where the bytes of each image are.

Shapes: N images.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distcxr.data.index import SampleIndex
from distcxr.data.pixels.image_bytes import Part
from distcxr.data.store.opened_store import OpenedStore
from distcxr.data.store.store_files import PACK, UNREADABLE
from distcxr.recipe.data import Data


class Pack(OpenedStore):
    """An open pack. A shard that is damaged or cut short is no error here: its images are unreadable one by one."""

    def __init__(self, folder: Path) -> None:
        """Open a whole pack, without asking which images it holds.

        Raises:
            StoreError: it is not there, not whole, or a file of it is missing.
        """
        super().__init__(PACK, folder)
        if len(self.entries) and self.entries["shard"].max() >= len(self.files):
            raise self._refused("its table names shards that pack.json does not have")
        self._pid, self._names = os.getpid(), [str(file) for file in self.files]

    def parts(self, sample_id: NDArray[np.int64]) -> list[Part]:
        """Where the codestreams of samples of the index are; for 64 of them 0.05 ms."""
        return self.parts_of_rows(self.row_of[sample_id])

    def parts_of_rows(self, rows: NDArray[np.int64]) -> list[Part]:
        """The same for rows of the pack."""
        entries = self.entries[rows]
        columns = zip(*(entries[name].tolist() for name in ("shard", "offset", "num_bytes", "crc")), strict=True)
        parts = [Part(self._names[shard], self._pid, self._fds[shard], *piece) for shard, *piece in columns]
        for position in np.flatnonzero(entries["state"] == UNREADABLE).tolist():
            parts[position] = parts[position]._replace(reason=self.reason(rows[position]))
        return parts


def pack_folder(data: Data, root: Path) -> Path:
    """Where the pack of a recipe's `data` section is: `data.pack.path`, or a folder in the data root."""
    return data.pack.path.expanduser() if data.pack.path is not None else root / "distcxr-pack"


def open_pack(folder: Path, index: SampleIndex) -> Pack:
    """Open the pack in `folder` for the images of `index`; it may hold others besides.

    Raises:
        StoreError: it can't be used, with the reason and the command that builds it.
    """
    return Pack(folder).for_index(index)
