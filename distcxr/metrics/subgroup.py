"""Figures by sex, age band, view and images per patient: AUROC, recall, specificity and calibration of each finding.

Shape suffixes: N samples, C findings, P patients.

Every sample is in one group of each attribute; "unknown" is a group like any other. Which groups differ is in
`group_tests`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distcxr.metrics.areas import Areas, area_estimates, too_few
from distcxr.metrics.calibration import probabilities
from distcxr.metrics.degrees import MIN_PATIENTS
from distcxr.metrics.estimate import Estimate
from distcxr.metrics.group_tests import ALPHA, MIN_COMPARED, Difference, Side, adjusted, average_side, compare
from distcxr.metrics.influence import mean_interval
from distcxr.metrics.scored import Known, Scored, count_patients
from distcxr.metrics.threshold import rate_estimates

UNKNOWN = "unknown"
MACRO = "macro"
AGE_BANDS = ("0-17", "18-39", "40-59", "60-79", "80+")
IMAGE_BANDS = ("1", "2-5", "6+")
_AGE_STARTS = (18, 40, 60, 80)
_IMAGE_STARTS = (2, 6)
GROUP_RATES = ("recall", "specificity")


@dataclass(frozen=True)
class Grouping:
    """One attribute: the names of its groups that hold samples, and each sample's position among them, int64 `[N]`."""

    attribute: str
    groups: tuple[str, ...]
    group_N: NDArray[np.int64]


@dataclass(frozen=True)
class GroupScore:
    """One finding (or `MACRO`, AUROC alone) in one group."""

    attribute: str
    group: str
    finding: str
    auroc: Estimate
    num: int
    """Known labels of the finding; samples for the average."""
    num_positive: int
    num_patients: int
    num_positive_patients: int = 0
    num_negative_patients: int = 0
    rates: dict[str, Estimate] | None = None
    """`GROUP_RATES` at the thresholds; None without any."""
    mean_prob: float | None = None
    frequency: float | None = None
    """Of positives; equal to `mean_prob` where probabilities are right on average."""
    gap: Estimate | None = None
    """Frequency less mean probability."""
    macro_findings: tuple[str, ...] = ()
    """What was averaged: groups may lack a class of some finding, and averages of different findings don't compare."""


@dataclass(frozen=True)
class Subgroups:
    """Scores by attribute, group and finding, and every pair that was tested, the smallest p-value first."""

    scores: tuple[GroupScore, ...]
    tested: tuple[Difference, ...]

    @property
    def differences(self) -> tuple[Difference, ...]:
        """Those of the tested that differ, at an adjusted p-value below `ALPHA`."""
        return tuple(one for one in self.tested if one.p_adjusted < ALPHA)


def by_name(attribute: str, names: NDArray[np.str_]) -> Grouping:
    """Groups of equal text `[N]`, in alphabetical order; "" is unknown and comes last. For sex and view."""
    found = sorted(set(np.unique(names).tolist()) - {""})
    labels = np.where(names == "", len(found), np.searchsorted(np.array(found, dtype=names.dtype), names))
    return _grouping(attribute, (*found, UNKNOWN), labels)


def by_age(age_years: NDArray[np.float32]) -> Grouping:
    """Bands of age `[N]`, half-open: 17.9 is in 0-17, 18 in 18-39. NaN and ages below 0 are unknown."""
    band_N = np.searchsorted(np.array(_AGE_STARTS), np.nan_to_num(age_years), side="right")
    return _grouping("age", (*AGE_BANDS, UNKNOWN), np.where(age_years >= 0, band_N, len(AGE_BANDS)))


def by_images_per_patient(patient_N: NDArray[np.integer[Any]]) -> Grouping:
    """How many of these `[N]` samples a sample's patient has: 1, 2 to 5, 6 or more."""
    _, row_N, count_P = np.unique(patient_N, return_inverse=True, return_counts=True)
    band_N = np.searchsorted(np.array(_IMAGE_STARTS), count_P[row_N], side="right")
    return _grouping("images per patient", IMAGE_BANDS, band_N)


def score_subgroups(
    scored: Scored,
    groupings: Sequence[Grouping],
    macro_findings: Sequence[str] | None = None,
    threshold_C: Sequence[float | None] | None = None,
) -> Subgroups:
    """Score every group, for each finding and on average, and test where groups differ in AUROC.

    Args: thresholds of `scores_M`, for recall and specificity. Only groups with `MIN_COMPARED` positive and as many
    negative patients are compared; the average of two is of the findings with that many in both.
    Raises ValueError as `areas.area_estimates` does, and for groupings of other lengths.
    """
    scores: list[GroupScore] = []
    tested: list[Difference] = []
    averaged = [scored.findings[column] for column in scored.columns(macro_findings)]
    for grouping in groupings:
        if len(grouping.group_N) != len(scored):
            raise ValueError(f"{grouping.attribute}: {len(grouping.group_N)} values for {len(scored)} samples")
        sides: list[dict[str, Side]] = []
        for number, group in enumerate(grouping.groups):
            inside = scored.within(grouping.group_N == number)
            areas = area_estimates(inside, macro_findings)
            scores += _scores(grouping.attribute, group, inside, areas, threshold_C)
            sides.append(
                {
                    known.name: Side(group, area, spread)
                    for known, area, spread in zip(inside.known, areas.auroc, areas.auroc_spreads, strict=True)
                    if spread and area.low is not None and not too_few(known, MIN_COMPARED)
                }
            )
        for a, b in combinations(sides, 2):
            tested += _compare(grouping.attribute, a, b, averaged)
    return Subgroups(tuple(scores), tuple(adjusted(tested)))


def _scores(
    attribute: str, group: str, inside: Scored, areas: Areas, threshold_C: Sequence[float | None] | None
) -> Iterator[GroupScore]:
    rates_C = rate_estimates(inside, threshold_C) if threshold_C else [None] * len(inside.known)
    for known, area, rates in zip(inside.known, areas.auroc, rates_C, strict=True):
        frequency, mean_prob, gap = _on_average(known, inside.num_patients)
        yield GroupScore(
            attribute, group, known.name, area, known.num, known.num_positive, known.num_patients,
            known.num_positive_patients, known.num_negative_patients,
            rates={name: rates[name] for name in GROUP_RATES} if rates else None,
            mean_prob=mean_prob, frequency=frequency, gap=gap,
        )  # fmt: skip
    averaged = [inside.known[column] for column in inside.columns(areas.macro_findings)]
    yield GroupScore(
        attribute, group, MACRO, areas.macro_auroc, len(inside), sum(known.num_positive for known in averaged),
        count_patients(inside.patient_N), macro_findings=areas.macro_findings,
    )  # fmt: skip


def _on_average(known: Known, num_patients: int) -> tuple[float | None, float | None, Estimate]:
    """Frequency of positives, mean probability, and the gap between them with its interval."""
    if not len(known.targets_M):
        return None, None, Estimate(None, None, None, known.reason)
    prob_M = probabilities(known.logits_M)
    gap_P = np.bincount(known.patient_M, weights=known.targets_M - prob_M, minlength=num_patients)
    count_P = np.bincount(known.patient_M, minlength=num_patients).astype(np.float64)
    # In the order of scores and labels, so that the order of the samples can't change the last digit.
    frequency, mean_prob = known.num_positive / known.num, math.fsum(prob_M) / known.num
    gap = frequency - mean_prob
    num = int(np.count_nonzero(count_P))
    if num < MIN_PATIENTS:
        return frequency, mean_prob, Estimate(gap, None, None, f"{num} patients: an interval needs {MIN_PATIENTS}")
    low, high = mean_interval(gap_P, count_P)
    return frequency, mean_prob, Estimate(gap, low, high, None)


def _compare(attribute: str, a: dict[str, Side], b: dict[str, Side], averaged: Sequence[str]) -> Iterator[Difference]:
    common = [name for name in a if name in b]
    for name in common:
        yield compare(attribute, name, a[name], b[name])
    names = tuple(name for name in common if name in averaged)
    if len(names) > 1:  # of one finding the average is the finding
        mean_a, mean_b = (
            average_side(next(iter(side.values())).group, [side[name].spread for name in names]) for side in (a, b)
        )
        yield compare(attribute, MACRO, mean_a, mean_b, names)


def _grouping(attribute: str, names: tuple[str, ...], label_N: NDArray[np.int64]) -> Grouping:
    """Groups without samples are left out."""
    held, group_N = np.unique(label_N, return_inverse=True)
    return Grouping(attribute, tuple(names[label] for label in held), group_N)
