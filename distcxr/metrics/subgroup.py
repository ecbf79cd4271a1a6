"""AUROC by sex, age band, view and images per patient, and which groups differ beyond their intervals.

Shape suffixes: N samples.

Every sample is in one group of each attribute; "unknown" is a group like any other. The draws of patients are the
same in all groups. Disjoint intervals are a cautious sign of a difference and prove no cause: groups differ in how ill
they are, too. Among many pairs a few come up by chance, so the number of pairs compared is given as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distcxr.metrics.bootstrap import PatientResamples, area_estimates
from distcxr.metrics.estimate import Estimate
from distcxr.metrics.scored import Scored, count_patients

UNKNOWN = "unknown"
MACRO = "macro"
AGE_BANDS = ("0-17", "18-39", "40-59", "60-79", "80+")
IMAGE_BANDS = ("1", "2-5", "6+")
_AGE_STARTS = (18, 40, 60, 80)
_IMAGE_STARTS = (2, 6)

MIN_CASES = 10
"""Of patients, positives and negatives, for groups to be compared: resampling two positives gives an interval that is
far too narrow, a point at worst."""


@dataclass(frozen=True)
class Grouping:
    """One attribute: the names of its groups that hold samples, and each sample's position among them, int64 `[N]`."""

    attribute: str
    groups: tuple[str, ...]
    group_N: NDArray[np.int64]


@dataclass(frozen=True)
class GroupScore:
    """AUROC of one finding (or `MACRO`) in one group."""

    attribute: str
    group: str
    finding: str
    auroc: Estimate
    num: int
    """Known labels of the finding; samples for the average."""
    num_positive: int
    num_patients: int
    macro_findings: tuple[str, ...] = ()
    """What was averaged: groups may lack a class of some finding, and averages of different findings don't compare."""


@dataclass(frozen=True)
class Difference:
    """Two groups with intervals that don't meet; `lower` has the smaller AUROC."""

    attribute: str
    finding: str
    lower: GroupScore
    higher: GroupScore


@dataclass(frozen=True)
class Subgroups:
    """Scores by attribute, group and finding, and the differences among them."""

    scores: tuple[GroupScore, ...]
    differences: tuple[Difference, ...]
    num_pairs: int
    """Pairs of groups that were looked at, findings and attributes together."""


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
    resamples: PatientResamples,
    scored: Scored,
    groupings: Sequence[Grouping],
    macro_findings: Sequence[str] | None = None,
) -> Subgroups:
    """AUROC with patient-level intervals in every group, for each finding and on average, and where groups differ.

    Two averages are compared only where they are of the same findings, and no group with fewer than `MIN_CASES`
    patients, positives or negatives is compared at all.
    Raises ValueError as `bootstrap.area_estimates` does, and for groupings of other lengths.
    """
    scores: list[GroupScore] = []
    differences: list[Difference] = []
    num_pairs = 0
    for grouping in groupings:
        if len(grouping.group_N) != len(scored):
            raise ValueError(f"{grouping.attribute}: {len(grouping.group_N)} values for {len(scored)} samples")
        here: list[GroupScore] = []
        for number, group in enumerate(grouping.groups):
            inside = scored.within(grouping.group_N == number)
            areas = area_estimates(resamples, inside, macro_findings)
            here += [
                GroupScore(
                    grouping.attribute, group, known.name, area, known.num, known.num_positive, known.num_patients
                )
                for known, area in zip(inside.known, areas.auroc, strict=True)
            ]
            averaged = [inside.known[column] for column in inside.columns(areas.macro_findings)]
            here.append(
                GroupScore(
                    attribute=grouping.attribute,
                    group=group,
                    finding=MACRO,
                    auroc=areas.macro_auroc,
                    num=len(inside),
                    num_positive=sum(known.num_positive for known in averaged),
                    num_patients=count_patients(inside.patient_N),
                    macro_findings=areas.macro_findings,
                )
            )
        looked_at, found = _differences(here)
        num_pairs += looked_at
        scores += here
        differences += found
    return Subgroups(tuple(scores), tuple(differences), num_pairs)


def _differences(scores: list[GroupScore]) -> tuple[int, list[Difference]]:
    found, num_pairs = [], 0
    for finding in dict.fromkeys(score.finding for score in scores):
        for pair in combinations([score for score in scores if score.finding == finding], 2):
            (low_a, high_a), (low_b, high_b) = ((score.auroc.low, score.auroc.high) for score in pair)
            if low_a is None or high_a is None or low_b is None or high_b is None:
                continue
            if pair[0].macro_findings != pair[1].macro_findings or any(map(_too_few, pair)):
                continue
            num_pairs += 1
            if high_a < low_b:
                found.append(Difference(pair[0].attribute, finding, lower=pair[0], higher=pair[1]))
            elif high_b < low_a:
                found.append(Difference(pair[0].attribute, finding, lower=pair[1], higher=pair[0]))
    return num_pairs, found


def _too_few(score: GroupScore) -> bool:
    counts = [score.num_patients]
    if score.finding != MACRO:
        counts += [score.num_positive, score.num - score.num_positive]
    return min(counts) < MIN_CASES


def _grouping(attribute: str, names: tuple[str, ...], label_N: NDArray[np.int64]) -> Grouping:
    """Groups without samples are left out."""
    held, group_N = np.unique(label_N, return_inverse=True)
    return Grouping(attribute, tuple(names[label] for label in held), group_N)
