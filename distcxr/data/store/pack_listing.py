"""Which files a dataset has, as its pack lists them."""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path

from distcxr.data.sources.file_listing import FileListing, Lister, Listing
from distcxr.data.store.pack_format import Pack, pack_folder
from distcxr.data.store.store_files import StoreError
from distcxr.recipe.data import Data


class PackListing:
    """The images of a pack instead of folders that need not be there."""

    def __init__(self, folder: Path) -> None:
        """List the pack in `folder`.

        Raises:
            StoreError: there is no whole pack.
        """
        pack = Pack(folder)
        pack.close()
        self._names: defaultdict[str, set[str]] = defaultdict(set)
        for path in map(os.fsdecode, pack.entries["path"].tolist()):
            while path:  # up to a folder that is known
                path, _, name = path.rpartition("/")
                if name in self._names[path]:
                    break
                self._names[path].add(name)

    def is_folder(self, folder: str) -> bool:
        return folder in self._names or not folder

    def names(self, folder: str) -> list[str]:
        return list(self._names.get(folder, ()))

    def folders(self, folder: str) -> list[str]:
        prefix = f"{folder}/" if folder else ""
        return sorted(name for name in self.names(folder) if prefix + name in self._names)


class Both:
    """What either of two listings has."""

    def __init__(self, one: Listing, other: Listing) -> None:
        self._one, self._other = one, other

    def is_folder(self, folder: str) -> bool:
        return self._one.is_folder(folder) or self._other.is_folder(folder)

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
