"""Our own predictions file: a row per sample, logits bit for bit.

Shape suffixes: N samples, C findings.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distcxr.metrics.calibration import probabilities
from distcxr.metrics.report import check_shapes
from distcxr.runfolder.whole import being_written

_COLUMNS_PER_FINDING = 3


@dataclass(frozen=True)
class Predictions:
    """What a predictions file holds: float32 logits, uint8 targets and mask, all `[N, C]`."""

    files: list[str]
    patient_ids: list[str]
    findings: list[str]
    logits_NC: NDArray[np.float32]
    targets_NC: NDArray[np.uint8]
    mask_NC: NDArray[np.uint8]


def write_predictions(
    path: Path | str,
    files: Sequence[str],
    patient_ids: Sequence[object],
    findings: Sequence[str],
    logits_NC: NDArray[np.float32],
    targets_NC: NDArray[np.uint8],
    mask_NC: NDArray[np.uint8],
) -> None:
    """Write a CSV row per sample, whole or not at all: file, patient, then per finding three columns.

    `<finding>` is the probability, computed in float64; `<finding>_true` is 0, 1, or empty where the label is
    unknown; `logit:<finding>` is the shortest decimal that reads back as the same float32.
    Raises ValueError for lengths that differ.
    """
    check_shapes(findings, logits_NC, targets_NC, mask_NC)
    if not len(files) == len(patient_ids) == len(logits_NC):
        raise ValueError(f"{len(files)} files, {len(patient_ids)} patients, {len(logits_NC)} rows of logits")
    columns: list[Iterable[object]] = [files, patient_ids]
    for column in range(len(findings)):
        logits_N = logits_NC[:, column]
        targets_N, mask_N = targets_NC[:, column].tolist(), mask_NC[:, column].tolist()
        columns.append(probabilities(logits_N).tolist())  # csv writes a float as its repr
        columns.append([target if label else "" for target, label in zip(targets_N, mask_N, strict=True)])
        columns.append(map(str, logits_N))
    with (
        being_written(Path(path)) as part,
        part.open("w", newline="", encoding="utf-8", errors="surrogateescape") as stream,
    ):
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(_header(findings))
        writer.writerows(zip(*columns, strict=True))


def read_predictions(path: Path | str) -> Predictions:
    """Read what `write_predictions` wrote, logits bit for bit; targets are 0 where the mask is 0.

    Raises ValueError naming the file, and the row and column of a cell that cannot be read.
    """
    path = Path(path)
    with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as stream:
        reader = csv.reader(stream)
        try:
            header = next(reader, [])
            rows = list(reader)
        except csv.Error as error:
            raise ValueError(f"{path}, after line {reader.line_num}: not readable as CSV: {error}") from error
    findings = header[2::_COLUMNS_PER_FINDING]
    if not findings or header != _header(findings):
        raise ValueError(
            f"{path}: the header must be file,patient, then <finding>,<finding>_true,logit:<finding> for each"
            f" finding; it is {','.join(header)[:200]!r}"
        )
    for number, row in enumerate(rows, start=2):
        if len(row) != len(header):
            raise ValueError(f"{path}, row {number}: {len(row)} cells where the header has {len(header)}")
    columns = list(zip(*rows, strict=True)) or [()] * len(header)
    logits_NC = np.empty((len(rows), len(findings)), dtype=np.float32)
    targets_NC = np.zeros((len(rows), len(findings)), dtype=np.uint8)
    mask_NC = np.zeros_like(targets_NC)
    for column in range(len(findings)):
        at = 3 + _COLUMNS_PER_FINDING * column
        labels = _parse(columns[at], {"": -1, "0": 0, "1": 1}.__getitem__, f"{path}, column {header[at]}")
        with np.errstate(over="ignore"):  # what no float32 holds is infinite, for the caller to refuse
            logits_NC[:, column] = _parse(columns[at + 1], float, f"{path}, column {header[at + 1]}")
        mask_NC[:, column] = np.array(labels) >= 0
        targets_NC[:, column] = np.array(labels) > 0
    return Predictions(list(columns[0]), list(columns[1]), findings, logits_NC, targets_NC, mask_NC)


def _header(findings: Sequence[str]) -> list[str]:
    per_finding = [(name, f"{name}_true", f"logit:{name}") for name in findings]
    return ["file", "patient", *(cell for cells in per_finding for cell in cells)]


def _parse(cells: Sequence[str], convert: Callable[[str], float], where: str) -> list[float]:
    try:
        return [convert(cell) for cell in cells]
    except (ValueError, KeyError):
        for row, cell in enumerate(cells, start=2):
            try:
                convert(cell)
            except (ValueError, KeyError):
                raise ValueError(f"{where}, row {row}: cannot read {cell!r}") from None
        raise
