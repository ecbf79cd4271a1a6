"""CheXpert as Stanford ships it, full size or small.

    ROOT/train.csv, valid.csv (and test.csv)      Path, Sex, Age, Frontal/Lateral, AP/PA, then the 14 observations
    ROOT/train/patient00001/study1/view1_frontal.jpg

A label is 1.0, 0.0, -1.0 (uncertain: 0, 1 or unknown by `data.uncertain`) or blank, not mentioned in the report,
which counts as absent, as is usual with this dataset.

Splits: train.csv trains and, in part, validates. Without test.csv, which Stanford gave out later, valid.csv (200
studies, read by three radiologists) is the test split, as in most papers; with it, valid.csv validates.

Source: Irvin et al., "CheXpert", AAAI 2019.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distcxr.data.index import MissingDataError, SampleIndex
from distcxr.data.labels import CHEXPERT14
from distcxr.data.sources.image_paths import Lister, checked_paths, first_few, with_files
from distcxr.data.sources.label_columns import (
    FRONTAL_VIEWS,
    SEXES,
    ages,
    categories,
    label_codes,
    make_index,
    optional_cells,
    patient_numbers,
    study_numbers,
)
from distcxr.recipe.data import Data
from distcxr.tables import Table, read_table

_FILES = ("train.csv", "valid.csv", "test.csv")
_VIEWS = {**FRONTAL_VIEWS, "LATERAL": "LATERAL"}  # not AP/PA's LL and RL: the 17 images that have them are frontal
_PATIENT = re.compile(r"patient(\d{1,18})")
_LAYOUT = """\
Get CheXpert from https://stanfordaimi.azurewebsites.net and leave the files as they are; data.root is the folder
CheXpert-v1.0 or CheXpert-v1.0-small, or the one above it:
  ROOT/train.csv, ROOT/valid.csv, ROOT/train/patient00001/study1/view1_frontal.jpg ..., ROOT/valid/..."""


def read_chexpert(root: Path, data: Data, lister: Lister) -> SampleIndex:
    """Index the images of CheXpert's tables, with its 14 observations; `root` holds train.csv or the folder with it."""
    root = _find(root)
    tables = [read_table(root / name) for name in _FILES if (root / name).is_file()]
    paths = [path for table in tables for path in _paths(table)]
    if repeated := [path for path, count in Counter(paths).items() if count > 1]:
        raise ValueError(f"{root}: its tables list {len(repeated):,} images more than once: {first_few(repeated)}")
    held_out = "val" if len(tables) == len(_FILES) else "test"
    splits = {"train.csv": "train", "valid.csv": held_out, "test.csv": "test"}
    index = make_index(
        root,
        CHEXPERT14,
        paths,
        np.concatenate([observations(table, data) for table in tables]),
        patient_id=np.concatenate([_patients(table) for table in tables]),
        label_hash=hashlib.sha256("".join(table.content_hash for table in tables).encode()).hexdigest(),
        age=np.concatenate([ages(table.path, optional_cells(table, "Age")) for table in tables]),
        sex=np.concatenate([categories(table.path, "Sex", optional_cells(table, "Sex"), SEXES) for table in tables]),
        view=np.concatenate([categories(table.path, "AP/PA", _views(table), _VIEWS) for table in tables]),
        study=study_numbers([path.rpartition("/")[0] for path in paths]),
        split=np.repeat([splits[table.path.name] for table in tables], [len(table) for table in tables]),
        named_by_path=True,
    )
    return with_files(index, data, lister, table=root / _FILES[0], layout=_LAYOUT)


def observations(table: Table, data: Data) -> NDArray[np.int8]:
    """Codes of the 14 observations, int8 [N, 14]. What the report does not mention counts as absent."""
    hint = f"The columns {CHEXPERT14[0]} to {CHEXPERT14[-1]} are labels"
    return label_codes(table, CHEXPERT14, uncertain=data.uncertain, blank=0, hint=hint)


def _find(root: Path) -> Path:
    """The folder that holds the tables."""
    folders = [root, *sorted(root.glob("CheXpert*"))] if root.is_dir() else []
    found = [folder for folder in folders if (folder / _FILES[0]).is_file()]
    if not found:
        raise MissingDataError(f"{root} has no {_FILES[0]}.\n{_LAYOUT}")
    if len(found) > 1 and found[0] != root:
        raise ValueError(
            f"{root} holds {', '.join(folder.name for folder in found)}: set data.root to the one that is meant"
        )
    if not (found[0] / _FILES[1]).is_file():
        raise MissingDataError(f"{found[0]} has no {_FILES[1]}.\n{_LAYOUT}")
    return found[0]


def _paths(table: Table) -> list[str]:
    """Paths of a table's images relative to its folder; in the table they begin with its name."""
    paths = checked_paths(table, "Path")
    return [path.partition("/")[2] if path.startswith("CheXpert") else path for path in paths]


def _patients(table: Table) -> NDArray[np.int64]:
    found = [_PATIENT.search(path) for path in table.cells("Path")]
    if None in found:
        row = found.index(None)
        raise ValueError(
            f"{table.where(row)}, column Path: no patient in {table.cells('Path')[row]!r}; a folder such as "
            "patient00001 is expected"
        )
    return patient_numbers([match[1] for match in found if match])


def _views(table: Table) -> list[str]:
    sides, directions = optional_cells(table, "Frontal/Lateral"), optional_cells(table, "AP/PA")
    return ["LATERAL" if side == "Lateral" else direction for side, direction in zip(sides, directions, strict=True)]
