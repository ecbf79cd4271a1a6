"""Images that somebody names, without labels: files, folders, and CSV tables with a column of paths.

Shapes: N images.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from distcxr.data.index import SampleIndex
from distcxr.data.pixels.dicom import PREAMBLE_BYTES, is_dicom
from distcxr.data.sources.image_paths import IMAGE_SUFFIXES
from distcxr.data.sources.label_columns import UNKNOWN, attributes, make_index
from distcxr.regular import open_regular
from distcxr.tables import Table, read_table

_TABLES = (".csv", ".csv.gz")
_PATHS = ("path", "file", "image", "image_path", "file_path", "filename", "file_name", "image index")
_ABOUT = {
    "age": ("age", "patient age"),
    "sex": ("sex", "gender", "patient sex", "patient gender"),
    "view": ("view", "view position"),
}
"""Names of columns, in small letters, that a table of images may have."""


@dataclass
class ImageFiles:
    """N images in the order in which they were named.

    Attributes:
        names: as they were named: the path given, or one below the folder given, or the table's cell.
        files: absolute paths; whether anything is there, the reader finds out.
        about: cells of `age`, `sex` and `view`, N each, "" where unknown.
        table: one that has such columns, for warnings about their cells.
        passed_over: files in folders without an image's suffix.
    """

    names: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    about: dict[str, list[str]] = field(default_factory=lambda: {name: [] for name in _ABOUT})
    table: Path = Path()
    passed_over: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.files)

    def add(self, name: str, file: Path | str, about: dict[str, str] | None = None) -> None:
        """One more image."""
        self.names.append(name)
        self.files.append(os.path.abspath(file))
        for key, cells in self.about.items():
            cells.append((about or {}).get(key, ""))

    def index(self, findings: Sequence[str]) -> SampleIndex:
        """An index of them with no known label: row i is image i."""
        codes_NC = np.full((len(self), len(findings)), UNKNOWN, dtype=np.int8)
        known: dict[str, Any] = {key: cells for key, cells in self.about.items() if any(cells)}
        return make_index(
            Path("/"), findings, [file.lstrip("/") for file in self.files], codes_NC,
            patient_id=np.arange(len(self)), label_hash="", named_by_path=True, **attributes(self.table, known),
        )  # fmt: skip


def find_images(paths: Iterable[str | os.PathLike[str]], column: str | None = None) -> ImageFiles:
    """The images that `paths` mean.

    A folder stands for every PNG, JPEG and DICOM in it and below, sorted, without hidden ones; a CSV table for its
    column of paths, relative to the table's folder, with age, sex and view where it has them; anything else for itself.

    Args:
        column: of tables; by default the only one, or the one called `path`, `file`, `image` or the like.

    Raises:
        ValueError: a table that can't be read or does not have that column, or a folder without images.
    """
    found = ImageFiles()
    for given in paths:
        name = os.fspath(given)
        path = Path(name).expanduser()
        if path.is_dir():
            _add_folder(found, path)
        elif name.lower().endswith(_TABLES):
            _add_table(found, path, column)
        else:
            found.add(name, path)
    return found


def _add_folder(found: ImageFiles, folder: Path) -> None:
    before = len(found)
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(name for name in names if not name.startswith(".")):  # macOS leaves ._x.png beside x.png
            file = os.path.join(parent, name)
            if _is_image(file):
                found.add(file, file)
            else:
                found.passed_over.append(file)
    if len(found) == before:
        raise ValueError(f"{folder} holds no image ({', '.join(IMAGE_SUFFIXES)}), and no folder in it does")


def _is_image(file: str) -> bool:
    """By the ending of its name; where that has none, or a number, as DICOMs of archives do, by its first bytes."""
    name = os.path.basename(file).lower()
    ending = os.path.splitext(name)[1]
    if name.endswith(IMAGE_SUFFIXES) or (ending and not ending[1:].isdigit()) or name == "dicomdir":
        return name.endswith(IMAGE_SUFFIXES)
    try:
        descriptor, _ = open_regular(file)
    except OSError:
        return False
    with os.fdopen(descriptor, "rb") as stream:
        return is_dicom(stream.read(PREAMBLE_BYTES))


def _add_table(found: ImageFiles, path: Path, column: str | None) -> None:
    table = read_table(path)
    column_of = {name.lower(): name for name in reversed(table.header)}
    about = {
        key: table.cells(column_of[spelling])
        for key, spellings in _ABOUT.items()
        for spelling in spellings[::-1]
        if spelling in column_of
    }
    if about:
        found.table = path
    cells = table.cells(column, "--column") if column is not None else table.cells(_column_of_paths(table, column_of))
    for row, cell in enumerate(cells):
        if not cell:
            raise ValueError(f"{table.where(row)}: no path")
        found.add(cell, path.parent / Path(cell).expanduser(), {key: texts[row] for key, texts in about.items()})


def _column_of_paths(table: Table, column_of: dict[str, str]) -> str:
    named = [column_of[name] for name in _PATHS if name in column_of]
    if len(table.header) == 1 and not named:
        if table.header[0].lower().endswith(IMAGE_SUFFIXES):
            raise ValueError(
                f"{table.path} has no header: its first line is {table.header[0]!r}; write `path` above it"
            )
        return table.header[0]
    if len(named) != 1:
        which = "which one of its columns" if not named else f"which one of {', '.join(named)}"
        raise ValueError(
            f"{table.path}: {which} holds the paths? Name it with --column; its columns: {', '.join(table.header)}"
        )
    return named[0]
