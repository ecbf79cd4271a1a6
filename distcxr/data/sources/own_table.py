"""A table of images that a user's own function makes, read as the file of `data.dataset: csv` is.

Shapes: N samples.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from distcxr.data.index import SampleIndex
from distcxr.data.sources.any_csv import index_table
from distcxr.data.sources.image_paths import Lister
from distcxr.own_parts import broken, part
from distcxr.recipe.data import Data
from distcxr.tables import Table

_KEY = "data.function"


def read_own(root: Path, data: Data, lister: Lister) -> SampleIndex:
    """Index the images of the table that `data.function` returns. Its cells mean what their text means in a CSV file:
    True is 1, and a missing value an empty cell.

    Raises:
        PartError: it returns no table, or one without rows.
    """
    import pandas as pd

    assert data.function is not None
    frame = part(data.function)(root)
    if not isinstance(frame, pd.DataFrame):
        raise broken(_KEY, data.function, f"returned {type(frame).__name__}")
    if not len(frame):
        raise broken(_KEY, data.function, f"returned a table without rows for {root}")
    header = tuple(str(name).strip() for name in frame.columns)
    columns = {
        position: list(map(_text, frame.iloc[:, position].astype(object), frame.iloc[:, position].isna()))
        for position in range(len(header))
    }
    digest = hashlib.sha256()
    for cells in ([*header], *columns.values()):
        digest.update("\0".join([*cells, "\n"]).encode("utf-8", "surrogateescape"))
    rows = np.arange(1, len(frame) + 1)
    table = Table(Path(f"table of {data.function}"), header, columns, rows, digest.hexdigest())
    return index_table(table, root, data, lister)


def _text(value: Any, is_missing: bool) -> str:
    """A cell's text; whole numbers have no decimals, even where pandas made floats of them for the sake of gaps."""
    if is_missing:
        return ""
    if isinstance(value, bool | np.bool_) or (isinstance(value, float) and value.is_integer()):
        return str(int(value))
    return str(value).strip()
