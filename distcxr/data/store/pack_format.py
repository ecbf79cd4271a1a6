"""The pack: every image at full size, lossless, in a few hundred files; where the bytes of each image are, and which
files a dataset has, as its pack lists them.

Shapes: N images.
"""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distcxr.data.index import SampleIndex
from distcxr.data.pixels.image_bytes import Part
from distcxr.data.sources.image_paths import FileListing, Lister, Listing
from distcxr.data.store.opened_store import OpenedStore
from distcxr.data.store.store_files import PACK, UNREADABLE, StoreError
from distcxr.recipe.data import Data


class Pack(OpenedStore):
    """An open pack. A shard that is damaged or cut short is no error here: its images are unreadable one by one."""

    def __init__(self, folder: Path) -> None:
        """Open a whole pack, without asking which images it holds.
        Raises StoreError: it is not there, not whole, or a file of it is missing."""
        super().__init__(PACK, folder)
        if len(self.entries) and self.entries["shard"].max() >= len(self.files):
            raise self._refused("its table names shards that pack.json does not have")
        self._pid, self._names = os.getpid(), [str(file) for file in self.files]

    def parts(self, sample_id: NDArray[np.int64]) -> list[Part]:
        """Where the codestreams of samples of the index are; for 64 of them 0.05 ms."""
        rows = self.row_of[sample_id]
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
    Raises StoreError: it can't be used, with the reason and the command that builds it."""
    return Pack(folder).for_index(index)


class PackListing:
    """The images of a pack instead of folders that need not be there."""

    def __init__(self, folder: Path) -> None:
        """List the pack in `folder`. Raises StoreError: there is no whole pack."""
        pack = Pack(folder)
        pack.close()
        self._names: defaultdict[str, set[str]] = defaultdict(set)
        for path in map(os.fsdecode, pack.entries["path"].tolist()):
            while path:  # up to a folder that is known
                path, _, name = path.rpartition("/")
                if name in self._names[path]:
                    break
                self._names[path].add(name)

    def names(self, folder: str) -> list[str]:
        return list(self._names.get(folder, ()))

    def folders(self, folder: str) -> list[str]:
        prefix = f"{folder}/" if folder else ""
        return sorted(name for name in self.names(folder) if prefix + name in self._names)


class Both:
    """What either of two listings has."""

    def __init__(self, one: Listing, other: Listing) -> None:
        self._one, self._other = one, other

    def names(self, folder: str) -> list[str]:
        return list({*self._one.names(folder), *self._other.names(folder)})

    def folders(self, folder: str) -> list[str]:
        return sorted({*self._one.folders(folder), *self._other.folders(folder)})


def pack_lister(data: Data) -> Lister:
    """The images of a recipe's pack; calling it raises StoreError when there is none that can be used."""
    return lambda root: PackListing(pack_folder(data, root))


def pack_and_files(data: Data) -> Lister:
    """The image files that are there, and those of the recipe's pack if there is one: what a pack is to hold."""

    def lister(root: Path) -> Listing:
        try:
            return Both(FileListing(root), PackListing(pack_folder(data, root)))
        except StoreError:
            return FileListing(root)

    return lister
