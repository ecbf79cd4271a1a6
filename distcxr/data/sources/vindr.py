"""VinDr-CXR as PhysioNet ships it: 18,000 DICOMs, 15,000 to train and 3,000 to test, read by 17 radiologists.

    annotations/image_labels_train.csv    image_id, rad_id, 28 findings: three rows an image, one of each radiologist
    annotations/image_labels_test.csv     image_id, the findings: one row, what five radiologists agreed on
    train/<image_id>.dicom, test/<image_id>.dicom

Three radiologists differ, and `data.radiologists` decides. Findings have the names that other data sets have, where one
has the same (`common_name`): "Pleural effusion" is Effusion. All images are PA; patients, age and sex are not in the
tables, and images converted to PNG or JPEG are found, too.

Source: Nguyen et al., "VinDr-CXR", Scientific Data 2022, https://physionet.org/content/vindr-cxr/

Shapes: N images, R rows of radiologists, C findings.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distcxr.data.index import MissingDataError, SampleIndex
from distcxr.data.labels import NO_FINDING, common_name
from distcxr.data.sources.image_paths import Lister, check_unique, file_of_stems, first_few, with_files
from distcxr.data.sources.label_columns import each_its_own, label_codes, make_index
from distcxr.recipe.data import Data
from distcxr.tables import Table, read_table

_SPLITS = ("train", "test")
_ABOUT = ("image_id", "rad_id")
_IMAGE = re.compile(r"[0-9A-Za-z_-]+")
_OTHER_SPELLING = {"Other disease": "Other diseases"}  # of the test table
_LAYOUT = """\
Get VinDr-CXR from https://physionet.org/content/vindr-cxr (its credentialed access; 205 GB) and leave the files as they
are; data.root is the folder 1.0.0:
  ROOT/annotations/image_labels_train.csv, ROOT/annotations/image_labels_test.csv
  ROOT/train/<image_id>.dicom ..., ROOT/test/<image_id>.dicom ...
Kaggle's copy (train.csv, no labels of the test images) is read by data.dataset=csv once it has a row an image."""


def read_vindr(root: Path, data: Data, lister: Lister) -> SampleIndex:
    """Index the images of VinDr-CXR's two tables; an image is a patient of its own."""
    tables = {split: read_table(_find(root, split)) for split in _SPLITS}
    columns = {split: _findings(table) for split, table in tables.items()}
    findings = tuple(columns["train"])
    if odd := set(findings) ^ set(columns["test"]):
        raise ValueError(
            f"{tables['train'].path} and {tables['test'].path.name} have different findings: "
            f"{first_few(sorted(odd))} in one of them alone"
        )
    listing = lister(root)
    names, paths, codes = list[str](), list[str](), list[NDArray[np.int8]]()
    for split, table in tables.items():
        images, codes_NC = _agreed(table, columns[split], findings, data)
        file_of = file_of_stems(listing, split, images, ".dicom")
        names += images
        paths += [f"{split}/{file_of[image]}" for image in images]
        codes.append(codes_NC)
    if both := sorted(set(names[: len(codes[0])]) & set(names[len(codes[0]) :])):
        raise ValueError(f"{tables['test'].path} lists images of {tables['train'].path.name}: {first_few(both)}")
    index = make_index(
        root,
        findings,
        paths,
        np.concatenate(codes),
        patient_id=each_its_own(names),
        label_hash=hashlib.sha256("".join(table.content_hash for table in tables.values()).encode()).hexdigest(),
        view=np.full(len(paths), "PA"),
        split=np.repeat(_SPLITS, [len(part) for part in codes]),
    )
    return with_files(index, data, lister, table=tables["train"].path.parent, layout=_LAYOUT)


def _find(root: Path, split: str) -> Path:
    name = f"image_labels_{split}.csv"
    found = [folder / name for folder in (root / "annotations", root) if (folder / name).is_file()]
    if not found:
        raise MissingDataError(f"{root} has no annotations/{name}.\n{_LAYOUT}")
    return found[0]


def _findings(table: Table) -> dict[str, str]:
    """The column of each finding by its common name, in the table's order."""
    names = [name for name in table.header if name not in _ABOUT]
    found = {common_name(_OTHER_SPELLING.get(name, name)): name for name in names}
    if len(found) < len(names) or "" in found or not found:
        raise ValueError(f"{table.path}: columns of findings without a name, or two of the same: {', '.join(names)}")
    return found


def _agreed(
    table: Table, column_of: dict[str, str], findings: Sequence[str], data: Data
) -> tuple[list[str], NDArray[np.int8]]:
    """The images of a table, N in its order, and their codes, int8 [N, C]: what the radiologists of each make of it.

    `any` asks all of them for No Finding, so that it does not stand beside what one of them found.
    """
    cells = table.cells("image_id")
    for row in (row for row, cell in enumerate(cells) if not _IMAGE.fullmatch(cell)):
        raise ValueError(f"{table.where(row)}, column image_id: {cells[row]!r} can't be the name of an image")
    readers = table.cells("rad_id") if "rad_id" in table.header else ("",) * len(table)
    check_unique(table, list(map(" read by ".join, zip(cells, readers, strict=True))))
    hint = "The columns besides image_id and rad_id are findings"
    codes_RC = label_codes(table, [column_of[name] for name in findings], uncertain=None, blank=0, hint=hint)
    number_of = {image: number for number, image in enumerate(dict.fromkeys(cells))}
    number_R = np.array([number_of[cell] for cell in cells])
    votes_NC = np.zeros((len(number_of), len(findings)), dtype=np.int64)
    np.add.at(votes_NC, number_R, codes_RC)
    readers_N1 = np.bincount(number_R)[:, None]
    if data.radiologists == "majority":
        shown_NC = 2 * votes_NC > readers_N1
    else:
        unanimous = np.array([name == NO_FINDING for name in findings])
        shown_NC = np.where(unanimous, votes_NC == readers_N1, votes_NC > 0)
    return list(number_of), shown_NC.astype(np.int8)
