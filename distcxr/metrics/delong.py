"""DeLong's variance of AUROC and of the difference of two models' AUROC, in O(N log N).

Shape suffixes: N samples, P positives, Q negatives.

It treats every image as a patient of its own. Where patients bring several, images of one patient resemble each other,
and the interval is too narrow and the p-value too small: `bootstrap` and `compare` know patients. DeLong stands beside
them because other papers report it.

A positive's placement is the share of negatives it beats, a negative's the share of positives that beat it, ties
counting one half. AUROC is the mean of either; its variance is that of the placements, each class for itself.
Elizabeth DeLong, David DeLong, Daniel Clarke-Pearson, Biometrics 44 (1988), 837-845.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from distcxr.metrics.estimate import Estimate, absent_class
from distcxr.metrics.ranking import auroc, check_arrays


@dataclass(frozen=True)
class PairedTest:
    """Two models on the same samples: `difference` is a less b, `p` two-sided. None where undefined."""

    difference: float | None
    standard_error: float | None
    p: float | None
    reason: str | None


def delong_variance(scores_N: NDArray[np.float32], targets_N: NDArray[np.uint8]) -> float:
    """Variance of the AUROC, images taken as independent. Needs two samples of each class, or ValueError."""
    if reason := _too_few(scores_N, targets_N):
        raise ValueError(reason)
    return _variance(*_placements(scores_N, targets_N))


def delong_interval(scores_N: NDArray[np.float32], targets_N: NDArray[np.uint8], level: float = 0.95) -> Estimate:
    """AUROC with DeLong's interval, made on the logit scale and mapped back.

    log(A / (1 - A)) -+ z * se / (A * (1 - A)): the plain interval A -+ z * se runs past 1 for good models of rare
    findings, where A is skewed; this one can't, and for large samples the two agree.
    No interval where the variance is 0 (classes apart, or all scores equal) or a class has one sample.
    Args: float32 scores and uint8 targets `[N]` of known labels. Raises ValueError as `ranking.check_arrays` does,
    and for a level outside 0 to 1.
    """
    if not 0 < level < 1:
        raise ValueError(f"the interval's level must lie between 0 and 1, got {level}")
    reason = _too_few(scores_N, targets_N)
    if absent_class(targets_N):
        return Estimate(None, None, None, reason)
    area = auroc(scores_N, targets_N)
    if reason:
        return Estimate(area, None, None, reason)
    variance = _variance(*_placements(scores_N, targets_N))
    if variance == 0:
        return Estimate(area, None, None, "DeLong's variance is 0: every pair of the two classes is ranked alike")
    z = NormalDist().inv_cdf((1 + level) / 2)
    centre = math.log(area / (1 - area))
    reach = z * math.sqrt(variance) / (area * (1 - area))
    return Estimate(area, _sigmoid(centre - reach), _sigmoid(centre + reach), None)


def delong_test(
    scores_a_N: NDArray[np.float32], scores_b_N: NDArray[np.float32], targets_N: NDArray[np.uint8]
) -> PairedTest:
    """Is the AUROC of a that of b? Both scored the same samples, and the test takes their correlation in.

    Models that rank every pair the same have difference 0 and p 1. Arguments and errors as for `delong_interval`.
    """
    reason = _too_few(scores_a_N, targets_N) or _too_few(scores_b_N, targets_N)
    if reason:
        if absent_class(targets_N):
            return PairedTest(None, None, None, reason)
        return PairedTest(auroc(scores_a_N, targets_N) - auroc(scores_b_N, targets_N), None, None, reason)
    difference = auroc(scores_a_N, targets_N) - auroc(scores_b_N, targets_N)
    a_P, a_Q = _placements(scores_a_N, targets_N)
    b_P, b_Q = _placements(scores_b_N, targets_N)
    variance = _variance(a_P - b_P, a_Q - b_Q)
    if variance == 0:
        if difference == 0:
            return PairedTest(0.0, 0.0, 1.0, None)
        return PairedTest(difference, 0.0, None, "DeLong's variance of the difference is 0")
    error = math.sqrt(variance)
    return PairedTest(difference, error, math.erfc(abs(difference) / error / math.sqrt(2)), None)


def _placements(
    scores_N: NDArray[np.float32], targets_N: NDArray[np.uint8]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of each positive and of each negative, in the order of the samples, as counts of half pairs: exact."""
    is_positive_N = targets_N.astype(bool)
    scores_P, scores_Q = scores_N[is_positive_N], scores_N[~is_positive_N]
    sorted_P, sorted_Q = np.sort(scores_P), np.sort(scores_Q)
    beaten_P = sorted_Q.searchsorted(scores_P, "left") + sorted_Q.searchsorted(scores_P, "right")
    above_Q = 2 * len(sorted_P) - sorted_P.searchsorted(scores_Q, "left") - sorted_P.searchsorted(scores_Q, "right")
    return beaten_P, above_Q


def _variance(half_pairs_P: NDArray[np.int64], half_pairs_Q: NDArray[np.int64]) -> float:
    """Of an area, or of two areas' difference, whose placements are the differences of theirs."""
    num_pairs = 2 * len(half_pairs_P) * len(half_pairs_Q)
    by_positive = half_pairs_P.var(ddof=1) * len(half_pairs_P)
    by_negative = half_pairs_Q.var(ddof=1) * len(half_pairs_Q)
    return float(by_positive + by_negative) / num_pairs**2


def _too_few(scores_N: NDArray[np.float32], targets_N: NDArray[np.uint8]) -> str | None:
    if scores_N.ndim != 1:
        raise ValueError(f"scores must be [N], got {scores_N.shape}")
    check_arrays(scores_N[:, None], targets_N[:, None], np.ones_like(targets_N)[:, None])
    num_positive = int(np.count_nonzero(targets_N))
    if reason := absent_class(targets_N):
        return reason
    if min(num_positive, len(targets_N) - num_positive) < 2:
        return f"one {'positive' if num_positive == 1 else 'negative'} only: DeLong's variance needs two of each class"
    return None


def _sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value)) if value >= 0 else 1 - 1 / (1 + math.exp(value))
