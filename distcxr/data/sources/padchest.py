"""PadChest as BIMCV ships it: 160,868 images of 67,625 patients, 16-bit PNG files, one table.

    PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv    ImageID, ImageDir, StudyDate_DICOM, PatientID, PatientBirth,
                                                            PatientSex_DICOM, Projection, Labels and much else
    0/<ImageID> ... 54/<ImageID>                            also images/0/<ImageID>, images/<ImageID> or <ImageID>

Findings are those of `COMMON`, which several of PadChest's labels make up, and every other label as PadChest spells it,
in small letters. There is no official split.

Left out: views but PA and AP, unless `data.where.view` or `data.lateral` asks for LATERAL; rib views (COSTAL) and those
that PadChest itself excludes; images that are cut short in the archives (`BROKEN`). Images without labels have no known
one, and those with no other than `SILENT` no other known one: a report of "no changes" is not one of no findings.

Pixels are scaled by 65535 (`decode_png` keeps the high byte), never by an image's own range: so does torchxrayvision
(`PC_Dataset`, `maxval=65535`), and its weights expect that.

Source: Bustos et al., "PadChest", Medical Image Analysis 2020, https://bimcv.cipf.es/bimcv-projects/padchest/

Shapes: N images, C findings, L labels.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distcxr.data.index import MissingDataError, SampleIndex
from distcxr.data.sources.image_paths import Lister, Listing, as_bytes, check_unique, checked_path, with_files
from distcxr.data.sources.label_columns import (
    SEXES,
    UNKNOWN,
    ages,
    categories,
    make_index,
    patient_numbers,
    study_numbers,
)
from distcxr.recipe.data import Data
from distcxr.tables import Table, read_table

logger = logging.getLogger(__name__)

COMMON: dict[str, tuple[str, ...]] = {
    "Atelectasis": (
        "atelectasis", "atelectasis basal", "laminar atelectasis", "lobar atelectasis", "round atelectasis",
        "segmental atelectasis", "total atelectasis",
    ),
    "Cardiomegaly": ("cardiomegaly",),
    "Consolidation": ("consolidation", "air bronchogram"),
    "Edema": ("pulmonary edema",),
    "Effusion": ("pleural effusion", "loculated pleural effusion", "loculated fissural effusion", "hydropneumothorax"),
    "Emphysema": ("emphysema",),  # not the subcutaneous one
    "Fibrosis": ("pulmonary fibrosis",),
    "Fracture": (
        "fracture", "callus rib fracture", "clavicle fracture", "humeral fracture", "rib fracture",
        "vertebral fracture",
    ),
    "Hernia": ("hiatal hernia",),
    "Infiltration": (
        "infiltrates", "interstitial pattern", "ground glass pattern", "reticular interstitial pattern",
        "reticulonodular interstitial pattern", "alveolar pattern", "consolidation", "air bronchogram",
    ),
    "Mass": ("mass", "pulmonary mass"),
    "Nodule": ("nodule", "multiple nodules"),
    "Pleural_Thickening": ("pleural thickening", "apical pleural thickening", "calcified pleural thickening"),
    "Pneumonia": ("pneumonia", "atypical pneumonia"),
    "Pneumothorax": ("pneumothorax", "hydropneumothorax"),
    "No Finding": ("normal",),
}  # fmt: skip
"""Labels of PadChest of which any makes a finding that other data sets have, too: narrower terms count as the wider.
`Infiltration` is what torchxrayvision makes of it, so that figures compare."""

SILENT = frozenset({"unchanged", "suboptimal study"})
"""Labels of what a report compares with or complains of, not of what the image shows."""

BROKEN = frozenset(
    f"2168401113669640{name}.png"
    for name in (
        "12283393834152009033102258826_00-059-087", "12339356563862009072111404053_00-043-192",
        "12373310883942009117084022290_00-064-025", "12373310883942009152114636712_00-102-045",
        "12373310883942009170084120009_00-097-074", "12487858717522009280135853083_00-075-001",
        "12558082906712009327122220177_00-102-064", "12819207061112010281134410801_00-129-131",
        "12819207061112010306085429121_04-020-102", "12819207061112010307142602253_04-014-084",
        "12819207061112010315104455352_04-024-184", "12959786098432011033083840143_00-176-115",
        "12989926673512011074122523403_00-163-058", "12989926673512011083134050913_00-168-009",
        "12989926673512011151082430686_00-157-045", "13076187734852011291090445391_00-196-188",
        "13590140476722013043111952381_02-065-198", "13590140476722013058110301622_02-056-111",
        "13686042548532013208193054515_02-026-007", "13829543166512013353113303615_02-092-190",
        "13962490064942014134093945580_01-178-104",
    )
)  # fmt: skip
"""Images that other projects found missing or cut short in every copy (torchxrayvision has a list of them)."""

_VIEWS = {"PA": "PA", "AP": "AP", "AP_HORIZONTAL": "AP", "L": "LATERAL"}
_COLUMNS = (
    "ImageID", "ImageDir", "StudyDate_DICOM", "PatientID", "PatientBirth", "PatientSex_DICOM", "Projection", "Labels",
)  # fmt: skip
_QUOTED = re.compile(r"'([^']*)'|\"([^\"]*)\"")
_REST = re.compile(r"\[[\s,]*\]")
_EXCLUDED = re.compile(r"['\"]\s*exclude\s*['\"]", re.IGNORECASE)  # other labels have spaces within their quotes, too
_TABLE = "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv"
_LAYOUT = f"""\
Get PadChest from https://bimcv.cipf.es/bimcv-projects/padchest (its research use agreement; 1 TB) and leave the files
as they are:
  ROOT/{_TABLE} (or .csv.gz)
  ROOT/0/<ImageID>.png ... ROOT/54/<ImageID>.png, or all of them in ROOT/images/"""


def read_padchest(root: Path, data: Data, lister: Lister) -> SampleIndex:
    """Index the images of PadChest's table that are chest X-rays of the views asked for; 4 s of a core for all."""
    paired = data.lateral != "none"
    table = read_table(_find(root), only=(*_COLUMNS, "StudyID") if paired else _COLUMNS)
    wanted: set[str] = {*(data.where.view or ("PA", "AP")), *(("LATERAL",) if paired else ())}
    rows = _chosen(table, wanted)
    cells = {name: [column[row] for row in rows] for name in _COLUMNS for column in (table.cells(name),)}
    findings, codes_NC = _labels(table, rows)
    images = [_image(table, row) for row in rows]
    check_unique(replace(table, lines=table.lines[rows]), images)
    index = make_index(
        root,
        findings,
        images,
        codes_NC,
        patient_id=_patients(table, rows),
        label_hash=table.content_hash,
        age=ages(table.path, list(map(_years, cells["StudyDate_DICOM"], cells["PatientBirth"]))),
        sex=categories(table.path, "PatientSex_DICOM", cells["PatientSex_DICOM"], SEXES),
        view=categories(table.path, "Projection", cells["Projection"], _VIEWS),
        study=study_numbers([table.cells("StudyID")[row] for row in rows]) if paired else None,
    )
    folders = _folders(lister(root), cells["ImageDir"])
    paths = [folder + image for folder, image in zip(folders, images, strict=True)]
    return with_files(replace(index, path=as_bytes(paths)), data, lister, table=table.path, layout=_LAYOUT)


def _find(root: Path) -> Path:
    found = sorted(root.glob("PADCHEST_chest_x_ray_images_labels_160K*.csv*")) if root.is_dir() else []
    if not found:
        raise MissingDataError(f"{root} has no {_TABLE}.\n{_LAYOUT}")
    return found[0]


def _chosen(table: Table, wanted: set[str]) -> list[int]:
    """Rows of the images that take part, with a line in the log of why others do not."""
    images, projections, labels = (table.cells(name) for name in ("ImageID", "Projection", "Labels"))
    rows, num_views, num_excluded, num_broken = list[int](), 0, 0, 0
    for row, (image, projection) in enumerate(zip(images, projections, strict=True)):
        if _VIEWS.get(projection.upper()) not in wanted:
            num_views += 1
        elif _EXCLUDED.search(labels[row]):
            num_excluded += 1
        elif image in BROKEN:
            num_broken += 1
        else:
            rows.append(row)
    logger.info(
        f"PadChest: {len(rows):,} of {len(table):,} images take part; left out: {num_views:,} of other views than "
        f"{', '.join(sorted(wanted))} (data.where.view), {num_excluded:,} labelled 'exclude', {num_broken:,} known "
        "to be broken"
    )
    if not rows:
        raise ValueError(f"{table.path} has no image of the views {', '.join(sorted(wanted))}")
    return rows


def _image(table: Table, row: int) -> str:
    try:
        image = checked_path(table.cells("ImageID")[row])
    except ValueError as error:
        raise ValueError(f"{table.where(row)}, column ImageID: {error}") from None
    if "/" in image:
        raise ValueError(f"{table.where(row)}, column ImageID: image {image!r} is not a plain file name")
    return image


def _folders(listing: Listing, numbers: Sequence[str]) -> list[str]:
    """The folder of each image below the root, "" or ending in "/", in whichever of the layouts is there."""
    tops = listing.folders("")
    wanted = set(numbers)
    if wanted & set(tops):
        return [f"{number}/" for number in numbers]
    if "images" not in tops:
        return [""] * len(numbers)
    below = wanted & set(listing.folders("images"))
    return [f"images/{number}/" if below else "images/" for number in numbers]


def _labels(table: Table, rows: Sequence[int]) -> tuple[tuple[str, ...], NDArray[np.int8]]:
    """Findings, and their codes int8 [N, C]: of `COMMON`, then PadChest's other labels in alphabetical order."""
    texts = table.cells("Labels")
    parsed: dict[str, frozenset[str]] = {}
    for row in rows:
        if texts[row] not in parsed:
            parsed[texts[row]] = _parsed(table, row)
    own = sorted(set().union(*parsed.values()) - {name for names in COMMON.values() for name in names})
    parts = [set(names) for names in COMMON.values()] + [{name} for name in own]
    code_of = {
        text: np.array([1 if names & shown else absent for names in parts], dtype=np.int8)
        for text, shown in parsed.items()
        for absent in (UNKNOWN if shown <= SILENT else 0,)
    }
    return (*COMMON, *own), np.stack([code_of[texts[row]] for row in rows])


def _parsed(table: Table, row: int) -> frozenset[str]:
    """The labels in a cell such as `['pneumonia', 'pleural effusion']`; none in an empty one."""
    text = table.cells("Labels")[row]
    if text and not _REST.fullmatch(_QUOTED.sub("", text).replace("nan", "")):
        raise ValueError(
            f"{table.where(row)}, column Labels: {text[:80]!r} is not a list such as ['pneumonia', 'nodule']"
        )
    names = {(one or other).strip().lower() for one, other in _QUOTED.findall(text)}
    return frozenset(names - {""})


def _patients(table: Table, rows: Sequence[int]) -> NDArray[np.int64]:
    patients = table.cells("PatientID")
    for row in (row for row in rows if not patients[row]):
        raise ValueError(f"{table.where(row)}, column PatientID: no patient")
    return patient_numbers([patients[row] for row in rows])


def _years(study: str, birth: str) -> str:
    """Age at the study to within a year, from `20140915` and `1951.0`; "" where one is not there."""
    born = birth.removesuffix(".0")
    return str(int(study[:4]) - int(born)) if study[:4].isdecimal() and born.isdecimal() else ""
