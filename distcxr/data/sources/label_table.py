"""Labels for judging predictions: NIH's file, or any table with a column per finding. No image is opened.

    file,Patient ID,Mass,Nodule      0, 1, or empty where the label is unknown; the first column is the image file
    a.png,7,0,1
    b.png,7,,0

Shapes: N samples, C findings.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distcxr.data.index import SampleIndex
from distcxr.data.labels import NIH15
from distcxr.data.sources.nih import parse_age, read_nih_labels

_CODES = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "": -1}
_PATIENT = ("patient id", "patient_id", "patient")
_ATTRIBUTES = {"age": ("patient age", "age"), "sex": ("patient gender", "patient sex", "sex"),
               "view": ("view position", "view")}  # fmt: skip
_NIH_NAME = re.compile(r"(\d{8})_\d{3}\b.*")


def read_labels(path: Path) -> SampleIndex:
    """Index every row of a label file, as if its images lay beside it.

    NIH's file is known by its column "Finding Labels" and gives all 15 findings. In any other table every column is a
    finding but the first and those of patient, age, sex and view, which are called as NIH calls them, or plainly so.
    Patients come from their column, or else from file names as NIH writes them.

    Raises ValueError for a file that can't be read, a cell other than 0, 1 and empty, a row too long or too short, an
    image twice, or patients that are not to be had; names the file, the line and the column.
    """
    path = Path(os.path.abspath(path.expanduser()))
    try:
        content = path.read_bytes()
        text = content.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"the label file {path} can't be read as UTF-8 text: {error}") from error
    rows = csv.reader(io.StringIO(text, newline=""))
    try:
        header = [name.strip() for name in next(rows, [])]
        if "Finding Labels" in header:
            return read_nih_labels(path, NIH15)
        lines, cells = [], []
        for row in filter(None, rows):
            if len(row) != len(header):
                raise ValueError(f"{path}, line {rows.line_num}: {len(row)} cells where the header has {len(header)}")
            lines.append(rows.line_num)
            cells.append([cell.strip() for cell in row])
    except csv.Error as error:
        raise ValueError(f"{path}, after line {rows.line_num}: not readable as CSV: {error}") from error
    attribute_of = {_attribute(name): place for place, name in enumerate(header) if place and _attribute(name)}
    places = [place for place, name in enumerate(header) if place and not _attribute(name)]
    findings = tuple(header[place] for place in places)
    if not findings or not cells:
        what = "findings" if cells else "rows"
        raise ValueError(f"{path} has no {what}: it is neither NIH's label file nor a table with a column per finding")
    if len(set(findings)) < len(findings) or "" in findings:
        raise ValueError(f"{path}: columns without a name, or with the same: {', '.join(header)}")
    columns = list(zip(*cells, strict=True))
    codes_NC = np.array([_codes(path, header[place], columns[place], lines) for place in places], dtype=np.int8).T
    names = [name.replace("\\", "/").rsplit("/", 1)[-1] for name in columns[0]]
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"{path} lists {len(repeated):,} images more than once: {', '.join(repeated[:3])}")
    texts = {name: columns[place] for name, place in attribute_of.items()}
    unknown = ("",) * len(names)
    return SampleIndex(
        root=path.parent,
        findings=findings,
        path=np.array([os.fsencode(name) for name in names], dtype=np.bytes_),
        patient_id=_patients(path, texts.get("patient"), names),
        targets_NC=(codes_NC == 1).astype(np.uint8),
        mask_NC=(codes_NC >= 0).astype(np.uint8),
        age=np.array([parse_age(age) for age in texts.get("age", unknown)], dtype=np.float32),
        sex=np.array(texts.get("sex", unknown), dtype=np.str_),
        view=np.array(texts.get("view", unknown), dtype=np.str_),
        label_hash=hashlib.sha256(content).hexdigest(),
        skipped=np.array([], dtype=np.bytes_),
    )


def _attribute(name: str) -> str | None:
    lower = name.lower()
    if lower in _PATIENT:
        return "patient"
    return next((attribute for attribute, names in _ATTRIBUTES.items() if lower in names), None)


def _codes(path: Path, name: str, cells: Sequence[str], lines: Sequence[int]) -> list[int]:
    """1, 0, or -1 where unknown."""
    for line, cell in zip(lines, cells, strict=True):
        if cell not in _CODES:
            raise ValueError(
                f"{path}, line {line}, column {name}: label {cell!r} is not 0, 1 or empty (unknown). If this is no "
                "finding, remove the column"
            )
    return [_CODES[cell] for cell in cells]


def _patients(path: Path, texts: Sequence[str] | None, names: Sequence[str]) -> NDArray[np.int64]:
    if texts is None:
        found = [_NIH_NAME.fullmatch(name) for name in names]
        if strangers := [name for name, match in zip(names, found, strict=True) if match is None]:
            raise ValueError(
                f"{path} says of no image which patient it is of, nor does {strangers[0]!r}: intervals are made of "
                "patients, so add a column 'Patient ID'"
            )
        texts = [match[1] for match in found if match]
    if "" in texts:
        raise ValueError(f"{path}: {texts.count('')} images have no patient; the first is {names[texts.index('')]}")
    if all(text.isascii() and text.isdigit() and len(text) < 19 for text in texts):
        return np.array([int(text) for text in texts], dtype=np.int64)
    return np.unique(np.array(texts), return_inverse=True)[1].astype(np.int64)
