"""Any CSV table of images, with `data.columns` naming its columns: one column of labels, or a column per finding.

    image,patient,diagnosis            image,patient,Mass,Edema      0, 1, -1 (uncertain) or empty (unknown)
    a/1.png,p1,Mass|Edema              a/1.png,p1,1,0
    a/2.png,p2,normal                  a/2.png,p2,,-1

Shapes: N samples, C findings.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distcxr.data.index import MissingDataError, SampleIndex
from distcxr.data.labels import encode, resolve_findings
from distcxr.data.sources.image_paths import Lister, check_unique, checked_paths, with_files
from distcxr.data.sources.label_columns import (
    UNKNOWN,
    attributes,
    codes,
    each_its_own,
    label_codes,
    make_index,
    patient_numbers,
    splits,
    study_numbers,
)
from distcxr.recipe.data import Data
from distcxr.tables import Table, read_table

logger = logging.getLogger(__name__)

_SPLITS = {"train": "train", "val": "val", "test": "test", "": ""}  # an empty cell is in no split


def read_csv(root: Path, data: Data, lister: Lister) -> SampleIndex:
    """Index the images that a table lists and that lie under `root`.

    Findings are the names that `data.columns.label` holds, sorted; or without that key, the columns that have no other
    meaning and hold nothing but 0, 1, -1 and empty cells, as the table has them. Columns that the recipe asks for by
    name must be such columns; others that are not are left out, with a line in the log.
    """
    path = root / data.columns.table.expanduser()
    if not path.is_file():
        raise MissingDataError(
            f"{path} does not exist: data.dataset=csv reads its labels from data.columns.table, below data.root unless "
            "it is an absolute path"
        )
    return index_table(read_table(path), root, data, lister)


def index_table(table: Table, root: Path, data: Data, lister: Lister) -> SampleIndex:
    """`read_csv` of a table that was read, or made, already."""
    path = table.path
    cells = {
        key: table.cells(column, f"data.columns.{key}")
        for key, column in data.columns.model_dump(exclude={"table"}).items()
        if column is not None
    }
    images = checked_paths(table, data.columns.image)
    check_unique(table, images)
    findings, codes_NC = _joined_labels(table, cells["label"]) if "label" in cells else _label_columns(table, data)
    index = make_index(
        root,
        findings,
        images,
        codes_NC,
        patient_id=_patients(table, cells["patient"]) if "patient" in cells else each_its_own(images),
        label_hash=table.content_hash,
        study=study_numbers(cells["study"]) if "study" in cells else None,
        split=splits(table, data.columns.split, _SPLITS) if data.columns.split is not None else None,
        named_by_path=len({image.rpartition("/")[2] for image in images}) < len(images),
        **attributes(path, cells),
    )
    layout = f"Column {data.columns.image!r} (data.columns.image) is taken for paths below data.root, {root}"
    return with_files(index, data, lister, table=path, layout=layout)


def _joined_labels(table: Table, cells: Sequence[str]) -> tuple[tuple[str, ...], NDArray[np.int8]]:
    """Findings and their codes from a column of names joined by `|`; an empty cell leaves all of them unknown."""
    joined = ["|".join(name.strip() for name in cell.split("|")) for cell in cells]
    findings = tuple(sorted({name for label in joined if label for name in label.split("|")}))
    if not findings:
        raise ValueError(f"{table.path}: the column that data.columns.label names is empty in every row")
    if "" in findings:
        row = next(row for row, label in enumerate(joined) if label and "" in label.split("|"))
        raise ValueError(f"{table.where(row)}: label {cells[row]!r} has an empty name between its bars")
    known = np.array([bool(label) for label in joined])
    if num_unknown := int(np.count_nonzero(~known)):
        logger.warning(f"{table.path}: {num_unknown:,} images have an empty label, so all their findings are unknown")
    codes_NC = np.full((len(joined), len(findings)), UNKNOWN, dtype=np.int8)
    rows = np.flatnonzero(known).tolist()
    codes_NC[known] = encode([joined[row] for row in rows], findings, lambda number: table.where(rows[number]))
    return findings, codes_NC


def _label_columns(table: Table, data: Data) -> tuple[tuple[str, ...], NDArray[np.int8]]:
    """Findings and their codes from a column each."""
    used = set(data.columns.model_dump(exclude={"table"}).values())
    candidates = [name for name in table.header if name not in used and name]
    asked = {*(data.where.findings or ()), *(data.where.without or ())}
    if data.findings != "all":
        asked |= set(resolve_findings(data.findings, candidates))
    valid = codes(data.uncertain, UNKNOWN)
    findings, ignored = [], []
    for name in candidates:
        found = set(table.cells(name))
        if name in asked or (found <= valid.keys() and found != {""}):
            findings.append(name)
        else:
            ignored.append(f"{name} ({', '.join(map(repr, sorted(found - valid.keys())[:1])) or 'empty'})")
            cells = table.cells(name)
            wrong = [row for row, cell in enumerate(cells) if cell not in valid]
            if 2 * len(wrong) < len(cells) - cells.count(""):
                logger.warning(
                    f"{table.where(wrong[0])}: column {name} is left out, though most of its cells are labels: "
                    f"{cells[wrong[0]]!r} is none. If it is a finding, mend that cell; if not, nothing is lost"
                )
    if ignored:
        logger.info(f"{table.path}: columns left out, not labels of 0, 1, -1 or empty: {'; '.join(ignored)}")
    if not findings:
        raise ValueError(
            f"{table.path} has no column of labels (0, 1, -1 or empty) besides those of data.columns; its columns: "
            f"{', '.join(table.header)}. If one column names what the image shows, set data.columns.label to it"
        )
    hint = "If this is not a finding, leave it out of data.findings and data.where"
    return tuple(findings), label_codes(table, findings, uncertain=data.uncertain, blank=UNKNOWN, hint=hint)


def _patients(table: Table, cells: Sequence[str]) -> NDArray[np.int64]:
    if "" in cells:
        row = list(cells).index("")
        raise ValueError(f"{table.where(row)}: no patient, in the column that data.columns.patient names")
    return patient_numbers(cells)
