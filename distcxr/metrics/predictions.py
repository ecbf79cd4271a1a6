"""Our own predictions file: a row per sample, logits bit for bit.

Shape suffixes: N samples, C findings.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distcxr.metrics.calibration import probabilities
from distcxr.metrics.report import check_shapes
from distcxr.runfolder.whole import being_written
from distcxr.tables import read_table

_COLUMNS_PER_FINDING = 3
_UNKNOWN = -1


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

    Raises ValueError as `read_table`, and for another header and a cell that can't be read.
    """
    table = read_table(Path(path), verbatim=True)
    findings = list(table.header[2::_COLUMNS_PER_FINDING])
    if not findings or list(table.header) != _header(findings):
        raise ValueError(
            f"{path}: the header must be file,patient, then <finding>,<finding>_true,logit:<finding> for each"
            f" finding; it is {','.join(table.header)[:200]!r}"
        )
    logits_NC = np.empty((len(table), len(findings)), dtype=np.float32)
    labels_NC = np.empty((len(table), len(findings)), dtype=np.int8)
    for column in range(len(findings)):
        at = 3 + _COLUMNS_PER_FINDING * column
        labels_NC[:, column] = table.codes(at, {"0": 0, "1": 1, "": _UNKNOWN})
        with np.errstate(over="ignore"):  # what no float32 holds is infinite, for the caller to refuse
            logits_NC[:, column] = table.numbers(at + 1)
    targets_NC, mask_NC = (labels_NC == 1).astype(np.uint8), (labels_NC != _UNKNOWN).astype(np.uint8)
    return Predictions(list(table.columns[0]), list(table.columns[1]), findings, logits_NC, targets_NC, mask_NC)


def _header(findings: Sequence[str]) -> list[str]:
    per_finding = [(name, f"{name}_true", f"logit:{name}") for name in findings]
    return ["file", "patient", *(cell for cells in per_finding for cell in cells)]
