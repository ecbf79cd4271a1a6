"""The two tables that grow while a run trains: `steps.csv`, a row an update, and `history.csv`, a row an epoch.

They are read while another process writes them: a row that is not whole yet is left out.
"""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from distcxr.regular import open_regular, read_regular
from distcxr.runfolder import filenames
from distcxr.runfolder.whole import being_written
from distcxr.tables import read_table

STEP_COLUMNS = ("step", "epoch", "loss", "lr", "img_per_s", "data_wait_pct", "memory_mb")
HISTORY_COLUMNS = ("epoch", "stage", "step", "train_loss", "val_loss", "val_auroc", "lr", "img_per_s", "train_s")
_TAIL_BYTES = 1 << 16


def rewind_steps(run_folder: Path, step: int) -> None:
    """Start `steps.csv`, or drop the rows after `step` that a resumed run will write again."""
    path = run_folder / filenames.STEPS
    rows: list[list[str]] = []
    if path.exists():
        with path.open(newline="") as file:
            whole = [row for row in csv.reader(file) if len(row) == len(STEP_COLUMNS) and row[0].isdigit()]
        rows = [row for row in whole if int(row[0]) <= step]
    with being_written(path) as part, part.open("w", newline="") as file:
        csv.writer(file).writerows([STEP_COLUMNS, *rows])


def append_steps(run_folder: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Append rows to `steps.csv`; a power cut may lose them, and a resumed run writes them again."""
    with (run_folder / filenames.STEPS).open("a", newline="") as file:
        csv.DictWriter(file, STEP_COLUMNS).writerows(rows)


def write_history(run_folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write `history.csv`, all epochs of it; None becomes an empty cell."""
    with being_written(run_folder / filenames.HISTORY) as part, part.open("w", newline="") as file:
        writer = csv.DictWriter(file, HISTORY_COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def newest_step(run_folder: Path) -> dict[str, str] | None:
    """The last row of `steps.csv` that is whole, read from its end, as it may be long; None where there is none."""
    try:
        with open(open_regular(run_folder / filenames.STEPS)[0], "rb") as file:
            header = file.readline().decode(errors="replace").strip().split(",")
            start = file.tell()
            file.seek(max(start, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return None
    for row in (line.split(",") for line in reversed(lines)):
        if len(row) == len(header):
            found = dict(zip(header, row, strict=True))
            if _is_number(found.get("step"), int) and _is_number(found.get("img_per_s"), float):
                return found
    return None


def _is_number(text: str | None, kind: type[int] | type[float]) -> bool:
    try:
        return bool(text) and math.isfinite(kind(text))  # type: ignore[arg-type]
    except ValueError:
        return False


def best_auroc(run_folder: Path) -> float | None:
    """The highest macro AUROC of validation so far, from `history.csv`; None where there is none."""
    try:
        with open(open_regular(run_folder / filenames.HISTORY)[0], newline="") as file:
            return max((float(row["val_auroc"]) for row in csv.DictReader(file) if row.get("val_auroc")), default=None)
    except (OSError, ValueError, csv.Error):
        return None


def read_columns(path: Path) -> dict[str, list[float | None]]:
    """The columns of a table of numbers; an empty cell and one that is not finite are None.

    Raises:
        ValueError: as `read_table`, and for a cell that is not a number, with its line and column.
    """
    table = read_table(path, verbatim=True)
    return {
        name: [value if math.isfinite(value) else None for value in table.numbers(position, empty="nan").tolist()]
        for position, name in enumerate(table.header)
    }


def read_text(path: Path) -> str:
    """A text file in UTF-8; ValueError, which names it, where it is not text or can't be read."""
    try:
        return read_regular(path)[0].decode()
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not a text file") from None
    except OSError as error:
        raise ValueError(f"{path} can't be read: {error.strerror}") from None
