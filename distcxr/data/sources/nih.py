"""ChestX-ray14 as NIH ships it: the label file of 2017 or 2020, and the images in one folder or in twelve.

Source: Wang et al., "ChestX-ray8", CVPR 2017; NIH Clinical Center, https://nihcc.app.box.com/v/ChestXray-NIHCC

Shapes: N samples, C findings.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from distcxr.data.index import MissingDataError, SampleIndex
from distcxr.data.labels import NIH15, encode
from distcxr.data.sources.attributes import FRONTAL_VIEWS, SEXES, ages, categories
from distcxr.data.sources.file_listing import FileListing, Lister, Listing
from distcxr.data.sources.image_paths import check_unique, first_few
from distcxr.data.sources.label_codes import make_index, optional_cells
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


def read_nih(
    root: Path,
    findings: Sequence[str] | None,
    lister: Lister = FileListing,
    *,
    missing: Literal["error", "skip"] = "error",
    csv: Path | None = None,
) -> SampleIndex:
    """Index the images that NIH's label file lists and that lie under `root`.

    Images are looked for in `images/`, `images_NNN/images/` and `root` itself. Each folder is listed once:
    asking for 112,120 files one by one is slow on a network file system.

    Args:
        findings: columns of the targets, some of `NIH15`; no other token may be in the label file. None takes every
            token that is there, sorted.
        lister: lists the images that are there.
        missing: what to do about rows without a file: `error`, or `skip` them and log how many.
        csv: the label file; by default the one of `CSV_NAMES` in `root`, the newer first.

    Raises:
        MissingDataError: no dataset at `root`, or rows without a file and `missing` is `error`.
        ValueError: a label file that lacks a column, lists an image twice, names a path instead of a file, or
            holds an unknown finding or a patient id that is not a number; names the file and the line.
    """
    root = Path(os.path.abspath(root.expanduser()))
    csv_path = _find_csv(root, csv)
    table = read_table(csv_path, only=_COLUMNS, ragged=True)
    names = _names(table)
    folders, folder_of_row = _locate(root, lister(root), names)
    found, absent = np.flatnonzero(folder_of_row >= 0), np.flatnonzero(folder_of_row < 0)
    _report_missing(root, csv_path, folders, names, absent, missing)
    paths = [f"{folders[folder_of_row[row]]}{names[row]}" for row in found.tolist()]
    skipped = [names[row] for row in absent.tolist()]
    return _index(root, table, findings, found, paths, skipped)


def index_labels(table: Table, findings: Sequence[str]) -> SampleIndex:
    """Index every row of NIH's label file, as if its images lay beside it: for scoring predictions without pixels.

    Raises ValueError as `read_nih`.
    """
    names = _names(table)
    return _index(table.path.parent, table, findings, np.arange(len(names)), names, [])


def _index(
    root: Path,
    table: Table,
    findings: Sequence[str] | None,
    rows: NDArray[np.intp],
    paths: Sequence[str],
    skipped: Sequence[str],
) -> SampleIndex:
    """The index of some rows of the label file; `paths` are theirs."""
    labels = table.cells(_LABELS)
    known: Sequence[str] = NIH15
    if findings is None:
        tokens = {token for label in set(labels) for token in label.split("|")}
        findings = known = sorted(tokens - {""})
    targets_NC = encode(labels, findings, known=known, source=str(table.path), lines=table.lines)
    return make_index(
        root,
        findings,
        paths,
        targets_NC[rows],  # NIH leaves no label unknown
        patient_id=_patients(table)[rows],
        label_hash=table.content_hash,
        age=ages(table.path, optional_cells(table, *_AGE))[rows],
        sex=categories(table.path, "sex", optional_cells(table, *_SEX), SEXES)[rows],
        view=categories(table.path, "view", optional_cells(table, *_VIEW), FRONTAL_VIEWS)[rows],
        skipped=skipped,
    )


def _find_csv(root: Path, csv: Path | None) -> Path:
    if not root.is_dir():
        raise missing_dataset(f"{root} is not a folder: no dataset is there.")
    if csv is not None:
        if not csv.is_file():
            raise missing_dataset(f"The label file {csv} does not exist.")
        return csv
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
    archives = sorted(name for name in listing.names("") if _ARCHIVE_FOLDER.fullmatch(name))
    candidates = ["images/", *(f"{name}/images/" for name in archives), ""]
    folders = [folder for folder in candidates if listing.is_folder(folder.rstrip("/"))]
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


def _report_missing(
    root: Path, csv_path: Path, folders: list[str], names: Sequence[str], absent: NDArray[np.intp], missing: str
) -> None:
    if not len(absent):
        return
    searched = " and ".join(folder or "the folder itself" for folder in folders)
    if len(absent) == len(names):
        raise missing_dataset(
            f"None of the {len(names):,} images that {csv_path} lists is in {root} (searched: {searched})."
        )
    first = first_few([names[row] for row in absent[:4].tolist()], len(absent))
    problem = f"{len(absent):,} of {len(names):,} images in {csv_path} have no file: {first}"
    if missing == "skip":
        logger.warning(f"data.missing=skip: {problem}; they are left out")
        return
    raise MissingDataError(
        f"{problem}. Searched in {root}: {searched}. Extract all twelve images_0xx.tar.gz archives there, "
        "or set data.missing=skip to leave these images out (a run that has begun with them needs them back to resume)"
    )
