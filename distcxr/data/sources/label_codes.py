"""Columns of labels of 0, 1, -1 or empty as integer codes, columns that may be absent, and the index of such codes.

Shapes: N rows, C findings.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from distcxr.data.index import SampleIndex
from distcxr.data.sources.image_paths import as_bytes
from distcxr.tables import Table

logger = logging.getLogger(__name__)

Uncertain = Literal["mask", "zero", "one"]

CODES: Mapping[str, int] = {"0": 0, "0.0": 0, "1": 1, "1.0": 1}
"""Spellings of known labels."""
UNKNOWN = -1
"""Code of an unknown label."""
UNCERTAIN: Mapping[Uncertain, int] = {"mask": UNKNOWN, "zero": 0, "one": 1}
"""Code of a label of -1, by `data.uncertain`."""


def optional_cells(table: Table, *names: str) -> Sequence[str]:
    """The column called by one of `names`; empty cells, and a warning, where the table has none.

    Raises ValueError where it has several.
    """
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
        named_by_path=named_by_path,
    )
