"""Paths of images in label files: checked to stay in the data root, and looked up in the dataset's folders.

Shapes: N samples.
"""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from distcxr.data.index import MissingDataError, SampleIndex
from distcxr.recipe.data import Data
from distcxr.tables import Table

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".dcm", ".dicom")

_LIST_THREADS = 16  # a network file system answers many at once


class Listing(Protocol):
    """The folders of a dataset. A `folder` is relative to its root, `/` between names, "" for the root itself."""

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


def checked_path(text: str) -> str:
    """A path relative to the data root, its parts joined by `/`; ValueError for one that could leave the root."""
    parts = [part for part in text.split("/") if part not in ("", ".")]
    if text.startswith("/") or "\\" in text or "\0" in text or ".." in parts or not parts:
        raise ValueError(f"image {text!r} is not a path below the data root (with / between folders)")
    return "/".join(parts)


def checked_paths(table: Table, column: str) -> list[str]:
    """`checked_path` of a column's cells; ValueError with file, line and column."""
    paths = []
    for row, cell in enumerate(table.cells(column)):
        try:
            paths.append(checked_path(cell))
        except ValueError as error:
            raise ValueError(f"{table.where(row)}, column {column}: {error}") from None
    return paths


def check_unique(table: Table, images: Sequence[str]) -> None:
    """Raise ValueError, with the lines, where two rows of a table name the same of `images`, one a row."""
    if len(set(images)) == len(images):
        return
    row_of: dict[str, int] = {}
    repeated = [
        f"{image} (lines {table.lines[first]} and {table.lines[row]})"
        for row, image in enumerate(images)
        if (first := row_of.setdefault(image, row)) != row
    ]
    raise ValueError(f"{table.path} lists {len(repeated):,} images more than once: {first_few(repeated)}")


def file_of_stems(listing: Listing, folder: str, stems: Iterable[str], suffix: str) -> dict[str, str]:
    """The file in a folder that holds the image of each stem: with an image's suffix, where there is one, whichever it
    is (converted images have others than those that came), and otherwise with `suffix`. Of several that with `suffix`,
    or the first by name: a file system lists them in any order."""
    there: dict[str, str] = {}
    for name in sorted(listing.names(folder), key=lambda name: (not name.endswith(suffix), name)):
        stem, dot, ending = name.rpartition(".")
        if dot + ending.lower() in IMAGE_SUFFIXES:
            there.setdefault(stem, name)
    return {stem: there.get(stem, stem + suffix) for stem in stems}


def with_files(index: SampleIndex, data: Data, lister: Lister, *, table: Path, layout: str) -> SampleIndex:
    """The samples of `index` with a file, as `without_missing`. Each folder that paths name is listed once, several at
    a time: asking for 377,110 files one by one is slow on a network file system."""
    listing = lister(index.root)
    paths = [os.fsdecode(path) for path in index.path.tolist()]
    rows_of: defaultdict[str, list[int]] = defaultdict(list)
    for row, path in enumerate(paths):
        rows_of[path.rpartition("/")[0]].append(row)
    there = np.zeros(len(paths), dtype=np.bool_)

    def look(folder: str) -> None:
        try:
            names = set(listing.names(folder))
        except OSError:
            return
        for row in rows_of[folder]:
            there[row] = paths[row].rpartition("/")[2] in names

    with ThreadPoolExecutor(_LIST_THREADS, thread_name_prefix="list") as pool:
        list(pool.map(look, rows_of))
    return without_missing(index, there, data, table=table, layout=layout)


def without_missing(
    index: SampleIndex, there: NDArray[np.bool_], data: Data, *, table: Path, layout: str
) -> SampleIndex:
    """The samples of `index` with a file, bool [N]; the others are its `skipped`, with a line in the log.

    Args:
        table: the label file that names them, for messages.
        layout: where files are expected, for messages.

    Raises MissingDataError when no file is there, or some are not and `data.missing` is `error`.
    """
    absent = np.flatnonzero(~there)
    if not len(absent):
        return index
    if len(absent) == len(index):
        raise MissingDataError(f"None of the {len(index):,} images that {table} lists is in {index.root}.\n{layout}")
    first = first_few([os.fsdecode(path) for path in index.path[absent[:4]].tolist()])
    problem = f"{len(absent):,} of {len(index):,} images in {table} have no file in {index.root}: {first}"
    if data.missing == "error":
        raise MissingDataError(
            f"{problem}. Put them there, or set data.missing=skip to leave these images out (a run that has begun with "
            "them needs them back to resume)"
        )
    logger.warning(f"data.missing=skip: {problem}; they are left out")
    return replace(
        index.take(np.flatnonzero(there)),
        skipped=as_bytes(index.file_names(absent)),
        num_listed_patients=len(np.unique(index.patient_id)),
    )


def as_bytes(names: Collection[str]) -> NDArray[np.bytes_]:
    """Paths as the index holds them."""
    return np.array([os.fsencode(name) for name in names], dtype=np.bytes_)


def first_few(names: Sequence[str]) -> str:
    """The first three, for messages."""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
