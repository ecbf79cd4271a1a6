"""Columns of label tables as the arrays of a `SampleIndex`: patients, age, sex, view, splits, and labels of 0, 1, -1 or
empty; and the index that they make.

Shapes: N rows, C findings.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from distcxr.data.index import SampleIndex
from distcxr.data.sources.image_paths import as_bytes, first_few
from distcxr.tables import Table

logger = logging.getLogger(__name__)

MAX_AGE_YEARS = 120
"""Higher ages count as unknown: NIH's file of 2017 holds some above 400."""

SEXES = {"M": "M", "F": "F", "MALE": "M", "FEMALE": "F"}
FRONTAL_VIEWS = {"PA": "PA", "AP": "AP"}
VIEWS = {**FRONTAL_VIEWS, "LATERAL": "LATERAL", "LL": "LATERAL", "RL": "LATERAL"}
"""Spellings, in capitals, and their names in the index. LL and RL are DICOM's left and right lateral."""

_AGE = re.compile(r"(\d+(?:\.\d+)?)([YMWD]?)")
_YEARS_PER = {"": 1.0, "Y": 1.0, "M": 1 / 12, "W": 7 / 365.25, "D": 1 / 365.25}

Uncertain = Literal["mask", "zero", "one"]

CODES: Mapping[str, int] = {"0": 0, "0.0": 0, "1": 1, "1.0": 1}
"""Spellings of known labels."""
UNKNOWN = -1
"""Code of an unknown label."""
UNCERTAIN: Mapping[Uncertain, int] = {"mask": UNKNOWN, "zero": 0, "one": 1}
"""Code of a label of -1, by `data.uncertain`."""


def attributes(path: Path, cells: Mapping[str, Sequence[str]], views: Mapping[str, str] = VIEWS) -> dict[str, Any]:
    """Those of age, sex and view that `cells` has, as `make_index` takes them; `path` names the file in warnings."""
    found: dict[str, Any] = {"age": ages(path, cells["age"])} if "age" in cells else {}
    for column, spellings in (("sex", SEXES), ("view", views)):
        if column in cells:
            found[column] = categories(path, column, cells[column], spellings)
    return found


def parse_age(text: str) -> float:
    """Age in years from `58`, `058Y`, `006M`, `002W` or `010D`; NaN where the text is none of these."""
    match = _AGE.fullmatch(text.strip())
    return float(match[1]) * _YEARS_PER[match[2]] if match else float("nan")


def ages(path: Path, texts: Sequence[str]) -> NDArray[np.float32]:
    """Ages in years, float32 [N], NaN where unknown; `path` names the file in the warning of what can't be read."""
    years = {text: parse_age(text) for text in set(texts)}
    known = {text: age if age <= MAX_AGE_YEARS else float("nan") for text, age in years.items()}
    unknown = [text for text in texts if text and not years[text] <= MAX_AGE_YEARS]
    _warn_of_unknown(path, f"ages above {MAX_AGE_YEARS} years or unreadable", unknown)
    return np.array([known[text] for text in texts], dtype=np.float32)


def categories(path: Path, column: str, texts: Sequence[str], spellings: Mapping[str, str]) -> NDArray[np.str_]:
    """`texts` in the spelling of the index, str [N]; "" for a text not in `spellings`, with a warning."""
    known = {text: spellings.get(text.upper(), "") for text in set(texts)}
    valid = list(dict.fromkeys(spellings.values()))
    unknown = [text for text in texts if text and not known[text]]
    _warn_of_unknown(path, f"values of {column} other than {', '.join(valid[:-1])} and {valid[-1]}", unknown)
    return np.array([known[text] for text in texts], dtype=f"U{max(map(len, valid))}")


def _warn_of_unknown(path: Path, what: str, texts: Sequence[str]) -> None:
    if texts:
        logger.warning(f"{path}: {len(texts):,} {what} count as unknown: {first_few(list(dict.fromkeys(texts)))}")


def study_numbers(names: Sequence[str]) -> NDArray[np.int64]:
    """A number for each study that is named, int64 [N]; -1 where the name is empty."""
    number_of = {name: number for number, name in enumerate(dict.fromkeys(names))} | {"": -1}
    return np.array([number_of[name] for name in names], dtype=np.int64)


def splits(table: Table, column: str, names: Mapping[str, str]) -> NDArray[np.str_]:
    """The column's cells as the index's splits, [N], by `names`; ValueError, with line and column, for other cells."""
    table.cells(column)  # raises where it is missing
    codes_N = table.codes(table.header.index(column), {name: code for code, name in enumerate(names)})
    return np.array(list(names.values()), dtype="U5")[codes_N]


def patient_numbers(texts: Sequence[str]) -> NDArray[np.int64]:
    """A number for each patient, int64 [N], of 18 digits at most: the text itself where it is a whole number, else a
    hash of it.

    A number depends on no other row, so a patient stays in its random split when images are added.
    """
    number = {text: _patient_number(text) for text in set(texts)}
    return np.array([number[text] for text in texts], dtype=np.int64)


def _patient_number(text: str) -> int:
    if text.isascii() and text.isdigit() and len(text) < 19:  # more overflows int64
        return int(text)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) % 10**18


def each_its_own(paths: Sequence[str]) -> NDArray[np.int64]:
    """A patient for each image, int64 [N], where the dataset names no patients."""
    return patient_numbers([f"image {path}" for path in paths])


def optional_cells(table: Table, *names: str) -> Sequence[str]:
    """The column called by one of `names`; empty cells, and a warning, where the table has none.
    Raises ValueError where it has several."""
    found = [name for name in names if name in table.header]
    if not found:
        logger.warning(f"{table.path} has no column {names[0]!r}: unknown for every image")
        return ("",) * len(table)
    if len(found) > 1:
        raise ValueError(f"{table.path} has columns {' and '.join(map(repr, found))}: keep one of them")
    return table.cells(found[0])


def label_codes(
    table: Table, names: Sequence[str], *, uncertain: Uncertain | None, blank: int, hint: str
) -> NDArray[np.int8]:
    """Columns of labels as codes, int8 [N, C]: 1, 0, or `UNKNOWN`.

    Args:
        names: the C columns.
        uncertain: what -1 means; None refuses it.
        blank: code of an empty cell.
        hint: what to do about an invalid cell, for the message.

    Raises ValueError for a column that is not there and an invalid cell; names file, line and column.
    """
    code_of = codes(uncertain, blank)
    codes_NC = np.empty((len(table), len(names)), dtype=np.int8)
    for column, name in enumerate(names):
        cells = table.cells(name)
        if wrong := set(cells) - code_of.keys():
            row = next(row for row, cell in enumerate(cells) if cell in wrong)
            valid = "0, 1" if uncertain is None else "0, 1, -1 (uncertain)"
            raise ValueError(
                f"{table.where(row)}, column {name}: label {cells[row]!r} is not {valid} or empty "
                f"({'unknown' if blank == UNKNOWN else 'not mentioned'}). {hint}"
            )
        codes_NC[:, column] = [code_of[cell] for cell in cells]
    return codes_NC


def codes(uncertain: Uncertain | None, blank: int) -> dict[str, int]:
    """Code of every text that is a label; arguments as `label_codes`."""
    known = {**CODES, "": blank}
    if uncertain is not None:
        known |= dict.fromkeys(("-1", "-1.0"), UNCERTAIN[uncertain])
    return known


def make_index(
    root: Path,
    findings: Sequence[str],
    paths: Sequence[str],
    codes_NC: NDArray[np.integer],
    *,
    patient_id: NDArray[np.int64],
    label_hash: str,
    age: NDArray[np.float32] | None = None,
    sex: NDArray[np.str_] | None = None,
    view: NDArray[np.str_] | None = None,
    split: NDArray[np.str_] | None = None,
    study: NDArray[np.int64] | None = None,
    named_by_path: bool = False,
) -> SampleIndex:
    """An index of labels as `label_codes` gives them; other arguments as `SampleIndex`. What is None is unknown."""
    unknown = np.full(len(paths), "")
    return SampleIndex(
        root=root,
        findings=tuple(findings),
        path=as_bytes(paths),
        patient_id=patient_id,
        targets_NC=(codes_NC == 1).astype(np.uint8),
        mask_NC=(codes_NC != UNKNOWN).astype(np.uint8),
        age=np.full(len(paths), np.nan, dtype=np.float32) if age is None else age,
        sex=unknown if sex is None else sex,
        view=unknown if view is None else view,
        split=unknown if split is None else split,
        label_hash=label_hash,
        skipped=as_bytes(()),
        study=study,
        named_by_path=named_by_path,
    )
