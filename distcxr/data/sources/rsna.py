"""The RSNA Pneumonia Detection Challenge of 2018 as Kaggle ships it, stage 2: 26,684 DICOMs of NIH ChestX-ray14 with
boxes that radiologists drew around opacities.

    stage_2_train_labels.csv           patientId (the image, in fact), x, y, width, height, Target: a row a box, or one
    stage_2_detailed_class_info.csv    patientId, class; not needed, brings No Finding ("Normal")
    stage_2_train_images/<patientId>.dcm
    pneumonia-challenge-dataset-mappings_2018.json    from RSNA, not needed: which of NIH's images each one is
    train_val_list.txt, test_list.txt  NIH's, not needed; with the mapping they are the official split

`Target` is the label of two findings, Lung Opacity and Pneumonia: an opacity that made the radiologists think of
pneumonia. Kaggle gave no labels of its test images, so they are not read, and no split.

**These are NIH's images.** Without the mapping, a patient with two images counts as two, and who trained on NIH's
images has seen some of these: with it, `patient_id` is NIH's.

Source: Shih et al., Radiology: Artificial Intelligence 2019, https://www.kaggle.com/c/rsna-pneumonia-detection-challenge

Shapes: N images, C findings.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distcxr.data.index import MissingDataError, SampleIndex
from distcxr.data.labels import NO_FINDING
from distcxr.data.sources.image_paths import Lister, file_of_stems, first_few, with_files
from distcxr.data.sources.label_columns import each_its_own, make_index
from distcxr.recipe.data import Data
from distcxr.regular import read_regular
from distcxr.tables import Table, read_table

logger = logging.getLogger(__name__)

MAPPING = "pneumonia-challenge-dataset-mappings_2018.json"
_LABELS, _CLASSES, _FOLDER = "stage_2_train_labels.csv", "stage_2_detailed_class_info.csv", "stage_2_train_images"
_NORMAL = {"Normal": 1, "No Lung Opacity / Not Normal": 0, "Lung Opacity": 0}
_LISTS = {"train": "train_val_list.txt", "test": "test_list.txt"}
_IMAGE = re.compile(r"[0-9A-Za-z_-]+")
_NIH_IMAGE = re.compile(r"(\d{8})_\d{3}\.png")
_HOW_TO_MAP = (
    f"{MAPPING} from https://www.rsna.org/artificial-intelligence/ai-image-challenge/"
    "rsna-pneumonia-detection-challenge-2018, beside the labels, names them"
)
_LAYOUT = f"""\
Get it from https://www.kaggle.com/c/rsna-pneumonia-detection-challenge/data (the competition's rules: research and
education) and leave the files as they are:
  ROOT/{_LABELS}, ROOT/{_CLASSES}, ROOT/{_FOLDER}/<patientId>.dcm ...
  ROOT/{MAPPING} from RSNA: which of NIH's images and patients they are"""


def read_rsna(root: Path, data: Data, lister: Lister) -> SampleIndex:
    """Index the images that the table of stage 2 labels."""
    if not (root / _LABELS).is_file():
        raise MissingDataError(f"{root} has no {_LABELS}.\n{_LAYOUT}")
    table = read_table(root / _LABELS, only=("patientId", "Target"))
    target_of = _one_a_patient(table, "Target", {"0": 0, "1": 1})
    findings, codes = ["Lung Opacity", "Pneumonia"], [list(target_of.values())] * 2
    if (root / _CLASSES).is_file():
        classes = read_table(root / _CLASSES)
        normal_of = _one_a_patient(classes, "class", _NORMAL)
        if absent := [image for image in target_of if image not in normal_of]:
            raise ValueError(f"{classes.path} lacks {len(absent):,} images of {_LABELS}: {first_few(absent)}")
        findings.append(NO_FINDING)
        codes.append([normal_of[image] for image in target_of])
    file_of = file_of_stems(lister(root), _FOLDER, target_of, ".dcm")
    nih_images = _nih_images(root, target_of)
    if not nih_images:
        logger.warning(f"{root}: which patients the images are of is not known; {_HOW_TO_MAP}")
    index = make_index(
        root,
        findings,
        [f"{_FOLDER}/{file_of[image]}" for image in target_of],
        np.array(codes, dtype=np.int8).T,
        patient_id=np.array([int(image[:8]) for image in nih_images], dtype=np.int64)
        if nih_images
        else each_its_own(list(target_of)),
        label_hash=table.content_hash,
        split=_official(root, nih_images),
    )
    return with_files(index, data, lister, table=table.path, layout=_LAYOUT)


def _one_a_patient(table: Table, column: str, code_of: dict[str, int]) -> dict[str, int]:
    """The code of each image, in the table's order; ValueError, with the line, where two rows of one differ."""
    table.cells(column)  # or an error that names it
    codes = table.codes(table.header.index(column), code_of)
    found: dict[str, int] = {}
    for row, (image, code) in enumerate(zip(table.cells("patientId"), codes, strict=True)):
        if not _IMAGE.fullmatch(image):
            raise ValueError(f"{table.where(row)}, column patientId: {image!r} can't be the name of an image")
        if found.setdefault(image, int(code)) != code:
            raise ValueError(f"{table.where(row)}, column {column}: {image} has another one in a line above")
    return found


def _nih_images(root: Path, images: Iterable[str]) -> list[str]:
    """The name that each image has in NIH's data set; none where the mapping is not there."""
    if not (root / MAPPING).is_file():
        return []
    try:
        entries = json.loads(read_regular(root / MAPPING)[0])
        if not isinstance(entries, list):
            raise TypeError("no list")
        name_of = {str(entry["subset_img_id"]): str(entry["img_id"]) for entry in entries}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{root / MAPPING} is not RSNA's list of {{subset_img_id, img_id}} ({type(error).__name__}: {error}). "
            "Download it again, or take it away"
        ) from error
    if wrong := [image for image in images if not _NIH_IMAGE.fullmatch(name_of.get(image, ""))]:
        raise ValueError(f"{root / MAPPING} names no image of NIH's for {len(wrong):,} images: {first_few(wrong)}")
    return [name_of[image] for image in images]


def _official(root: Path, nih_images: Sequence[str]) -> NDArray[np.str_] | None:
    """NIH's split of the images, where the mapping and NIH's lists are there; None otherwise."""
    if not nih_images or not all((root / name).is_file() for name in _LISTS.values()):
        return None
    split_of: dict[str, str] = {}
    for split, name in _LISTS.items():
        try:
            split_of |= dict.fromkeys(read_regular(root / name)[0].decode().split(), split)
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"the list {root / name} can't be read: {error}") from error
    return np.array([split_of.get(image, "") for image in nih_images])
