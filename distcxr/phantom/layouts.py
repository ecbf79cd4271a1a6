"""Layouts of the synthetic X-rays: the paths of their images and their label tables, as in NIH's and other datasets."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from distcxr.data.labels import CHEXPERT14, NIH14, NIH15, NO_FINDING
from distcxr.phantom.plan import Xray

IMAGE_WIDTH_MM = 350
NIH_CSV, TRAIN_VAL_LIST, TEST_LIST = "Data_Entry_2017_v2020.csv", "train_val_list.txt", "test_list.txt"
CHESTMNIST = "chestmnist.npz"

_NIH_HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)
# CheXpert's names for what the X-rays show; emphysema has none there.
_CHEXPERT_NAME = {
    "Effusion": "Pleural Effusion", "Infiltration": "Lung Opacity", "Mass": "Lung Lesion", "Nodule": "Lung Lesion",
    "Fibrosis": "Lung Opacity", "Pleural_Thickening": "Pleural Other", "Hernia": "Enlarged Cardiomediastinum",
}  # fmt: skip


class Layout(NamedTuple):
    """The files of one layout.

    path: of an image, relative to the folder; PNG or JPEG by its ending.
    tables: text of each file beside the images by its name, from the X-rays and their side in pixels.
    """

    path: Callable[[Xray], str]
    tables: Callable[[Sequence[Xray], int], dict[str, str]]


def _nih_tables(xrays: Sequence[Xray], size: int) -> dict[str, str]:
    spacing = round(IMAGE_WIDTH_MM / size, 6)
    rows = [
        f"{xray.name},{'|'.join(xray.findings) or NO_FINDING},{xray.follow_up},{xray.patient_id},{xray.age},{xray.sex},"
        f"{xray.view},{size},{size},{spacing},{spacing}"
        for xray in xrays
    ]
    return {
        NIH_CSV: "\n".join([_NIH_HEADER, *rows]) + "\n",
        TRAIN_VAL_LIST: "\n".join(xray.name for xray in xrays if not xray.in_test),
        TEST_LIST: "\n".join(xray.name for xray in xrays if xray.in_test),
    }


def _csv_tables(xrays: Sequence[Xray], size: int) -> dict[str, str]:
    """A column per finding."""
    header = ["image", "patient", "age", "sex", "view", "split", *NIH15]
    rows = []
    for xray in xrays:
        shown = xray.findings or (NO_FINDING,)
        person = [xray.patient_id, xray.age, xray.sex, xray.view, "test" if xray.in_test else "train"]
        rows.append([f"images/{xray.name}", *person, *(int(name in shown) for name in NIH15)])
    return {"labels.csv": _as_csv(header, rows)}


def _chexpert_path(xray: Xray) -> str:
    folder = "valid" if xray.in_test else "train"
    return f"{folder}/patient{xray.patient_id:05d}/study{xray.follow_up + 1}/view1_frontal.jpg"


def _chexpert_tables(xrays: Sequence[Xray], size: int) -> dict[str, str]:
    """Absent findings are blank, 0.0 or, once in 13 cells, -1.0; with -1.0 read as 0 the labels are right."""
    header = ["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *CHEXPERT14]
    tables = {}
    for name in ("train", "valid"):
        rows = []
        for xray in xrays:
            if xray.in_test != (name == "valid"):
                continue
            shown = {_CHEXPERT_NAME.get(finding, finding) for finding in xray.findings} or {NO_FINDING}
            cells = []
            for column, finding in enumerate(CHEXPERT14):
                absent = ["-1.0", *["", "0.0"] * 6][(xray.number + column) % 13] if column else ""
                cells.append("1.0" if finding in shown else absent)
            sex = {"M": "Male", "F": "Female"}[xray.sex]
            rows.append([f"CheXpert-v1.0-small/{_chexpert_path(xray)}", sex, xray.age, "Frontal", xray.view, *cells])
        tables[f"{name}.csv"] = _as_csv(header, rows)
    return tables


def write_chestmnist(file: Path, xrays: Sequence[Xray], images: Sequence[NDArray[np.uint8]]) -> None:
    """Write MedMNIST's six arrays, compressed; every tenth patient that is not of the test split is val.

    Args:
        images: uint8 [S, S], one for each X-ray.
    """
    split_of = ["test" if xray.in_test else "val" if xray.patient_id % 10 == 3 else "train" for xray in xrays]
    arrays: dict[str, NDArray[np.uint8]] = {}
    for split in ("train", "val", "test"):
        rows = [row for row, name in enumerate(split_of) if name == split]
        side = images[0].shape[0]
        arrays[f"{split}_images"] = np.array([images[row] for row in rows], dtype=np.uint8).reshape(-1, side, side)
        labels = [[int(name in xrays[row].findings) for name in NIH14] for row in rows]
        arrays[f"{split}_labels"] = np.array(labels, dtype=np.uint8).reshape(-1, len(NIH14))
    np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def _as_csv(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue()


LAYOUTS = {
    "nih": Layout(lambda xray: f"images/{xray.name}", _nih_tables),
    "csv": Layout(lambda xray: f"images/{xray.name}", _csv_tables),
    "folders": Layout(lambda xray: f"{'abnormal' if xray.findings else 'normal'}/{xray.name}", lambda *_: {}),
    "chexpert": Layout(_chexpert_path, _chexpert_tables),
    "chestmnist": Layout(lambda _: CHESTMNIST, lambda *_: {}),
}
"""By the name of the dataset, `data.dataset`. All X-rays of `chestmnist` go into one file, by `write_chestmnist`."""
