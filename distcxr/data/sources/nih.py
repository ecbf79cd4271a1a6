"""ChestX-ray14 as NIH ships it: the label file of 2017 or 2020, and the images in one folder or in twelve.

Source: Wang et al., "ChestX-ray8", CVPR 2017; NIH Clinical Center, https://nihcc.app.box.com/v/ChestXray-NIHCC

Shapes: N samples, C findings.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distcxr.data.index import MissingDataError, SampleIndex
from distcxr.data.labels import NIH15, encode
from distcxr.data.sources.image_paths import Lister, Listing, as_bytes, check_unique, first_few, without_missing
from distcxr.data.sources.label_columns import FRONTAL_VIEWS, attributes, make_index, optional_cells
from distcxr.recipe.data import Data
from distcxr.tables import Table, read_table

logger = logging.getLogger(__name__)

CSV_NAMES = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")

KNOWN_HASHES = {
    "dc1d2df67fdc1c5a7601d48699cda2b13dc2c4841488b4183dcf04884dbaca11": "NIH v2020",
    "61fbe896321c1c1c8b75f3e4f3a08e4fef6486d95ef8a667c31d4d60dca6cb81": "NIH train_val_list.txt",
    "38ca5ef7f756092946f57c1a59faca882ed589a1ab1f72590b45dc06c6d5e1cc": "NIH test_list.txt",
}
"""sha256 of the bytes of NIH's files. Figures differ between its label files, so a report names its own."""

_NAME, _LABELS, _PATIENT = "Image Index", "Finding Labels", "Patient ID"
_AGE, _SEX, _VIEW = ("Patient Age",), ("Patient Gender", "Patient Sex"), ("View Position",)
_COLUMNS = frozenset((_NAME, _LABELS, _PATIENT, *_AGE, *_SEX, *_VIEW))
_PLAIN_NAME = re.compile(r"(?!\.{1,2}\Z)[^/\\\0]+")
_ARCHIVE_FOLDER = re.compile(r"images_\d{3}")

_HOW_TO_GET = f"""\
Get ChestX-ray14 from the NIH Clinical Center, https://nihcc.app.box.com/v/ChestXray-NIHCC: the twelve
archives images/images_001.tar.gz ... images_012.tar.gz (45 GB), {CSV_NAMES[0]},
train_val_list.txt and test_list.txt. Extract them into one of two layouts:
  ROOT/{CSV_NAMES[0]} (or {CSV_NAMES[1]}), ROOT/train_val_list.txt, ROOT/test_list.txt and
  either ROOT/images/00000001_000.png ...
  or     ROOT/images_001/images/00000001_000.png ... ROOT/images_012/images/00030805_000.png
Then set data.root=ROOT, or DISTCXR_NIH_ROOT=ROOT in the environment."""


def missing_dataset(problem: str) -> MissingDataError:
    """An error of `problem`, how to get the dataset, and the layout that is expected."""
    return MissingDataError(f"{problem}\n{_HOW_TO_GET}")


def read_nih(root: Path, data: Data, lister: Lister) -> SampleIndex:
    """Index the images that NIH's label file lists: with `NIH15` as findings and no other label in the file, or with
    every label that is there, sorted, where `data.findings` is `all`.

    Images are looked for in `images/`, `images_NNN/images/` and `root` itself. Each folder is listed once:
    asking for 112,120 files one by one is slow on a network file system.
    """
    table = read_table(_find_csv(root), only=_COLUMNS, ragged=True)
    index = index_labels(
        table, None if data.findings == "all" else NIH15,
        hint="If it is right, data.findings=all takes every name that the file holds",
    )  # fmt: skip
    names = index.file_names(range(len(index)))
    folders, folder_of_row = _locate(root, lister(root), names)  # -1, absent: as if in the root, the last folder
    there = folder_of_row >= 0
    index = replace(
        index,
        root=root,
        path=as_bytes([folders[number] + name for number, name in zip(folder_of_row.tolist(), names, strict=True)]),
    )
    searched = " and ".join(folder or "the folder itself" for folder in folders)
    layout = f"Searched in {root}: {searched}.\n{_HOW_TO_GET}"
    return without_missing(index, there, data, table=table.path, layout=layout)


def index_labels(table: Table, findings: Sequence[str] | None, hint: str = "") -> SampleIndex:
    """Index every row of NIH's label file, as if its images lay beside it: for scoring predictions without pixels.

    Args:
        findings: columns of the targets, all that the file may hold; None takes every one that is there, sorted.
        hint: as for `encode`.

    Raises ValueError for a label file that lacks a column, lists an image twice, names a path instead of a file, or
    holds an unknown finding or a patient id that is not a number; names the file and the line.
    """
    labels = table.cells(_LABELS)
    if findings is None:
        findings = sorted({token for label in set(labels) for token in label.split("|")} - {""})
    cells = {"age": optional_cells(table, *_AGE), "sex": optional_cells(table, *_SEX),
             "view": optional_cells(table, *_VIEW)}  # fmt: skip
    return make_index(
        table.path.parent,
        findings,
        _names(table),
        encode(labels, findings, table.where, hint),  # none is unknown
        patient_id=_patients(table),
        label_hash=table.content_hash,
        **attributes(table.path, cells, FRONTAL_VIEWS),
    )


def _find_csv(root: Path) -> Path:
    if not root.is_dir():
        raise missing_dataset(f"{root} is not a folder: no dataset is there.")
    for name in CSV_NAMES:
        if (root / name).is_file():
            return root / name
    holds = ", ".join(sorted(os.listdir(root))[:5]) or "nothing"
    raise missing_dataset(f"{root} has neither {CSV_NAMES[0]} nor {CSV_NAMES[1]}; it holds {holds}.")


def _names(table: Table) -> Sequence[str]:
    """The images' file names, checked: each once and without a folder."""
    names = table.cells(_NAME)
    wrong = next((row for row, name in enumerate(names) if not _PLAIN_NAME.fullmatch(name)), None)
    if wrong is not None:
        raise ValueError(
            f"{table.where(wrong)}: image {names[wrong]!r} is not a plain file name. Names such as 00000001_000.png "
            "are expected; a path could leave the data root"
        )
    check_unique(table, names)
    return names


def _patients(table: Table) -> NDArray[np.int64]:
    cells = table.cells(_PATIENT)
    number_of: dict[str, int] = {}
    for cell in dict.fromkeys(cells):  # each once, in the order of the file
        if not (cell.isascii() and cell.isdigit() and len(cell) < 19):  # more overflows int64
            raise ValueError(f"{table.where(cells.index(cell))}: Patient ID {cell!r} is not a whole number")
        number_of[cell] = int(cell)
    return np.array([number_of[cell] for cell in cells], dtype=np.int64)


def _locate(root: Path, listing: Listing, names: Sequence[str]) -> tuple[list[str], NDArray[np.int16]]:
    """Folders below `root` ("" or ending in "/"), and for every name the first of them that has it, or -1."""
    tops = listing.folders("")
    archives = [name for name in tops if _ARCHIVE_FOLDER.fullmatch(name) and "images" in listing.folders(name)]
    folders = [*(["images/"] if "images" in tops else []), *(f"{name}/images/" for name in archives), ""]
    row_of = {name: row for row, name in enumerate(names)}
    folder_of_row = np.full(len(names), -1, dtype=np.int16)
    repeated: list[str] = []
    for number, folder in enumerate(folders):
        for name in listing.names(folder.rstrip("/")):
            row = row_of.get(name)
            if row is None:
                continue
            if folder_of_row[row] >= 0:
                repeated.append(name)
            else:
                folder_of_row[row] = number
    if repeated:
        first = f"{first_few(repeated)}; searched first: {folders[0]}"
        logger.warning(f"{len(repeated):,} images lie in two folders of {root}, the first counts: {first}")
    return folders, folder_of_row
