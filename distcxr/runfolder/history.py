"""The tables that grow while a run trains: `steps.csv`, a row an update; `history.csv`, a row an epoch; and
`validations.csv`, a row a validation.

They are read while another process writes them: a row that is not whole yet is left out.
"""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

from distcxr.regular import open_regular, read_regular
from distcxr.runfolder import filenames
from distcxr.runfolder.manifest import crc32_of
from distcxr.runfolder.whole import being_written, flush
from distcxr.tables import read_table

STEP_COLUMNS = ("step", "epoch", "loss", "lr", "img_per_s", "data_wait_pct", "memory_mb")
HISTORY_COLUMNS = ("epoch", "stage", "step", "train_loss", "val_loss", "val_auroc", "lr", "img_per_s", "train_s")
_TAIL_BYTES = 1 << 16


def rewind_steps(run_folder: Path, step: int) -> None:
    """Start `steps.csv`, or drop the rows after `step`, which a resumed run writes again, and those not of numbers."""
    path = run_folder / filenames.STEPS
    rows = [row for row in _whole_steps(path) if int(row[0]) <= step]
    with being_written(path) as part, part.open("w", newline="") as file:
        csv.writer(file).writerows([STEP_COLUMNS, *rows])


def _whole_steps(path: Path) -> list[list[str]]:
    """Rows of `steps.csv` with a number in every cell; none where it is not there."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    rows = (line.split(",") for line in text.splitlines())
    return [row for row in rows if len(row) == len(STEP_COLUMNS) and row[0].isdecimal() and all(map(_is_number, row))]


def _is_number(cell: str) -> bool:
    try:
        float(cell or "nan")
    except ValueError:
        return False
    return True


def append_steps(run_folder: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Append rows to `steps.csv`; a power cut may lose them, and a resumed run writes them again.

    Raises:
        OSError: the disk does not take them; then the table is as it was.
    """
    path, before = run_folder / filenames.STEPS, steps_size(run_folder)
    try:
        with path.open("a", newline="") as file:
            writer = csv.DictWriter(file, STEP_COLUMNS)
            if not before:  # somebody has removed it meanwhile
                writer.writeheader()
            writer.writerows(rows)
    except OSError:
        with suppress(OSError):
            os.truncate(path, before)  # needs no space
        raise


def steps_size(run_folder: Path) -> int:
    """Bytes of `steps.csv`; 0 where it is not there."""
    try:
        return (run_folder / filenames.STEPS).stat().st_size
    except FileNotFoundError:
        return 0


def seal_steps(run_folder: Path, size: int) -> dict[str, dict[str, int]]:
    """For a checkpoint: the first `size` bytes of `steps.csv` as `check_steps` compares them, flushed to the disk."""
    path = run_folder / filenames.STEPS
    if not size:
        return {}
    try:
        flush(path)
        return {filenames.STEPS: {"bytes": size, "crc32": crc32_of(path, size)}}
    except FileNotFoundError:
        return {}


def check_steps(run_folder: Path, meta: Mapping[str, Any]) -> str | None:
    """What is wrong with `steps.csv` by a checkpoint of this run folder, a sentence; None where nothing is.

    Args:
        meta: the content of `checkpoint.json`; one older than format 4 knows nothing of the table.
    """
    tables, step = meta.get("tables"), int(meta["state"]["step"])
    path, size = run_folder / filenames.STEPS, steps_size(run_folder)
    if tables is None or not step:
        return None
    sealed = tables.get(filenames.STEPS, {"bytes": 0})
    if not size:
        return f"{path} is gone: the losses of steps 1 to {step} are lost"
    if size < sealed["bytes"] or crc32_of(path, sealed["bytes"]) != sealed["crc32"]:
        first = path.read_bytes()[: sealed["bytes"]].count(b"\0")
        nuls = f", with {first:,} NUL bytes" if first else ""
        kept = len([row for row in _whole_steps(path) if int(row[0]) <= step])
        return (
            f"{path} is not what was written up to step {step} ({size:,} bytes{nuls}; the checkpoint's are "
            f"{sealed['bytes']:,}): {kept:,} rows of up to then can be read, and losses may be missing or wrong"
        )
    steps = [int(row[0]) for row in _whole_steps(path) if int(row[0]) <= step]
    if missing := step - (steps[0] if steps else 1) + 1 - len(steps):
        return f"{path} lacks {missing:,} of the steps up to {step}: the disk did not take them"
    return None


def mend_steps(run_folder: Path, step: int) -> str | None:
    """Drop what can't be read from `steps.csv`, or the report could not be drawn; what was wrong, or None."""
    path = run_folder / filenames.STEPS
    try:
        read_columns(path)
    except ValueError as error:
        rewind_steps(run_folder, step)
        return f"{error}: rows of {path.name} that can't be read were dropped, so losses are missing."
    return None


def steps_in_words(run_folder: Path) -> tuple[str, str | None]:
    """How far `steps.csv` reaches, `steps 1 to 120`, and which rows between are missing, a sentence or None."""
    path = run_folder / filenames.STEPS
    steps = [int(row[0]) for row in _whole_steps(path)]
    if not steps:
        return "no rows", None
    gaps = [f"{before} and {after}" for before, after in pairwise(steps) if after != before + 1]
    reach = f"steps {steps[0]} to {steps[-1]}"
    return reach, f"{path} has no rows, or several, between steps {', '.join(gaps[:3])}" if gaps else None


def write_history(run_folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write `history.csv`, all epochs of it; None becomes an empty cell."""
    with being_written(run_folder / filenames.HISTORY) as part, part.open("w", newline="") as file:
        writer = csv.DictWriter(file, HISTORY_COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def write_validations(
    run_folder: Path, rows: Sequence[Mapping[str, Any]], batches: Sequence[Mapping[str, Any]] = ()
) -> None:
    """Write `validations.csv`, all of a run's as `TrainState.validated` has them, and `validation_batches.csv`, those
    of the newest, if any, as `batch_losses` has them; None becomes an empty cell."""
    for name, table in ((filenames.VALIDATIONS, rows), (filenames.VALIDATION_BATCHES, batches)):
        if table:
            _write(run_folder / name, table)


def _write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    with being_written(path) as part, part.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
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
            if _is_finite(found.get("step"), int) and _is_finite(found.get("img_per_s"), float):
                return found
    return None


def _is_finite(text: str | None, kind: type[int] | type[float]) -> bool:
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
