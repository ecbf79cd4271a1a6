"""A figure, its interval, and the reason where one of them can't be had. None where undefined, never NaN.

Shape suffixes: C findings, K replicates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95  # of every interval
MIN_DEFINED = 0.9  # of the replicates; with fewer, an interval would be that of the lucky draws alone


@dataclass(frozen=True)
class Estimate:
    """A figure and its interval."""

    value: float | None
    low: float | None
    high: float | None
    reason: str | None
    """Why the value, or else why the interval, is None; None where all three are numbers."""
    num_left_out: int = 0
    """Replicates in which the figure was undefined; the interval is made of the others."""


def estimate(
    value: float | None, reason: str | None, figure_K: NDArray[np.float64], num_patients: int,
    tail: float = (1 - LEVEL) / 2,
) -> Estimate:  # fmt: skip
    """The value with the percentile interval of its replicates; NaN marks a replicate that does not define it.

    Args: the share of replicates that is beyond either end.
    No interval from a single patient, nor where fewer than `MIN_DEFINED` of the replicates are left.
    """
    if value is None:
        return Estimate(None, None, None, reason)
    defined_K = figure_K[~np.isnan(figure_K)]
    num_left_out = len(figure_K) - len(defined_K)
    if num_patients < 2:
        return Estimate(value, None, None, "one patient only: patients can't be resampled", num_left_out)
    if len(defined_K) < MIN_DEFINED * len(figure_K):
        reason = f"undefined in {num_left_out} of {len(figure_K)} resamples of the patients: too few cases"
        return Estimate(value, None, None, reason, num_left_out)
    low, high = np.quantile(defined_K, [tail, 1 - tail])
    return Estimate(value, float(low), float(high), None, num_left_out)


def average(values: Sequence[float | None]) -> tuple[float | None, str | None]:
    """The mean of the values that are defined, or None and the reason."""
    defined = [value for value in values if value is not None]
    if defined:
        return math.fsum(defined) / len(defined), None
    if not values:
        return None, "no findings are named for the average"
    return None, f"undefined for all {len(values)} named findings"


def average_replicates(figure_CK: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each replicate's mean over the findings it defines, `[K]`; NaN where it defines none."""
    num_K = np.asarray(np.count_nonzero(~np.isnan(figure_CK), axis=0))
    mean_K: NDArray[np.float64] = np.nansum(figure_CK, axis=0) / np.where(num_K > 0, num_K, np.nan)
    return mean_K


def sigmoid(value: float) -> float:
    """Of any number, without overflow."""
    small = math.exp(-abs(value))
    return 1 / (1 + small) if value >= 0 else small / (1 + small)
