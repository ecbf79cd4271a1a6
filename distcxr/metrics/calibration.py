"""Do probabilities agree with frequencies? Brier score, calibration error, reliability curves, temperatures.

Shape suffixes: M samples with a known label, C findings, K replicates, V sums, B bins that hold samples.

Probabilities are computed in float64, from logits of either width. Bins are of equal width: with b bins, (0, 1/b] with
0 itself, then (1/b, 2/b], and so on. The expected calibration error (ECE) is the mean over samples of
|frequency - mean probability| of their bin. It depends on the number of bins, so name it beside the figure, and for a
rare finding nearly all samples sit in the lowest bin.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distcxr.metrics.bootstrap import PatientResamples, entries_by_patient, sum_replicates
from distcxr.metrics.estimate import Estimate, estimate
from distcxr.metrics.scored import Floats, Known, Scored

BINS = 15
SHARPEST, FLATTEST = 1e-3, 1e3  # temperatures looked at; an optimum beyond them is no calibration
_MAX_STEPS = 200
_PART = 2**15


@dataclass(frozen=True)
class Reliability:
    """A reliability curve: float64 `[B]`, and int64 counts, of the bins that hold samples, lowest first."""

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
class Calibration:
    """Brier score, ECE and the curve that the ECE is made from, of one finding."""

    brier: Estimate
    ece: Estimate
    curve: Reliability


@dataclass(frozen=True)
class Temperature:
    """A fitted temperature: logits divided by `value` have the least log loss, which went from `before` to `after`.

    Where there is none, `reason` has why, and logits are to be used as they are. Losses are nats a sample.
    """

    value: float | None
    before: float | None
    after: float | None
    reason: str | None


def probabilities(logits: Floats, temperature: float = 1.0) -> NDArray[np.float64]:
    """Sigmoid of logits / temperature in float64, without overflow; any shape.

    Raises ValueError for a temperature that is not above 0 and finite.
    """
    if not 0 < temperature < np.inf:
        raise ValueError(f"a temperature must be above 0 and finite, got {temperature}")
    scaled = logits.astype(np.float64) / temperature
    decay = np.exp(-np.abs(scaled))  # exp sees no number above 0
    return np.where(scaled >= 0, 1.0, decay) / (1.0 + decay)


def brier(prob_M: NDArray[np.float64], targets_M: NDArray[np.uint8]) -> float | None:
    """Mean squared difference of probability and target; None without samples."""
    return float(np.mean((prob_M - targets_M) ** 2)) if len(prob_M) else None


def reliability(prob_M: NDArray[np.float64], targets_M: NDArray[np.uint8], bins: int = BINS) -> Reliability:
    """Mean probability and frequency of positives in each bin that holds samples."""
    bin_M = _bin_of(prob_M, bins)
    count = np.bincount(bin_M, minlength=bins)
    filled = np.flatnonzero(count)
    count_B = count[filled]
    return Reliability(
        mean_prob_B=np.bincount(bin_M, weights=prob_M, minlength=bins)[filled] / count_B,
        frequency_B=np.bincount(bin_M, weights=targets_M, minlength=bins)[filled] / count_B,
        count_B=count_B,
    )


def calibration_estimates(
    resamples: PatientResamples, scored: Scored, temperature_C: Sequence[float | None] | None = None
) -> list[Calibration | None]:
    """Brier score and ECE (`BINS` bins) of each finding with patient-level intervals; logits are divided by
    `temperature_C` first.

    None for findings with a temperature of None; without `temperature_C` each is 1.
    The ECE of a resample is larger than that of its source on average (noise adds to absolute gaps and never
    cancels), so with few samples its interval can lie above the value: read it as an upper bound.
    Raises ValueError for draws of another number of patients, and for another number of temperatures.
    """
    scales = [1.0] * len(scored.known) if temperature_C is None else list(temperature_C)
    if len(scales) != len(scored.known):
        raise ValueError(f"{len(scales)} temperatures for {len(scored.known)} findings: give one each")
    points: dict[int, tuple[float | None, Reliability]] = {}
    entries = []
    for column, (known, scale) in enumerate(zip(scored.known, scales, strict=True)):
        if scale is None:
            continue
        prob_M = probabilities(known.logits_M, scale)
        points[column] = brier(prob_M, known.targets_M), reliability(prob_M, known.targets_M)
        gap_M = known.targets_M - prob_M
        # Three kinds of sum: samples, squared errors, then the gap of each bin.
        sum_3M = np.stack((np.zeros(len(gap_M), dtype=np.int64), np.ones(len(gap_M), dtype=np.int64),
                           2 + _bin_of(prob_M, BINS)))  # fmt: skip
        value_3M = np.stack((np.ones(len(gap_M)), gap_M**2, gap_M))
        entries.append(entries_by_patient(np.tile(known.patient_M, 3), sum_3M.ravel(), value_3M.ravel(), 2 + BINS))
    found: list[Calibration | None] = [None] * len(scales)
    sums = sum_replicates(resamples, scored, entries)
    for (column, (value, curve)), sums_VK in zip(points.items(), sums, strict=True):
        known = scored.known[column]
        num_K = np.where(sums_VK[0] > 0, sums_VK[0], np.nan)
        reason = None if len(known.targets_M) else known.reason
        squared_K, gap_K = sums_VK[1] / num_K, np.abs(sums_VK[2:]).sum(axis=0) / num_K
        found[column] = Calibration(
            estimate(value, reason, squared_K, known.num_patients),
            estimate(curve.ece(), reason, gap_K, known.num_patients),
            curve,
        )
    return found


def fit_temperature(known: Known) -> Temperature:
    """The temperature of one finding, from validation's known labels.

    The log loss is convex in 1 / temperature, so its slope has one zero: Newton steps, halving where one leaves the
    bracket.
    """
    if known.reason:
        return Temperature(None, None, None, known.reason)
    logits_M = known.logits_M
    margin_M = np.where(known.targets_M == 1, logits_M, -logits_M)
    before = _log_loss(margin_M, 1.0)
    if margin_M.min() >= 0 and margin_M.max() > 0:
        reason = "the sign of the logits separates the classes: the smaller the temperature, the smaller the loss"
        return Temperature(None, before, None, reason)
    low, high = 1 / FLATTEST, 1 / SHARPEST
    if _slopes(margin_M, low)[0] >= 0:
        reason = f"the best temperature is beyond {FLATTEST:g}: at this offset the logits say nothing, or the opposite"
        return Temperature(None, before, None, reason)
    if _slopes(margin_M, high)[0] <= 0:
        reason = f"the best temperature is below {SHARPEST:g}: the logits are tiny, or all but separate the classes"
        return Temperature(None, before, None, reason)
    sharpness = 1.0
    for _ in range(_MAX_STEPS):
        slope, bend = _slopes(margin_M, sharpness)
        if slope < 0:
            low = sharpness
        else:
            high = sharpness
        step = sharpness - slope / bend if bend > 0 else low
        following = step if low < step < high else (low * high) ** 0.5
        if abs(following - sharpness) <= 1e-13 * sharpness or slope == 0:
            break
        sharpness = following
    return Temperature(1 / sharpness, before, _log_loss(margin_M, sharpness), None)


def _bin_of(prob_M: NDArray[np.float64], bins: int) -> NDArray[np.int64]:
    return np.linspace(0, 1, bins + 1)[1:-1].searchsorted(prob_M)


def _log_loss(margin_M: NDArray[np.float32], sharpness: float) -> float:
    """Mean of log(1 + exp(-sharpness * margin)); a margin is above 0 where the logit's sign is right."""
    sums = [np.logaddexp(0, -sharpness * part_M).sum() for part_M in _parts(margin_M)]
    return math.fsum(sums) / len(margin_M)


def _slopes(margin_M: NDArray[np.float32], sharpness: float) -> tuple[float, float]:
    """First and second derivative of `_log_loss` by the sharpness, 1 / temperature."""
    slopes, bends = [], []
    for part_M in _parts(margin_M):
        decay_M = np.exp(-sharpness * np.abs(part_M))
        share_M = 1.0 / (1.0 + decay_M)
        slopes.append(-(part_M * np.where(part_M >= 0, decay_M, 1.0) * share_M).sum())
        bends.append((part_M**2 * decay_M * share_M**2).sum())
    return math.fsum(slopes) / len(margin_M), math.fsum(bends) / len(margin_M)


def _parts(margin_M: NDArray[np.float32]) -> Iterator[NDArray[np.float64]]:
    """A few at a time in float64: half a dozen arrays of 14 million samples would take half a gigabyte."""
    for start in range(0, len(margin_M), _PART):
        yield margin_M[start : start + _PART].astype(np.float64)
