"""Two models on the same samples: is the difference of their figures more than the draw of patients explains?

Shape suffixes: C findings, K replicates.

Both models are scored on the same resampled patients, so what makes a sample hard for both cancels in the difference:
its interval is narrower than the two models' own intervals suggest. The bootstrap's p-value can't be below its floor,
that of 2 / (replicates + 1); AUROC has DeLong's test by patient beside it, which has none. Both come with Holm's
adjustment over the findings. What they do when there is no difference is measured by `benchmarks/inference.py`.

Of few patients, resamples vary less than samples do, by (n - 1) / n, and as if their spread were known. So percentiles
are taken further out, where Student's t of n - 1 would have them, and p-values are read from the same t (the expanded
percentile interval: Hesterberg, The American Statistician 69 (2015), 371-386); n: patients of the rarer class.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from distcxr.metrics.areas import area_estimates
from distcxr.metrics.bootstrap import PatientResamples, area_replicates
from distcxr.metrics.clustered import paired_p_value
from distcxr.metrics.degrees import degrees_of_freedom
from distcxr.metrics.estimate import LEVEL, Estimate, average_replicates, estimate
from distcxr.metrics.operating import Operating
from distcxr.metrics.p_values import holm
from distcxr.metrics.paired_points import COMPARED_RATES, RateReplicates, rate_replicates
from distcxr.metrics.scored import Known, Scored, count_patients
from distcxr.metrics.student import quantile, two_sided_p

METHODS = {
    "interval": "expanded percentiles of patient resamples, the same for both models: as far out as Student's t of the "
    "rarer class's patients less 1",
    "p": "twice the smaller share of patient resamples beyond 0, read from the same t; never below p_floor",
    "p_delong": "DeLong by patient (Obuchowski), Student's t of the rarer class's patients less 1",
    "p_holm": "Holm's adjustment of p over the findings",
    "p_delong_holm": "Holm's adjustment of p_delong over the findings",
    "operating_points": "each model at its own thresholds, which are held",
}


@dataclass(frozen=True)
class PairedDifference:
    """A figure of a less that of b; None where undefined, with the difference's reason."""

    a: float | None
    b: float | None
    difference: Estimate
    p: float | None
    """Two-sided, from the patient-level bootstrap; None without an interval, and of few patients of a class."""
    p_floor: float | None
    """The smallest p that as many replicates can show; where p is at it, it may be smaller."""
    p_reason: str | None
    """Why there is no p-value."""
    p_holm: float | None = None
    p_delong: float | None = None
    """Two-sided, by patient; None where undefined, and for all but the AUROC of a finding."""
    p_delong_holm: float | None = None


@dataclass(frozen=True)
class Comparison:
    """Differences of each finding, in their order, and of the averages over `macro_findings`.

    `points` has a rule's name, then a rate's of `COMPARED_RATES`, then a difference for each finding.
    """

    auroc: tuple[PairedDifference, ...]
    auprc: tuple[PairedDifference, ...]
    macro_auroc: PairedDifference
    macro_auprc: PairedDifference
    macro_findings: tuple[str, ...]
    points: dict[str, dict[str, tuple[PairedDifference, ...]]]


def compare_models(
    resamples: PatientResamples,
    a: Scored,
    b: Scored,
    macro_findings: Sequence[str] | None = None,
    operating: tuple[Operating, Operating] | None = None,
) -> Comparison:
    """Paired differences of AUROC and average precision for each finding and on average (all findings by default).

    Args: the operating points of a and of b, to compare rates at the thresholds that both have by the same rules.
    The p-value is twice the smaller share of replicates on either side of 0, a replicate exactly at 0 counting on
    both, with one added so that it is never 0.
    Raises ValueError as `areas.area_estimates` does, where the two are not of the same samples and labels, and for
    scores that are not finite, naming the model.
    """
    for name, scored in (("a", a), ("b", b)):
        if bad := [f"{known.name} ({known.reason})" for known in scored.known if known.num_not_finite]:
            raise ValueError(f"model {name}: {', '.join(bad)}")
    if not _same_labels(a, b):
        raise ValueError("models can be compared on the same samples, findings and labels only")
    replicates = [area_replicates(resamples, scored) for scored in (a, b)]
    areas_a, areas_b = (area_estimates(scored, macro_findings) for scored in (a, b))
    both_2CK = replicates[0] - replicates[1]
    columns = a.columns(areas_a.macro_findings)
    num_patients = count_patients(*(a.known[column].patient_M for column in columns))
    # Of an average, those of the finding with the most: the others only add patients to it.
    known_degrees = [df for column in columns if (df := degrees_of_freedom(a.known[column])[0])]
    degrees = (max(known_degrees), None) if known_degrees else (None, None)
    by_finding, macros = [], []
    for both_CK, found_a, found_b, macro_a, macro_b in (
        (both_2CK[0], areas_a.auroc, areas_b.auroc, areas_a.macro_auroc, areas_b.macro_auroc),
        (both_2CK[1], areas_a.auprc, areas_b.auprc, areas_a.macro_auprc, areas_b.macro_auprc),
    ):
        by_finding.append([
            paired_difference(one, other, both_K, known.num_patients, degrees_of_freedom(known))
            for one, other, both_K, known in zip(found_a, found_b, both_CK, a.known, strict=True)
        ])  # fmt: skip
        macros.append(paired_difference(macro_a, macro_b, average_replicates(both_CK[columns]), num_patients, degrees))
    delong = [paired_p_value(*pair) for pair in zip(a.known, b.known, strict=True)]
    tested = zip(by_finding[0], delong, holm(delong), strict=True)
    aurocs = [replace(one, p_delong=p, p_delong_holm=adjusted) for one, p, adjusted in tested]
    points = _points(resamples, (a, b), operating) if operating else {}
    auprcs = _adjust(by_finding[1])
    return Comparison(_adjust(aurocs), auprcs, macros[0], macros[1], areas_a.macro_findings, points)


def _points(
    resamples: PatientResamples, models: tuple[Scored, Scored], operating: tuple[Operating, Operating]
) -> dict[str, dict[str, tuple[PairedDifference, ...]]]:
    found = {}
    for rule in [rule for rule in operating[0].thresholds if rule in operating[1].thresholds]:
        at_C = [
            rate_replicates(resamples, scored, [_rank(known, chosen, rule) for known in scored.known])
            for scored, chosen in zip(models, operating, strict=True)
        ]
        found[rule] = {
            rate: _adjust([_rate_difference(rate, *found) for found in zip(*at_C, models[0].known, strict=True)])
            for rate in COMPARED_RATES
        }
    return found


def _rank(known: Known, chosen: Operating, rule: str) -> float | None:
    """The rule's threshold for the ranks of a finding."""
    score = chosen.threshold(rule, chosen.findings.index(known.name), known.scale)
    return None if score is None else known.to_rank(score)


def _rate_difference(rate: str, a: RateReplicates | None, b: RateReplicates | None, known: Known) -> PairedDifference:
    if a is None or b is None:
        nothing = Estimate(None, None, None, "there is no threshold")
        return PairedDifference(None, None, nothing, None, None, nothing.reason)
    values = [Estimate(one.counts.rates()[rate], None, None, one.counts.undefined_rate(rate)) for one in (a, b)]
    degrees = degrees_of_freedom(known)
    return paired_difference(values[0], values[1], a.rates[rate] - b.rates[rate], known.num_patients, degrees)


def _same_labels(a: Scored, b: Scored) -> bool:
    return (
        a.findings == b.findings
        and np.array_equal(a.patient_N, b.patient_N)
        and all(
            np.array_equal(known_a.is_known_N, known_b.is_known_N)
            and np.array_equal(known_a.targets_M, known_b.targets_M)
            for known_a, known_b in zip(a.known, b.known, strict=True)
        )
    )


def paired_difference(
    a: Estimate, b: Estimate, difference_K: NDArray[np.float64], num_patients: int,
    degrees: tuple[int | None, str | None],
) -> PairedDifference:  # fmt: skip
    """A figure of two models, with its difference's interval and p-value from replicates; NaN where undefined.

    `degrees`: of freedom, or why neither interval nor p-value would hold; without either, plain percentiles.
    """
    df, too_few = degrees
    value = None if a.value is None or b.value is None else a.value - b.value
    reason = (a if a.value is None else b).reason
    if value is not None and too_few:
        difference = Estimate(value, None, None, too_few)
    else:
        difference = estimate(value, reason, difference_K, num_patients, _tail(df))
    if difference.low is None:
        return PairedDifference(a.value, b.value, difference, None, None, difference.reason)
    defined_K = difference_K[~np.isnan(difference_K)]
    fewer = min(np.count_nonzero(defined_K <= 0), np.count_nonzero(defined_K >= 0))
    floor = 2 / (len(defined_K) + 1)
    p = min(1.0, floor * (int(fewer) + 1))
    return PairedDifference(a.value, b.value, difference, _expanded(p, df), _expanded(floor, df), None)


def _tail(df: int | None) -> float:
    """The share of resamples beyond either end of an interval."""
    reach = NormalDist().inv_cdf((1 + LEVEL) / 2) if df is None else quantile(LEVEL, df) * math.sqrt((df + 1) / df)
    return NormalDist().cdf(-reach)


def _expanded(p: float, df: int | None) -> float:
    """The p-value of t where that of the normal is `p`: below 1 - `LEVEL` where the interval does not hold 0."""
    if df is None or p >= 1:
        return p
    return two_sided_p(-NormalDist().inv_cdf(p / 2) * math.sqrt(df / (df + 1)), df)


def _adjust(found: Sequence[PairedDifference]) -> tuple[PairedDifference, ...]:
    """With Holm's p-values; the family is these."""
    return tuple(
        replace(one, p_holm=adjusted) for one, adjusted in zip(found, holm([one.p for one in found]), strict=True)
    )
