"""MIMIC-CXR-JPG as PhysioNet ships it: 377,110 images, labels by study, in three tables.

    mimic-cxr-2.0.0-chexpert.csv.gz     subject_id, study_id, the 14 observations as CheXpert's labeller found them
    mimic-cxr-2.0.0-split.csv.gz        dicom_id, study_id, subject_id, split: train, validate or test
    mimic-cxr-2.0.0-metadata.csv.gz     dicom_id, subject_id, study_id, ViewPosition and much else
    files/p10/p10000032/s50414267/<dicom_id>.jpg

Labels are read as CheXpert's are: blank counts as absent, and `data.uncertain` sets what -1.0 means. Images of a study
without a row of labels stay, with no known label. Age and sex are in MIMIC-IV, not here: unknown.

Source: Johnson et al., "MIMIC-CXR-JPG", 2019, https://physionet.org/content/mimic-cxr-jpg/
"""

from __future__ import annotations

import hashlib
import logging
import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distcxr.data.index import MissingDataError, SampleIndex
from distcxr.data.labels import CHEXPERT14
from distcxr.data.sources.chexpert import observations
from distcxr.data.sources.image_paths import Lister, check_unique, first_few, with_files
from distcxr.data.sources.label_columns import UNKNOWN, VIEWS, categories, make_index, splits
from distcxr.recipe.data import Data
from distcxr.tables import Table, read_table

logger = logging.getLogger(__name__)

_SPLITS = {"train": "train", "validate": "val", "test": "test"}
_IMAGE = re.compile(r"[0-9A-Za-z_-]+")
_DIGITS = 9  # of a subject's and a study's number, at most; MIMIC's have 8
_LAYOUT = """\
Get MIMIC-CXR-JPG from https://physionet.org/content/mimic-cxr-jpg and leave the files as they are:
  ROOT/mimic-cxr-2.0.0-chexpert.csv.gz, ROOT/mimic-cxr-2.0.0-split.csv.gz, ROOT/mimic-cxr-2.0.0-metadata.csv.gz
  ROOT/files/p10/p10000032/s50414267/<dicom_id>.jpg ..."""


def read_mimic(root: Path, data: Data, lister: Lister) -> SampleIndex:
    """Index the images that MIMIC-CXR-JPG's split table lists; takes 5 s of a core for all."""
    split, labels = read_table(_find(root, "split")), read_table(_find(root, "chexpert"))
    metadata = read_table(_find(root, "metadata"), only=("dicom_id", "ViewPosition"))
    images, studies = split.cells("dicom_id"), _numbers(split, "study_id")
    subjects = _numbers(split, "subject_id")
    for row in (row for row, image in enumerate(images) if not _IMAGE.fullmatch(image)):
        raise ValueError(f"{split.where(row)}, column dicom_id: {images[row]!r} can't be the name of an image")
    paths = [
        f"files/p{subject // 10**6}/p{subject}/s{study}/{image}.jpg"
        for subject, study, image in zip(subjects.tolist(), studies.tolist(), images, strict=True)
    ]
    check_unique(split, paths)
    index = make_index(
        root,
        CHEXPERT14,
        paths,
        _labels(split, subjects, studies, labels, data),
        patient_id=subjects,
        label_hash=hashlib.sha256((labels.content_hash + split.content_hash).encode()).hexdigest(),
        view=_views(split, metadata),
        study=studies,
        split=splits(split, "split", _SPLITS),
    )
    return with_files(index, data, lister, table=split.path, layout=_LAYOUT)


def _find(root: Path, what: str) -> Path:
    """One of the tables, compressed or not; of several versions the newest."""
    found = sorted([*root.glob(f"mimic-cxr-2.*-{what}.csv"), *root.glob(f"mimic-cxr-2.*-{what}.csv.gz")])
    if not found:
        raise MissingDataError(f"{root} has no mimic-cxr-2.0.0-{what}.csv.gz.\n{_LAYOUT}")
    return found[-1]


def _numbers(table: Table, name: str) -> NDArray[np.int64]:
    cells = table.cells(name)
    for row, cell in enumerate(cells):
        if not (cell.isascii() and cell.isdigit() and len(cell) <= _DIGITS):
            raise ValueError(f"{table.where(row)}, column {name}: {cell!r} is not a {name.removesuffix('_id')} number")
    return np.array(cells, dtype=np.int64)


def _labels(
    split: Table, subjects: NDArray[np.int64], studies: NDArray[np.int64], labels: Table, data: Data
) -> NDArray[np.int8]:
    """Label codes of every image, int8 [N, C], from those of its study."""
    import pandas as pd

    codes_SC = observations(labels, data)  # S studies
    rows_S = pd.Index(_numbers(labels, "subject_id") * 10**_DIGITS + _numbers(labels, "study_id"))
    if not rows_S.is_unique:
        row = int(rows_S.duplicated().argmax())
        raise ValueError(f"{labels.where(row)}: a study that has labels in another line, too")
    at = rows_S.get_indexer(subjects * 10**_DIGITS + studies)
    known = at >= 0
    if not known.any():
        raise ValueError(f"{labels.path} has no label of any study in {split.path}: they do not belong together")
    if num_open := int(np.count_nonzero(~known)):
        logger.warning(f"{labels.path}: {num_open:,} images are of studies without labels: all are unknown for them")
    codes_NC: NDArray[np.int8] = np.where(known[:, None], codes_SC[at], np.int8(UNKNOWN))
    return codes_NC


def _views(split: Table, metadata: Table) -> NDArray[np.str_]:
    views = categories(metadata.path, "ViewPosition", metadata.cells("ViewPosition"), VIEWS)
    row_of = {image: row for row, image in enumerate(metadata.cells("dicom_id"))}
    absent = [image for image in split.cells("dicom_id") if image not in row_of]
    if absent:
        raise ValueError(f"{metadata.path} lacks {len(absent):,} images of {split.path.name}: {first_few(absent)}")
    return views[[row_of[image] for image in split.cells("dicom_id")]]
