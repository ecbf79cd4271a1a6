"""`predictions_<split>.csv`: a row per sample, logits bit for bit.

Shape suffixes: N samples, C findings.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distcxr.runfolder.whole import being_written
from distcxr.tables import Table, read_table

_COLUMNS_PER_FINDING = 3
_UNKNOWN = -1


@dataclass(frozen=True)
class Predictions:
    """What a predictions file holds: float32 logits, uint8 targets and mask, all `[N, C]`."""

    files: list[str]
    patient_ids: list[str]
    findings: Sequence[str]
    logits_NC: NDArray[np.float32]
    targets_NC: NDArray[np.uint8]
    mask_NC: NDArray[np.uint8]


def write_predictions(path: Path | str, held: Predictions, prob_NC: NDArray[np.float64]) -> None:
    """Write a CSV row per sample, whole or not at all: file, patient, then per finding three columns.

    `<finding>` is the probability, `prob_NC`: a sigmoid in float64, where float32 would round to 1; `<finding>_true` is
    0, 1, or empty where the label is unknown; `logit:<finding>` is the shortest decimal that reads back as the same
    float32.
    Raises ValueError for shapes that differ, and logits that are not float32.
    """
    shape = (len(held.files), len(held.findings))
    arrays = (held.logits_NC, prob_NC, held.targets_NC, held.mask_NC)
    if len(held.patient_ids) != len(held.files) or any(array.shape != shape for array in arrays):
        shapes = ", ".join(str(array.shape) for array in arrays)
        raise ValueError(
            f"{len(held.files)} files, {len(held.patient_ids)} patients, {len(held.findings)} findings, and logits, "
            f"probabilities, targets and mask of {shapes}"
        )
    if held.logits_NC.dtype != np.float32:
        raise ValueError(f"logits must be float32, got {held.logits_NC.dtype}")
    columns: list[Iterable[object]] = [held.files, held.patient_ids]
    for column in range(len(held.findings)):
        targets_N, mask_N = held.targets_NC[:, column].tolist(), held.mask_NC[:, column].tolist()
        columns.append(prob_NC[:, column].tolist())  # csv writes a float as its repr
        columns.append([target if label else "" for target, label in zip(targets_N, mask_N, strict=True)])
        columns.append(map(str, held.logits_NC[:, column]))
    with (
        being_written(Path(path)) as part,
        part.open("w", newline="", encoding="utf-8", errors="surrogateescape") as stream,
    ):
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(_header(held.findings))
        writer.writerows(zip(*columns, strict=True))


def read_predictions(path: Path | str) -> Predictions:
    """Read what `write_predictions` wrote, logits bit for bit. Raises ValueError as `read_table` and `parse`."""
    return parse(read_table(Path(path), verbatim=True))


def parse(table: Table) -> Predictions:
    """The content of a predictions file; targets are 0 where the mask is 0.

    Raises ValueError for another header and a cell that can't be read.
    """
    findings = list(table.header[2::_COLUMNS_PER_FINDING])
    if not findings or list(table.header) != _header(findings):
        raise ValueError(
            f"{table.path}: the header must be file,patient, then <finding>,<finding>_true,logit:<finding> for each"
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
