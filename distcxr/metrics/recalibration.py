"""Are probabilities too extreme, too high or too low? Slope and intercept, observed / expected, Brier skill.

Shape suffixes: M samples with a known label, V coefficients, P patients.

Logistic recalibration, logit P(positive) = intercept + slope * logit, fitted to the split itself. The slope is that of
the fit of both; the intercept that with the slope held at 1 (calibration in the large). Slope 1 and intercept 0 are
right; a slope below 1 means probabilities too extreme, an intercept below 0 probabilities too high. One temperature
can't tell which: a shift of every logit alone makes it differ from 1, too.

Intervals are by patient: the sandwich variance of patients' sums (cluster-robust), with Student's t of as many degrees
of freedom as there are patients of the rarer class, less 1; for observed / expected on the log scale. Brier skill of a
rare finding hangs on the few positives with high probabilities: where a sample lacks them the skill is low and its
variance, too, so the interval is corrected for the skewness of patients' sums (Hall, Journal of the Royal Statistical
Society B 54 (1992), 221-228). The simulation in `benchmarks/inference.py` measures what they cover. Van Calster and
others, BMC Medicine 17 (2019), 230; Liang and Zeger, Biometrika 73 (1986), 13-22.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from distcxr.metrics.calibration import probabilities
from distcxr.metrics.degrees import degrees_of_freedom
from distcxr.metrics.estimate import LEVEL, Estimate
from distcxr.metrics.scored import Known
from distcxr.metrics.student import quantile

METHOD = (
    "cluster-robust by patient, Student's t; observed / expected on the log scale; Brier skill corrected for skewness "
    "(Hall)"
)
_MAX_STEPS = 100
_LEAST = 1e-9  # of a divisor: what is below is rounding


@dataclass(frozen=True)
class Recalibration:
    """Of one finding; Brier skill is 1 - Brier score / that of the prevalence given to all: above 0 is better."""

    slope: Estimate
    intercept: Estimate
    observed_expected: Estimate
    brier_skill: Estimate


def recalibrate(known: Known, temperature: float = 1.0) -> Recalibration:
    """The four figures of one finding with patient-level intervals; logits are divided by the temperature first.

    All are None with a reason where a class is absent; the slope also where scores separate the classes or are all
    equal. Raises ValueError for a temperature that is not above 0 and finite.
    """
    if known.reason:
        return Recalibration(*[Estimate(None, None, None, known.reason)] * 4)
    logits_M = known.logits_M.astype(np.float64) / temperature
    targets_M = known.targets_M.astype(np.float64)
    prob_M = probabilities(known.logits_M, temperature)
    degrees, reason = degrees_of_freedom(known)
    reach = quantile(LEVEL, degrees) if degrees else 0.0

    def estimate(value: float, sum_P: NDArray[np.float64], is_log: bool = False) -> Estimate:
        """With the variance of a sum of what each patient moves it by."""
        if degrees is None:
            return Estimate(value, None, None, reason)
        patients = np.count_nonzero(np.bincount(known.patient_M))
        half = reach * math.sqrt(float(sum_P @ sum_P) * patients / (patients - 1))
        if is_log:
            return Estimate(value, value * math.exp(-half), value * math.exp(min(half, 700.0)), None)  # no overflow
        low, high = value - half, value + half
        return Estimate(value, low, high, None)

    observed, expected = float(targets_M.sum()), float(prob_M.sum())
    by_ratio = Estimate(None, None, None, "all probabilities are 0, or nearly")
    if expected > _LEAST * observed:
        ratio = observed / expected
        by_ratio = estimate(ratio, _by_patient(known, (targets_M - ratio * prob_M) / observed), is_log=True)
    rate = observed / len(targets_M)
    squared_M, chance = (targets_M - prob_M) ** 2, rate * (1 - rate)
    brier = float(squared_M.mean())
    moved_M = brier * (1 - 2 * rate) * (targets_M - rate) / chance**2 - (squared_M - brier) / chance
    moved_P = _by_patient(known, moved_M / len(targets_M))
    skill = _unskewed(estimate(1 - brier / chance, moved_P), moved_P, reach)
    slope, moved_P = _fit_slope(known, logits_M, targets_M)
    by_slope = Estimate(None, None, None, slope) if isinstance(slope, str) else estimate(slope, moved_P)
    shift, residual_M, weight = _fit_shift(logits_M, targets_M)
    by_shift = Estimate(None, None, None, "the logits are so large that no shift brings them to the prevalence")
    if weight > _LEAST:
        by_shift = estimate(shift, _by_patient(known, residual_M / weight))
    return Recalibration(by_slope, by_shift, by_ratio, skill)


def _unskewed(found: Estimate, sum_P: NDArray[np.float64], reach: float) -> Estimate:
    """The interval where g(T) is as T was, g(T) = T + k T^2 / 3 + k^2 T^3 / 27 + k / 6: Hall's transform, with k the
    skewness of a sum of what each patient moves the figure by. It rises everywhere, and has an inverse."""
    if found.value is None or found.low is None or found.high is None:
        return found
    squares = float(sum_P @ sum_P)
    skewness = float((sum_P**3).sum()) / squares**1.5 if squares else 0.0
    if abs(skewness) < _LEAST:
        return found
    deviation = (found.high - found.value) / reach
    low, high = (
        found.value - deviation * 3 / skewness * (math.cbrt(1 + skewness * (at - skewness / 6)) - 1)
        for at in (reach, -reach)
    )
    return replace(found, low=low, high=min(1.0, high))


def _by_patient(known: Known, value_M: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sums of each patient's samples, `[P]`."""
    return np.bincount(known.patient_M, weights=value_M).astype(np.float64, copy=False)


def _fit_slope(
    known: Known, logits_M: NDArray[np.float64], targets_M: NDArray[np.float64]
) -> tuple[float | str, NDArray[np.float64]]:
    """The slope, or why there is none, and by how much each patient moves it."""
    nothing = np.zeros(0)
    centre, width = float(logits_M.mean()), float(logits_M.std())
    if width <= 1e-12 * max(1.0, abs(centre)):
        return "all scores are equal", nothing
    is_positive_M = targets_M == 1
    for first_M, second_M in ((is_positive_M, ~is_positive_M), (~is_positive_M, is_positive_M)):
        if logits_M[first_M].max() <= logits_M[second_M].min():
            return "the scores separate the classes, so no slope is the likeliest", nothing
    design_VM = np.stack((np.ones_like(logits_M), (logits_M - centre) / width))
    rate = float(targets_M.mean())
    at_V, step_V, loss = np.array([math.log(rate / (1 - rate)), 0.0]), np.zeros(2), math.inf
    for _ in range(_MAX_STEPS):
        eta_M = at_V @ design_VM
        following = float((np.logaddexp(0, eta_M) - targets_M * eta_M).sum())
        if following > loss * (1 + 1e-12):  # the step went too far: half of it back
            step_V = step_V / 2
            at_V = at_V - step_V
            continue
        loss, prob_M = following, probabilities(eta_M)
        score_VM = design_VM * (targets_M - prob_M)
        bend_VV = (design_VM * (prob_M * (1 - prob_M))) @ design_VM.T
        if bend_VV[1, 1] * bend_VV[0, 0] - bend_VV[0, 1] ** 2 <= _LEAST * bend_VV[1, 1] * bend_VV[0, 0]:
            return "the scores all but separate the classes, or a few of them lie very far out", nothing
        step_V = np.linalg.solve(bend_VV, score_VM.sum(axis=1))
        if np.abs(step_V).max() <= 1e-11 * np.abs(at_V).max():
            break
        at_V = at_V + step_V
    moved_M = np.linalg.inv(bend_VV)[1] @ score_VM / width
    return float(at_V[1] / width), _by_patient(known, moved_M)


def _fit_shift(
    logits_M: NDArray[np.float64], targets_M: NDArray[np.float64]
) -> tuple[float, NDArray[np.float64], float]:
    """What added to every logit brings the mean probability to the prevalence; residuals, and the sum of weights.

    The mean rises with the shift: Newton steps, halving where one leaves the bracket.
    """
    rate = float(targets_M.mean())
    middle = math.log(rate / (1 - rate))
    low, high = middle - float(logits_M.max()), middle - float(logits_M.min())
    shift = min(max(0.0, low), high)
    for _ in range(_MAX_STEPS):
        prob_M = probabilities(logits_M + shift)
        residual_M, weight = targets_M - prob_M, float((prob_M * (1 - prob_M)).sum())
        missing = float(residual_M.sum())
        low, high = (shift, high) if missing > 0 else (low, shift)
        step = missing / weight if weight > 0 else math.inf
        if abs(step) <= 1e-12 * max(1.0, abs(shift)):
            break
        following = shift + step
        shift = following if low < following < high else (low + high) / 2
    return shift, residual_M, weight
