"""Which groups differ in AUROC: a test of every pair that has enough patients, corrected for how many were tested.

Intervals that don't meet are no test: among the hundreds of pairs of a report some always stay apart, and patients who
are in both groups (their age band or view changed) tie the two figures together. Here the difference of logit AUROC is
divided by its own standard error, the groups' covariance by patient taken in, and has Student's t distribution.
P-values are Holm's, over all pairs, findings and attributes of the report (Sture Holm, Scandinavian Journal of
Statistics 6 (1979), 65-70). A difference proves no cause: groups differ in how ill they are, too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from distcxr.metrics.estimate import LEVEL, Estimate
from distcxr.metrics.influence import Spread, average_spread, logit_interval, score_interval, welch
from distcxr.metrics.p_values import holm
from distcxr.metrics.student import quantile, two_sided_p

MIN_COMPARED = 20
"""Patients with a positive, and patients with a negative, in each of two groups that are compared."""
ALPHA = 0.05  # of the adjusted p-value

TEST_METHOD = (
    "difference of logit AUROC over its standard error with the covariance by patient, Student's t; Holm's correction "
    "over all that were tested"
)


@dataclass(frozen=True)
class Side:
    """One group's part in a comparison."""

    group: str
    auroc: Estimate
    spread: Spread = field(compare=False)


@dataclass(frozen=True)
class Difference:
    """Two groups' AUROC of a finding, or of the average of `macro_findings`; `lower` has the smaller one.

    `difference` is higher less lower; its interval is not corrected. `p` is two-sided, `p_adjusted` is Holm's.
    """

    attribute: str
    finding: str
    lower: Side
    higher: Side
    difference: Estimate
    p: float
    p_adjusted: float = math.nan
    macro_findings: tuple[str, ...] = ()


def compare(attribute: str, finding: str, a: Side, b: Side, macro_findings: tuple[str, ...] = ()) -> Difference:
    """Test one pair; the groups' influences are of the same patients."""
    lower, higher = sorted((a, b), key=lambda side: side.spread.value)
    slopes = [1 / (v * (1 - v)) for v in map(_inside, (lower.spread, higher.spread))]
    logits = [math.log(v / (1 - v)) for v in map(_inside, (lower.spread, higher.spread))]
    covariance = float((lower.spread.influence_P * higher.spread.influence_P).sum())
    parts = [(side.spread.variance, side.spread.df) for side in (lower, higher)]
    scaled = [(variance * slope**2, df) for (variance, df), slope in zip(parts, slopes, strict=True)]
    variance = sum(part for part, _ in scaled) - 2 * covariance * slopes[0] * slopes[1]
    df = welch(sum(part for part, _ in scaled), scaled)
    p = two_sided_p((logits[1] - logits[0]) / math.sqrt(variance), df) if variance > 0 else 1.0
    value = higher.spread.value - lower.spread.value
    reach = quantile(LEVEL, df) * math.sqrt(max(sum(part for part, _ in parts) - 2 * covariance, 0.0))
    difference = Estimate(value, max(value - reach, -1.0), min(value + reach, 1.0), None)
    return Difference(attribute, finding, lower, higher, difference, p, macro_findings=macro_findings)


def average_side(group: str, spreads: Sequence[Spread]) -> Side:
    """A group's mean of several findings."""
    mean = average_spread(list(spreads))
    has_interval = 0 < mean.value < 1 and mean.variance > 0
    low, high = logit_interval(mean) if has_interval else (None, None)
    return Side(group, Estimate(mean.value, low, high, None if has_interval else "no two patients differ"), mean)


def adjusted(tested: Sequence[Difference]) -> list[Difference]:
    """The same with Holm's p-values, the smallest first."""
    ordered = sorted(tested, key=lambda one: one.p)
    p_values = [1.0 if p is None else p for p in holm([one.p for one in ordered])]  # none is None
    return [replace(one, p_adjusted=p) for one, p in zip(ordered, p_values, strict=True)]


def _inside(spread: Spread) -> float:
    """The value, or where it is 0 or 1 and has no logit, the middle between it and the other end of its interval."""
    if 0 < spread.value < 1:
        return spread.value
    return float(np.mean(score_interval(spread, of_ranks=True)))
