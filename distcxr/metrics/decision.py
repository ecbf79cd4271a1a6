"""Decision curves: is acting on a probability better than acting on all images, or on none?

Shape suffixes: M samples with a known label, T threshold probabilities, K replicates, V sums.

Who acts at a probability of t takes a missed case for as bad as (1 - t) / t false alarms. Net benefit at t is what
that makes of the calls: true positives / N - false positives / N * t / (1 - t); nobody called has 0, all have
prevalence - (1 - prevalence) * t / (1 - t). Vickers and Elkin, Medical Decision Making 26 (2006), 565-574.
It is of the probabilities as they are: those of a weighted loss are too high, and pay for it here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distcxr.metrics.bootstrap import PatientResamples, entries_by_patient, sum_replicates
from distcxr.metrics.calibration import probabilities
from distcxr.metrics.estimate import Estimate, estimate
from distcxr.metrics.scored import Scored

THRESHOLDS = (
    .001, .002, .005, .01, .015, .02, .03, .04, .05, .06, .07, .08, .09, .1, .12, .14, .16, .18, .2, .25, .3, .35, .4,
    .45, .5,
)  # fmt: skip
"""Probabilities to act at: dense where prevalences of findings lie; above one half nobody acts on a chest X-ray."""


@dataclass(frozen=True)
class DecisionCurve:
    """Net benefit at `THRESHOLDS`, of the model and of calling all positive; None where labels are absent."""

    model: tuple[Estimate, ...]
    treat_all: tuple[float | None, ...]


def decision_curves(resamples: PatientResamples, scored: Scored) -> list[DecisionCurve]:
    """The curve of each finding with patient-level intervals. Raises ValueError as `bootstrap.area_estimates` does."""
    threshold_T = np.array(THRESHOLDS)
    odds_T, num_bins = threshold_T / (1 - threshold_T), len(THRESHOLDS) + 1
    entries, points = [], []
    for known in scored.known:
        # The bin of a sample is the number of thresholds that call it; sums: negatives by bin, then positives.
        bin_M = threshold_T.searchsorted(probabilities(known.logits_M), "right")
        sum_M = bin_M + num_bins * known.targets_M.astype(np.int64)
        entries.append(entries_by_patient(known.patient_M, sum_M, np.ones(len(sum_M)), 2 * num_bins))
        points.append(np.bincount(sum_M, minlength=2 * num_bins)[:, None])
    found = []
    for known, counts_V1, counts_VK in zip(
        scored.known, points, sum_replicates(resamples, scored, entries), strict=True
    ):
        if not len(known.targets_M):
            nothing = Estimate(None, None, None, known.reason)
            found.append(DecisionCurve((nothing,) * len(odds_T), (None,) * len(odds_T)))
            continue
        value_T, benefit_TK = (_net_benefit(counts, odds_T) for counts in (counts_V1, counts_VK))
        model = [
            estimate(float(value), None, benefit_K, known.num_patients)
            for value, benefit_K in zip(value_T[:, 0], benefit_TK, strict=True)
        ]
        rate = known.num_positive / known.num
        found.append(DecisionCurve(tuple(model), tuple((rate - (1 - rate) * odds_T).tolist())))
    return found


def _net_benefit(counts_VK: NDArray[np.number], odds_T: NDArray[np.float64]) -> NDArray[np.float64]:
    """`[T, K]` from the sums of replicates; NaN for those without samples."""
    negative_BK, positive_BK = np.split(np.asarray(counts_VK, dtype=np.float64), 2)
    called = [np.cumsum(count_BK[::-1], axis=0)[::-1][1:] for count_BK in (negative_BK, positive_BK)]
    num_K = counts_VK.sum(axis=0)
    benefit_TK: NDArray[np.float64] = (called[1] - called[0] * odds_T[:, None]) / np.where(num_K > 0, num_K, np.nan)
    return benefit_TK
