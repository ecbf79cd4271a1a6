"""Labels to score predictions with: NIH's file, or any table with a column per finding. No image is opened.

    file,Patient ID,Mass,Nodule      0, 1, or empty where the label is unknown; the first column is the image file
    a.png,7,0,1
    b.png,7,,0

Shapes: N samples, C findings.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distcxr.data.index import SampleIndex
from distcxr.data.labels import NIH15
from distcxr.data.sources.image_paths import check_unique
from distcxr.data.sources.label_columns import UNKNOWN, attributes, label_codes, make_index, patient_numbers
from distcxr.data.sources.nih import index_labels
from distcxr.tables import read_table

_MEANING = {
    "patient id": "patient", "patient_id": "patient", "patient": "patient", "patient age": "age", "age": "age",
    "patient gender": "sex", "patient sex": "sex", "sex": "sex", "view position": "view", "view": "view",
}  # fmt: skip
_NIH_NAME = re.compile(r"(\d{8})_\d{3}\b.*")


def read_labels(path: Path) -> SampleIndex:
    """Index every row of a label file, as if its images lay beside it.

    NIH's file is known by its column "Finding Labels" and gives all 15 findings. In any other table every column is a
    finding but the first and those of patient, age, sex and view, by the names in `_MEANING`.
    Patients come from their column, or else from file names as NIH writes them.

    Raises ValueError for a file that can't be read, a cell other than 0, 1 and empty, a row too long or too short, an
    image twice, or an image without a patient; names the file, the line and the column.
    """
    path = Path(os.path.abspath(path.expanduser()))
    table = read_table(path)
    header = table.header
    if "Finding Labels" in header:
        return index_labels(table, NIH15)
    columns = list(enumerate(header))[1:]
    texts = {_MEANING[name.lower()]: table.columns[at] for at, name in columns if name.lower() in _MEANING}
    findings = tuple(name for name in header[1:] if name.lower() not in _MEANING)
    if not findings:
        raise ValueError(
            f"{path} has no findings: it is neither NIH's label file nor a table with a column per finding"
        )
    if len(set(findings)) < len(findings) or "" in findings:
        raise ValueError(f"{path}: columns without a name, or with the same: {', '.join(header)}")
    hint = "If this is not a finding, remove the column"
    codes_NC = label_codes(table, findings, uncertain=None, blank=UNKNOWN, hint=hint)
    names = [name.replace("\\", "/").rsplit("/", 1)[-1] for name in table.columns[0]]
    check_unique(table, names)
    return make_index(
        path.parent,
        findings,
        names,
        codes_NC,
        patient_id=_patients(path, texts.get("patient"), names),
        label_hash=table.content_hash,
        **attributes(path, texts),
    )


def _patients(path: Path, texts: Sequence[str] | None, names: Sequence[str]) -> NDArray[np.int64]:
    if texts is None:
        found = [_NIH_NAME.fullmatch(name) for name in names]
        if others := [name for name, match in zip(names, found, strict=True) if match is None]:
            raise ValueError(
                f"{path} has no column of patients, and {others[0]!r} is not a name with NIH's patient number: "
                "intervals resample patients, so add a column 'Patient ID'"
            )
        texts = [match[1] for match in found if match]
    if "" in texts:
        raise ValueError(f"{path}: {texts.count('')} images have no patient; the first is {names[texts.index('')]}")
    return patient_numbers(texts)
