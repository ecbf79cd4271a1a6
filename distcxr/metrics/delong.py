"""DeLong's variance of AUROC, in O(N log N).

Shape suffixes: P positives, Q negatives.

It treats every image as a patient of its own. Where patients bring several, images of one patient resemble each other,
and the interval is too narrow: `bootstrap` resamples patients, and `clustered` has DeLong's test by patient.
DeLong's interval is beside them because other papers report it.

A positive's placement is the share of negatives it beats, a negative's the share of positives that beat it, ties
counting one half. AUROC is the mean of either; its variance is that of the placements, each class for itself.
Elizabeth DeLong, David DeLong, Daniel Clarke-Pearson, Biometrics 44 (1988), 837-845.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from distcxr.metrics.estimate import LEVEL, Estimate, sigmoid
from distcxr.metrics.scored import Known


def delong_interval(known: Known) -> Estimate:
    """AUROC with DeLong's interval, made on the logit scale and mapped back.

    log(A / (1 - A)) -+ z * se / (A * (1 - A)): the plain interval A -+ z * se runs past 1 for good models of rare
    findings, where A is skewed; this one can't, and for large samples the two agree.
    No interval where the variance is 0 (classes apart, or all scores equal) or a class has one sample.
    """
    if known.ranks is None:
        return Estimate(None, None, None, known.reason)
    area = known.ranks.auroc()
    if reason := _too_few(known):
        return Estimate(area, None, None, reason)
    variance = _variance(*placements(known))
    if variance == 0:
        return Estimate(area, None, None, "DeLong's variance is 0: every pair of the two classes is ranked alike")
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    centre = math.log(area / (1 - area))
    reach = z * math.sqrt(variance) / (area * (1 - area))
    return Estimate(area, sigmoid(centre - reach), sigmoid(centre + reach), None)


def placements(known: Known) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of each positive and of each negative, in the order of the samples, as counts of half pairs: exact."""
    is_positive_M = known.targets_M.astype(bool)
    scores_P, scores_Q = known.scores_M[is_positive_M], known.scores_M[~is_positive_M]
    sorted_P, sorted_Q = np.sort(scores_P), np.sort(scores_Q)
    beaten_P = sorted_Q.searchsorted(scores_P, "left") + sorted_Q.searchsorted(scores_P, "right")
    above_Q = 2 * len(sorted_P) - sorted_P.searchsorted(scores_Q, "left") - sorted_P.searchsorted(scores_Q, "right")
    return beaten_P, above_Q


def _variance(half_pairs_P: NDArray[np.int64], half_pairs_Q: NDArray[np.int64]) -> float:
    """Of an area."""
    num_pairs = 2 * len(half_pairs_P) * len(half_pairs_Q)
    by_positive = half_pairs_P.var(ddof=1) * len(half_pairs_P)
    by_negative = half_pairs_Q.var(ddof=1) * len(half_pairs_Q)
    return float(by_positive + by_negative) / num_pairs**2


def _too_few(known: Known) -> str | None:
    if min(known.num_positive, known.num - known.num_positive) < 2:
        lonely = "positive" if known.num_positive == 1 else "negative"
        return f"one {lonely} only: DeLong's variance needs two of each class"
    return None
