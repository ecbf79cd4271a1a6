"""The same synthetic films laid out like other datasets: where each film goes, and which tables go with them."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from typing import NamedTuple

from distcxr.data.labels import CHEXPERT14, NIH15, NO_FINDING
from distcxr.data.phantom.plan import Film

FILM_WIDTH_MM = 350
NIH_CSV, TRAIN_VAL_LIST, TEST_LIST = "Data_Entry_2017_v2020.csv", "train_val_list.txt", "test_list.txt"
CHESTMNIST = "chestmnist.npz"

_NIH_HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)
# CheXpert's names for what the films show; emphysema has none there.
_CHEXPERT_NAME = {
    "Effusion": "Pleural Effusion", "Infiltration": "Lung Opacity", "Mass": "Lung Lesion", "Nodule": "Lung Lesion",
    "Fibrosis": "Lung Opacity", "Pleural_Thickening": "Pleural Other", "Hernia": "Enlarged Cardiomediastinum",
}  # fmt: skip


class Layout(NamedTuple):
    """What is written for some films.

    path: of a film's image, relative to the folder; PNG or JPEG by its ending.
    tables: text of each file beside the images by its name, from the films and their side in pixels.
    """

    path: Callable[[Film], str]
    tables: Callable[[Sequence[Film], int], dict[str, str]]


def _nih_tables(films: Sequence[Film], size: int) -> dict[str, str]:
    spacing = round(FILM_WIDTH_MM / size, 6)
    rows = [
        f"{film.name},{'|'.join(film.findings) or NO_FINDING},{film.follow_up},{film.patient_id},{film.age},{film.sex},"
        f"{film.view},{size},{size},{spacing},{spacing}"
        for film in films
    ]
    return {
        NIH_CSV: "\n".join([_NIH_HEADER, *rows]) + "\n",
        TRAIN_VAL_LIST: "\n".join(film.name for film in films if not film.in_test),
        TEST_LIST: "\n".join(film.name for film in films if film.in_test),
    }


def _csv_tables(films: Sequence[Film], size: int) -> dict[str, str]:
    """A column per finding."""
    header = ["image", "patient", "age", "sex", "view", "split", *NIH15]
    rows = []
    for film in films:
        shown = film.findings or (NO_FINDING,)
        person = [film.patient_id, film.age, film.sex, film.view, "test" if film.in_test else "train"]
        rows.append([f"images/{film.name}", *person, *(int(name in shown) for name in NIH15)])
    return {"labels.csv": _as_csv(header, rows)}


def _chexpert_path(film: Film) -> str:
    folder = "valid" if film.in_test else "train"
    return f"{folder}/patient{film.patient_id:05d}/study{film.follow_up + 1}/view1_frontal.jpg"


def _chexpert_tables(films: Sequence[Film], size: int) -> dict[str, str]:
    """What a film does not show is blank, 0.0 or, once in 13 cells, -1.0; with -1.0 read as 0 the labels are right."""
    header = ["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *CHEXPERT14]
    tables = {}
    for name in ("train", "valid"):
        rows = []
        for film in films:
            if film.in_test != (name == "valid"):
                continue
            shown = {_CHEXPERT_NAME.get(finding, finding) for finding in film.findings} or {NO_FINDING}
            cells = []
            for column, finding in enumerate(CHEXPERT14):
                absent = ["-1.0", *["", "0.0"] * 6][(film.number + column) % 13] if column else ""
                cells.append("1.0" if finding in shown else absent)
            sex = {"M": "Male", "F": "Female"}[film.sex]
            rows.append([f"CheXpert-v1.0-small/{_chexpert_path(film)}", sex, film.age, "Frontal", film.view, *cells])
        tables[f"{name}.csv"] = _as_csv(header, rows)
    return tables


def _as_csv(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue()


LAYOUTS = {
    "nih": Layout(lambda film: f"images/{film.name}", _nih_tables),
    "csv": Layout(lambda film: f"images/{film.name}", _csv_tables),
    "folders": Layout(lambda film: f"{'abnormal' if film.findings else 'normal'}/{film.name}", lambda *_: {}),
    "chexpert": Layout(_chexpert_path, _chexpert_tables),
    "chestmnist": Layout(lambda _: CHESTMNIST, lambda *_: {}),
}
"""By the name of the dataset, `data.dataset`. All films of `chestmnist` go into one file, `pack.write_chestmnist`."""
