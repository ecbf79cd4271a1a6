"""Are probabilities what they say? Brier score, expected calibration error, reliability curves, temperature scaling.

Shape suffixes: N samples, C findings, K replicates, V sums, B bins that hold samples, M some of the samples.

Probabilities are computed in float64, from logits of either width. Bins are of equal width: with b bins, (0, 1/b] with
0 itself, then (1/b, 2/b], and so on. The expected calibration error (ECE) is the mean over samples of
|frequency - mean probability| of their bin. It depends on the number of bins, so name it beside the figure, and for a
rare finding nearly all samples sit in the lowest bin.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distcxr.metrics.bootstrap import PatientResamples, check, entries_by_patient, sum_replicates
from distcxr.metrics.estimate import Estimate, absent_class, estimate
from distcxr.metrics.ranking import check_arrays, known

BINS = 15
SHARPEST, FLATTEST = 1e-3, 1e3  # temperatures looked at; an optimum beyond them is no calibration
_MAX_STEPS = 200
_PART = 2**15

Logits = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Calibration:
    """Brier score and ECE of one finding."""

    brier: Estimate
    ece: Estimate
    bins: int


@dataclass(frozen=True)
class Reliability:
    """A reliability curve: float64 `[B]`, and int64 counts, of the bins that hold samples, lowest first."""

    low_B: NDArray[np.float64]
    high_B: NDArray[np.float64]
    mean_prob_B: NDArray[np.float64]
    frequency_B: NDArray[np.float64]
    count_B: NDArray[np.int64]

    def ece(self) -> float | None:
        """Expected calibration error; None without samples."""
        if len(self.count_B) == 0:
            return None
        gap_B = np.abs(self.frequency_B - self.mean_prob_B)
        return float(np.dot(self.count_B, gap_B) / self.count_B.sum())


@dataclass(frozen=True)
class Temperature:
    """A fitted temperature: logits divided by `value` have the least log loss, which went from `before` to `after`.

    Where there is none, `reason` says why, and logits are to be used as they are. Losses are nats a sample.
    """

    value: float | None
    before: float | None
    after: float | None
    reason: str | None


def probabilities(logits: Logits, temperature: float = 1.0) -> NDArray[np.float64]:
    """Sigmoid of logits / temperature in float64, without overflow; any shape.

    Raises ValueError for a temperature that is not above 0 and finite.
    """
    if not 0 < temperature < np.inf:
        raise ValueError(f"a temperature must be above 0 and finite, got {temperature}")
    scaled = logits.astype(np.float64) / temperature
    decay = np.exp(-np.abs(scaled))  # exp sees no number above 0
    return np.where(scaled >= 0, 1.0, decay) / (1.0 + decay)


def brier(prob_N: NDArray[np.float64], targets_N: NDArray[np.uint8]) -> float | None:
    """Mean squared difference of probability and target; None without samples."""
    return float(np.mean((prob_N - targets_N) ** 2)) if len(prob_N) else None


def reliability(prob_N: NDArray[np.float64], targets_N: NDArray[np.uint8], bins: int = BINS) -> Reliability:
    """Mean probability and frequency of positives in each bin that holds samples.

    Raises ValueError for probabilities outside 0 to 1 (logits, perhaps), with the rows; shapes that differ; no bins.
    """
    if prob_N.ndim != 1 or prob_N.shape != targets_N.shape:
        raise ValueError(f"probabilities {prob_N.shape} and targets {targets_N.shape} must share one [N]")
    outside = np.flatnonzero(~((prob_N >= 0) & (prob_N <= 1)))
    if len(outside):
        raise ValueError(
            f"{len(outside)} of {len(prob_N)} probabilities are not between 0 and 1 (rows {outside[:5].tolist()}):"
            " are they logits?"
        )
    bin_N = _bin_of(prob_N, bins)
    count = np.bincount(bin_N, minlength=bins)
    filled = np.flatnonzero(count)
    count_B = count[filled]
    edges = np.linspace(0, 1, bins + 1)
    return Reliability(
        low_B=edges[filled],
        high_B=edges[filled + 1],
        mean_prob_B=np.bincount(bin_N, weights=prob_N, minlength=bins)[filled] / count_B,
        frequency_B=np.bincount(bin_N, weights=targets_N, minlength=bins)[filled] / count_B,
        count_B=count_B,
    )


def calibration_estimates(
    resamples: PatientResamples,
    logits_NC: Logits,
    targets_NC: NDArray[np.uint8],
    mask_NC: NDArray[np.uint8],
    bins: int = BINS,
    temperature_C: Sequence[float] | None = None,
    level: float = 0.95,
) -> list[Calibration]:
    """Brier score and ECE of each finding with patient-level intervals; logits are divided by `temperature_C` first.

    The ECE of a resample is larger than that of its source on average (noise adds to absolute gaps and never
    cancels), so with few samples its interval can lie above the value: read it as an upper bound.
    Raises ValueError as `bootstrap.area_estimates` does, and for another number of temperatures.
    """
    check(resamples, logits_NC, targets_NC, mask_NC, double=True)
    scales = [1.0] * logits_NC.shape[1] if temperature_C is None else list(temperature_C)
    if len(scales) != logits_NC.shape[1]:
        raise ValueError(f"{len(scales)} temperatures for {logits_NC.shape[1]} findings: give one each")
    points: list[tuple[float | None, float | None]] = []
    entries = []
    for column, scale in enumerate(scales):
        logits_N, targets_N = known(logits_NC[:, column], targets_NC[:, column], mask_NC[:, column])
        patient_N = resamples.patient_N[mask_NC[:, column].astype(bool)]
        prob_N = probabilities(logits_N, scale)
        points.append((brier(prob_N, targets_N), reliability(prob_N, targets_N, bins).ece()))
        gap_N = targets_N - prob_N
        # Three kinds of sum: samples, squared errors, then the gap of each bin.
        sum_3N = np.stack((np.zeros(len(gap_N), dtype=np.int64), np.ones(len(gap_N), dtype=np.int64),
                           2 + _bin_of(prob_N, bins)))  # fmt: skip
        value_3N = np.stack((np.ones(len(gap_N)), gap_N**2, gap_N))
        entries.append(entries_by_patient(np.tile(patient_N, 3), sum_3N.ravel(), value_3N.ravel(), 2 + bins))
    found = []
    for column, sums_VK in enumerate(sum_replicates(resamples, entries)):
        num_patients = resamples.num_patients_of(mask_NC[:, column])
        num_K = np.where(sums_VK[0] > 0, sums_VK[0], np.nan)
        figures = (sums_VK[1] / num_K, np.abs(sums_VK[2:]).sum(axis=0) / num_K)
        brier_score, ece = (
            estimate(value, None if value is not None else "no known labels", figure_K, num_patients, level)
            for value, figure_K in zip(points[column], figures, strict=True)
        )
        found.append(Calibration(brier_score, ece, bins))
    return found


def fit_temperature(logits_N: Logits, targets_N: NDArray[np.uint8]) -> Temperature:
    """The temperature of one finding, from validation's known labels.

    The log loss is convex in 1 / temperature, so its slope has one zero: Newton steps, halving where one leaves the
    bracket. Raises ValueError as `ranking.check_arrays` does.
    """
    if logits_N.ndim != 1:
        raise ValueError(f"logits must be [N], got {logits_N.shape}")
    check_arrays(logits_N[:, None], targets_N[:, None], np.ones_like(targets_N)[:, None], double=True)
    if reason := absent_class(targets_N):
        return Temperature(None, None, None, reason)
    margin_N = np.where(targets_N == 1, logits_N, -logits_N)
    before = _log_loss(margin_N, 1.0)
    if margin_N.min() >= 0 and margin_N.max() > 0:
        reason = "the sign of the logits separates the classes: the smaller the temperature, the smaller the loss"
        return Temperature(None, before, None, reason)
    low, high = 1 / FLATTEST, 1 / SHARPEST
    if _slopes(margin_N, low)[0] >= 0:
        reason = f"the best temperature is beyond {FLATTEST:g}: at this offset the logits say nothing, or the opposite"
        return Temperature(None, before, None, reason)
    if _slopes(margin_N, high)[0] <= 0:
        reason = f"the best temperature is below {SHARPEST:g}: the logits are tiny, or all but separate the classes"
        return Temperature(None, before, None, reason)
    sharpness = 1.0
    for _ in range(_MAX_STEPS):
        slope, bend = _slopes(margin_N, sharpness)
        if slope < 0:
            low = sharpness
        else:
            high = sharpness
        step = sharpness - slope / bend if bend > 0 else low
        following = step if low < step < high else (low * high) ** 0.5
        if abs(following - sharpness) <= 1e-13 * sharpness or slope == 0:
            break
        sharpness = following
    return Temperature(1 / sharpness, before, _log_loss(margin_N, sharpness), None)


def fit_temperatures(
    logits_NC: Logits, targets_NC: NDArray[np.uint8], mask_NC: NDArray[np.uint8]
) -> tuple[list[Temperature], Temperature]:
    """One temperature per finding, and one for all known labels together. Errors as for `fit_temperature`."""
    check_arrays(logits_NC, targets_NC, mask_NC, double=True)
    each = [
        fit_temperature(*known(logits_NC[:, column], targets_NC[:, column], mask_NC[:, column]))
        for column in range(logits_NC.shape[1])
    ]
    return each, fit_temperature(*known(logits_NC.ravel(), targets_NC.ravel(), mask_NC.ravel()))


def _bin_of(prob_N: NDArray[np.float64], bins: int) -> NDArray[np.int64]:
    if bins < 1:
        raise ValueError(f"calibration needs at least one bin, got {bins}")
    return np.linspace(0, 1, bins + 1)[1:-1].searchsorted(prob_N)


def _log_loss(margin_N: NDArray[np.float32], sharpness: float) -> float:
    """Mean of log(1 + exp(-sharpness * margin)); a margin is above 0 where the logit's sign is right."""
    sums = [np.logaddexp(0, -sharpness * part_M).sum() for part_M in _parts(margin_N)]
    return math.fsum(sums) / len(margin_N)


def _slopes(margin_N: NDArray[np.float32], sharpness: float) -> tuple[float, float]:
    """First and second derivative of `_log_loss` by the sharpness, 1 / temperature."""
    slopes, bends = [], []
    for part_M in _parts(margin_N):
        decay_M = np.exp(-sharpness * np.abs(part_M))
        share_M = 1.0 / (1.0 + decay_M)
        slopes.append(-(part_M * np.where(part_M >= 0, decay_M, 1.0) * share_M).sum())
        bends.append((part_M**2 * decay_M * share_M**2).sum())
    return math.fsum(slopes) / len(margin_N), math.fsum(bends) / len(margin_N)


def _parts(margin_N: NDArray[np.float32]) -> Iterator[NDArray[np.float64]]:
    """A few at a time in float64: half a dozen arrays of 14 million samples would take half a gigabyte."""
    for start in range(0, len(margin_N), _PART):
        yield margin_N[start : start + _PART].astype(np.float64)
