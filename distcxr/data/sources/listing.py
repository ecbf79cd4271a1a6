"""Who says which files a dataset has: its folders, or whoever holds their images in their stead."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Protocol


class Listing(Protocol):
    """The folders of a dataset. A `folder` is relative to its root, `/` between names, "" for the root itself."""

    def is_folder(self, folder: str) -> bool: ...

    def names(self, folder: str) -> list[str]:
        """What lies in a folder, folders among it, in any order; nothing where there is no such folder."""
        ...

    def folders(self, folder: str) -> list[str]:
        """Names of the folders in a folder, sorted; none where there is no such folder."""
        ...


Lister = Callable[[Path], Listing]
"""The listing of the dataset at a root. A source calls it once it knows its root."""


class FileListing:
    """What the file system says. Each call asks it: a network file system is slow, so ask once for each folder."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def is_folder(self, folder: str) -> bool:
        return (self._root / folder).is_dir()

    def names(self, folder: str) -> list[str]:
        try:
            return os.listdir(self._root / folder)
        except (FileNotFoundError, NotADirectoryError):
            return []

    def folders(self, folder: str) -> list[str]:
        try:
            with os.scandir(self._root / folder) as entries:
                return sorted(entry.name for entry in entries if entry.is_dir())
        except (FileNotFoundError, NotADirectoryError):
            return []
