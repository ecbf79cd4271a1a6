"""Recall, specificity and precision of resamples at held thresholds, to compare two models at thresholds of their own.

Shape suffixes: M samples with a known label, C findings, K replicates.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from distcxr.metrics.bootstrap import PatientResamples, entries_by_patient, sum_replicates
from distcxr.metrics.scored import Scored
from distcxr.metrics.threshold import Confusion, count_cells

COMPARED_RATES = ("recall", "specificity", "precision")


class RateReplicates(NamedTuple):
    """Counts of the samples themselves, and each replicate's `COMPARED_RATES` by name, `[K]`, NaN where undefined."""

    counts: Confusion
    rates: dict[str, NDArray[np.float64]]


def rate_replicates(
    resamples: PatientResamples, scored: Scored, threshold_C: Sequence[float | None]
) -> list[RateReplicates | None]:
    """Of each finding at its threshold, on the scale of `scores_M`; None where that is.

    Raises ValueError as `bootstrap.area_replicates` and `threshold.count_cells` do.
    """
    entries, counts = [], {}
    for column, (known, threshold) in enumerate(zip(scored.known, threshold_C, strict=True)):
        if threshold is None:
            continue
        counts[column] = count_cells(known, threshold)
        cell_M = 2 * (known.scores_M >= np.float32(threshold)) + known.targets_M.astype(np.int64)
        entries.append(entries_by_patient(known.patient_M, cell_M, np.ones(len(cell_M)), 4))
    found: list[RateReplicates | None] = [None] * len(scored.known)
    for (column, confusion), sums_4K in zip(counts.items(), sum_replicates(resamples, scored, entries), strict=True):
        true_negative, false_negative, false_positive, true_positive = sums_4K
        with np.errstate(invalid="ignore"):
            rates = {
                "recall": true_positive / (true_positive + false_negative),
                "specificity": true_negative / (true_negative + false_positive),
                "precision": true_positive / (true_positive + false_positive),
            }
        found[column] = RateReplicates(confusion, rates)
    return found
