"""`Listing`: the folders and files of a dataset. `FileListing` asks the file system; a pack has its own listing."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Protocol


class Listing(Protocol):
    """The folders of a dataset. A `folder` is relative to its root, `/` between names, "" for the root itself."""

    def is_folder(self, folder: str) -> bool: ...

    def names(self, folder: str) -> list[str]:
        """Names of the files and folders in a folder, in any order; none where it does not exist."""
        ...

    def folders(self, folder: str) -> list[str]:
        """Names of the folders in a folder, sorted; none where it does not exist."""
        ...


Lister = Callable[[Path], Listing]
"""The listing of the dataset at a root. A source calls it once it knows its root."""


class FileListing:
    """The file system's folders. Each call asks it, which is slow over a network: ask once for each folder."""

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
