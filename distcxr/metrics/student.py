"""Student's t, for variances that are themselves estimated from few patients.

The degrees of freedom are the patients of the rarer class less 1: nearly all of the variance comes from them.
"""

from __future__ import annotations

import math
from statistics import NormalDist

from distcxr.metrics.estimate import LEVEL
from distcxr.metrics.scored import Known, count_patients

FEWEST_PATIENTS = 10
"""Of either class; with fewer, no interval and no p-value: the variance itself is then too uncertain."""


def degrees_of_freedom(known: Known) -> tuple[int | None, str | None]:
    """Of a figure of both classes; or None and the reason, with fewer than `FEWEST_PATIENTS` of one of them."""
    if known.reason:
        return None, known.reason
    is_positive_M = known.targets_M == 1
    counts = [count_patients(known.patient_M[inside_M]) for inside_M in (is_positive_M, ~is_positive_M)]
    fewest = min(counts)
    if fewest >= FEWEST_PATIENTS:
        return fewest - 1, None
    name = ("positive", "negative")[counts.index(fewest)]
    plural = "patient" if fewest == 1 else "patients"
    return None, f"{fewest} {name} {plural}: nothing holds with fewer than {FEWEST_PATIENTS}"


def reach(degrees: int) -> float:
    """Half the width of a `LEVEL` interval in standard errors, within 2e-5 from 9 degrees of freedom on.

    Cornish and Fisher's series.
    """
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    series = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + math.fsum(term / degrees**power for power, term in enumerate(series, start=1))


def two_sided(t: float, degrees: int) -> float:
    """The p-value of a t, relative error below 1e-10: the incomplete beta function at degrees / (degrees + t * t)."""
    a, b, x = degrees / 2, 0.5, degrees / (degrees + t * t)
    share = t * t / (degrees + t * t)
    if x == 0 or share == 0:
        return float(share == 0)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log(share)
    if x < (a + 1) / (a + b + 2):
        return math.exp(log_front) * _fraction(a, b, x) / a
    return 1 - math.exp(log_front) * _fraction(b, a, share) / b


def _fraction(a: float, b: float, x: float) -> float:
    """The continued fraction of the incomplete beta function, from the front (Lentz)."""
    tiny = 1e-300
    c, d = 1.0, 1 / ((1 - (a + b) * x / (a + 1)) or tiny)
    value = d
    for m in range(1, 1000):
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 / ((1 + term * d) or tiny)
            c = (1 + term / c) or tiny
            value *= c * d
        if abs(c * d - 1) < 1e-14:
            break
    return value
