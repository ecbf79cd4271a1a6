"""CSV tables as columns of text, and cells of 0 and 1 as labels: what every source of labels but NIH's reads with.

Shapes: N rows, C findings.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import logging
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

logger = logging.getLogger(__name__)

Uncertain = Literal["mask", "zero", "one"]

CODES: Mapping[str, int] = {"0": 0, "0.0": 0, "1": 1, "1.0": 1}
"""Spellings of known labels."""
UNKNOWN = -1
"""Code of an unknown label."""
UNCERTAIN: Mapping[Uncertain, int] = {"mask": UNKNOWN, "zero": 0, "one": 1}
"""Code of a label of -1, by `data.uncertain`."""


@dataclass(frozen=True, eq=False)
class Table:
    """A CSV file with a header.

    Attributes:
        path: the file, for messages.
        header: names of the columns.
        columns: cells without the space around them, N a column; in the order of `header`.
        lines: the line of the file that each row ends on, counted from 1.
        content_hash: sha256 of the file's bytes, in hex.
    """

    path: Path
    header: tuple[str, ...]
    columns: tuple[Sequence[str], ...]
    lines: Sequence[int]
    content_hash: str

    def __len__(self) -> int:
        return len(self.lines)

    def cells(self, name: str, named_by: str = "") -> Sequence[str]:
        """The column `name`; ValueError when there is none or there are two. `named_by` is the key that named it."""
        places = [place for place, column in enumerate(self.header) if column == name]
        if len(places) == 1:
            return self.columns[places[0]]
        what = f"{named_by}: " if named_by else ""
        near = get_close_matches(name, self.header, n=1) if not places else []
        hint = f", did you mean {near[0]!r}?" if near else ";"
        raise ValueError(
            f"{what}{self.path} has {'more than one' if places else 'no'} column {name!r}{hint} "
            f"its columns: {', '.join(self.header)}"
        )

    def where(self, row: int) -> str:
        """File and line of a row, for messages."""
        return f"{self.path}, line {self.lines[row]}"


def read_table(path: Path, only: Collection[str] | None = None) -> Table:
    """Read a CSV file, or one packed by gzip whose name ends in `.gz`; of its columns, those in `only`, where given.

    Raises ValueError for a file that can't be read as UTF-8 text, has no rows, or a row longer or shorter than its
    header; names the file and the line.
    """
    try:
        content = path.read_bytes()
        text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ValueError(f"the label file {path} can't be read as UTF-8 text: {error}") from error
    rows = csv.reader(io.StringIO(text, newline=""))
    lines: list[int] = []
    known: dict[str, str] = {}  # most cells repeat: each text is held once
    try:
        whole = [name.strip() for name in next(rows, [])]
        columns: dict[int, list[str]] = {place: [] for place, name in enumerate(whole) if only is None or name in only}
        for row in filter(None, rows):
            if len(row) != len(whole):
                raise ValueError(f"{path}, line {rows.line_num}: {len(row)} cells where the header has {len(whole)}")
            lines.append(rows.line_num)
            for place, column in columns.items():
                cell = row[place].strip()
                column.append(known.setdefault(cell, cell))
    except csv.Error as error:
        raise ValueError(f"{path}, after line {rows.line_num}: not readable as CSV: {error}") from error
    if not lines:
        raise ValueError(f"{path} has no rows")
    header = tuple(whole[place] for place in columns)
    return Table(path, header, tuple(columns.values()), lines, hashlib.sha256(content).hexdigest())


def optional_cells(table: Table, name: str) -> Sequence[str]:
    """The column `name`; empty cells, and a warning, where the table has none."""
    if name in table.header:
        return table.cells(name)
    logger.warning(f"{table.path} has no column {name!r}: unknown for every image")
    return ("",) * len(table)


def label_codes(
    table: Table, names: Sequence[str], *, uncertain: Uncertain | None, blank: int, hint: str
) -> NDArray[np.int8]:
    """Columns of labels as codes, int8 [N, C]: 1, 0, or `UNKNOWN`.

    Args:
        names: the C columns.
        uncertain: what -1 means; None refuses it.
        blank: code of an empty cell.
        hint: what to do about a cell that is no label, for the message.

    Raises ValueError for a column that is not there and a cell that is no label; names file, line and column.
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
