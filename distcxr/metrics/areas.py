"""AUROC and average precision with intervals by patient: each finding's, and their averages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from distcxr.metrics.degrees import MIN_PATIENTS
from distcxr.metrics.estimate import Estimate, average
from distcxr.metrics.influence import Spread, auprc_spread, auroc_spread, average_spread, logit_interval, score_interval
from distcxr.metrics.scored import Known, Scored, count_patients

SAME_SCORE = "every image has the same score"

AREA_METHODS = {
    "auroc": (
        "score interval (Wilson's form) with Obuchowski's variance between patients (1997), averaged with a binormal "
        "model's, and Student's t of the effective number of patients and the fourth moment"
    ),
    "auprc": "linearised variance between patients on the logit scale, Student's t of its fourth moment",
    "macro": "variance between patients of the findings' mean on the logit scale, Student's t of its fourth moment",
}


@dataclass(frozen=True)
class Areas:
    """AUROC and average precision, a finding each, and the averages over `macro_findings`."""

    auroc: tuple[Estimate, ...]
    auprc: tuple[Estimate, ...]
    macro_auroc: Estimate
    macro_auprc: Estimate
    macro_findings: tuple[str, ...]
    """The findings averaged: those asked for, less those where a class is absent."""
    auroc_spreads: tuple[Spread | None, ...] = field(compare=False)
    """Of each finding, for differences of groups; None without an area."""


def area_estimates(scored: Scored, macro_findings: Sequence[str] | None = None) -> Areas:
    """AUROC and average precision with intervals, for each finding and on average.

    Args: the findings to average (all by default). An average is of the findings that have both classes.
    Raises ValueError for macro findings that are not scored or repeat.
    """
    columns = scored.columns(macro_findings)
    both = [
        (auroc_spread(known, scored.num_patients), auprc_spread(known, scored.num_patients)) if known.ranks else None
        for known in scored.known
    ]
    averaged = [column for column in columns if both[column]]
    num_patients = count_patients(*(scored.known[column].patient_M for column in averaged))
    macros = []
    for index in (0, 1):
        spreads = [found[index] for column in averaged if (found := both[column])]
        value, reason = average([spread.value for spread in spreads])
        if not spreads:
            reason = average([None] * len(columns))[1]
            macros.append(Estimate(None, None, None, reason))
            continue
        mean = average_spread(spreads)
        reason = _no_spread(mean)
        if num_patients < MIN_PATIENTS:
            reason = f"{'one patient' if num_patients == 1 else f'{num_patients} patients'} only"
        macros.append(_estimate(value, reason, (0, 0) if reason else logit_interval(mean)))
    aurocs, auprcs = [], []
    for known, found in zip(scored.known, both, strict=True):
        if found is None:
            aurocs.append(Estimate(None, None, None, known.reason))
            auprcs.append(aurocs[-1])
            continue
        reason = too_few(known, MIN_PATIENTS) or _same_score(known)
        aurocs.append(_estimate(found[0].value, reason, (0, 0) if reason else score_interval(found[0], True)))
        reason = reason or _no_spread(found[1])
        auprcs.append(_estimate(found[1].value, reason, (0, 0) if reason else logit_interval(found[1])))
    return Areas(
        tuple(aurocs), tuple(auprcs), macros[0], macros[1], tuple(scored.findings[column] for column in averaged),
        tuple(found and found[0] for found in both),
    )  # fmt: skip


def too_few(known: Known, needed: int) -> str | None:
    """Why positives or negatives are of too few patients; None where there are enough of both."""
    if known.num_patients == 1:
        return "one patient only: how patients differ is not known"
    for name, num in (("positive", known.num_positive_patients), ("negative", known.num_negative_patients)):
        if num < needed:
            return f"{num} {name} patient{'' if num == 1 else 's'}: an interval needs {needed}"
    return None


def _same_score(known: Known) -> str | None:
    return SAME_SCORE if known.scores_M.min() == known.scores_M.max() else None


def _no_spread(spread: Spread) -> str | None:
    if 0 < spread.value < 1 and spread.variance > 0:
        return None
    return "no two patients differ, so nothing is known of how it varies"


def _estimate(value: float | None, reason: str | None, ends: tuple[float, float]) -> Estimate:
    if reason or not (math.isfinite(ends[0]) and ends[0] < ends[1]):
        return Estimate(value, None, None, reason or "its interval has no width")
    return Estimate(value, *ends, None)
