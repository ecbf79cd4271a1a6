"""Two models on the same samples: is the difference of their AUROC more than the draw of patients explains?

Shape suffixes: C findings, K replicates.

Both models are scored on the same resampled patients, so what makes a sample hard for both cancels in the difference:
its interval is narrower than the two models' own intervals suggest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distcxr.metrics.areas import area_estimates
from distcxr.metrics.bootstrap import PatientResamples, area_replicates
from distcxr.metrics.delong import delong_p_value
from distcxr.metrics.estimate import Estimate, average_replicates, estimate
from distcxr.metrics.scored import Scored, count_patients


@dataclass(frozen=True)
class AreaDifference:
    """AUROC of a less that of b; None where undefined, with the difference's reason."""

    auroc_a: float | None
    auroc_b: float | None
    difference: Estimate
    p: float | None
    """Two-sided, from the patient-level bootstrap; None without an interval. At least 2 / (replicates + 1)."""
    p_delong: float | None
    """Two-sided, images taken as independent; None where undefined, and for the average."""


@dataclass(frozen=True)
class Comparison:
    """A difference for each finding, and that of the averages over `macro_findings`."""

    findings: tuple[AreaDifference, ...]
    macro: AreaDifference
    macro_findings: tuple[str, ...]


def compare_models(
    resamples: PatientResamples, a: Scored, b: Scored, macro_findings: Sequence[str] | None = None
) -> Comparison:
    """Paired differences of AUROC for each finding and on average (all findings by default).

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
    both_CK = replicates[0][0] - replicates[1][0]
    found = [
        _difference(auroc_a, auroc_b, both_K, known_a.num_patients, delong_p_value(known_a, known_b))
        for auroc_a, auroc_b, both_K, known_a, known_b in zip(
            areas_a.auroc, areas_b.auroc, both_CK, a.known, b.known, strict=True
        )
    ]
    columns = a.columns(areas_a.macro_findings)
    num_patients = count_patients(*(a.known[column].patient_M for column in columns))
    macro_K = average_replicates(both_CK[columns])
    macro = _difference(areas_a.macro_auroc, areas_b.macro_auroc, macro_K, num_patients, None)
    return Comparison(tuple(found), macro, areas_a.macro_findings)


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


def _difference(
    a: Estimate, b: Estimate, difference_K: NDArray[np.float64], num_patients: int, p_delong: float | None
) -> AreaDifference:
    value = None if a.value is None or b.value is None else a.value - b.value
    difference = estimate(value, a.reason or b.reason, difference_K, num_patients)
    p = None
    if difference.low is not None:
        defined_K = difference_K[~np.isnan(difference_K)]
        fewer = min(np.count_nonzero(defined_K <= 0), np.count_nonzero(defined_K >= 0))
        p = min(1.0, 2 * (int(fewer) + 1) / (len(defined_K) + 1))
    return AreaDifference(a.value, b.value, difference, p, p_delong)
