"""Two models on the same samples: is the difference of their AUROC more than the draw of patients explains?

Shape suffixes: N samples, C findings, K replicates.

Both models are scored on the same resampled patients, so what makes a sample hard for both cancels in the difference:
its interval is narrower than the two models' own intervals suggest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distcxr.metrics.bootstrap import Areas, PatientResamples, area_replicates, check, summarise_areas
from distcxr.metrics.delong import delong_test
from distcxr.metrics.estimate import Estimate, average_replicates, estimate
from distcxr.metrics.ranking import known


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
    """A difference for each finding, and that of the averages over `macro_columns`."""

    findings: tuple[AreaDifference, ...]
    macro: AreaDifference
    macro_columns: tuple[int, ...]


def compare_models(
    resamples: PatientResamples,
    logits_a_NC: NDArray[np.float32],
    logits_b_NC: NDArray[np.float32],
    targets_NC: NDArray[np.uint8],
    mask_NC: NDArray[np.uint8],
    macro_columns: Sequence[int] | None = None,
    level: float = 0.95,
) -> Comparison:
    """Paired differences of AUROC for each finding and on average (all columns by default).

    Row n of both is the same sample. The p-value is twice the smaller share of replicates on either side of 0, a
    replicate exactly at 0 counting on both, with one added so that it is never 0.
    Raises ValueError as `bootstrap.area_estimates` does; the message names the model.
    """
    areas: list[Areas] = []
    replicates = []
    for name, logits_NC in (("a", logits_a_NC), ("b", logits_b_NC)):
        try:
            check(resamples, logits_NC, targets_NC, mask_NC)
        except ValueError as error:
            raise ValueError(f"model {name}: {error}") from None
        areas_2CK = area_replicates(resamples, logits_NC, targets_NC, mask_NC)
        areas.append(summarise_areas(areas_2CK, resamples, logits_NC, targets_NC, mask_NC, macro_columns, level))
        replicates.append(areas_2CK[0])
    both_CK = replicates[0] - replicates[1]
    found = []
    for column in range(logits_a_NC.shape[1]):
        keep_N = mask_NC[:, column].astype(bool)
        scores_a_N, targets_N = known(logits_a_NC[:, column], targets_NC[:, column], mask_NC[:, column])
        test = delong_test(scores_a_N, logits_b_NC[keep_N, column], targets_N)
        pair = (areas[0].auroc[column], areas[1].auroc[column])
        found.append(_difference(*pair, both_CK[column], resamples.num_patients_of(keep_N), test.p, level))
    columns = list(areas[0].macro_columns)
    num_patients = resamples.num_patients_of(np.any(mask_NC[:, columns], axis=1))
    macro_K = average_replicates(both_CK[columns])
    macro = _difference(areas[0].macro_auroc, areas[1].macro_auroc, macro_K, num_patients, None, level)
    return Comparison(tuple(found), macro, tuple(columns))


def _difference(
    a: Estimate,
    b: Estimate,
    difference_K: NDArray[np.float64],
    num_patients: int,
    p_delong: float | None,
    level: float,
) -> AreaDifference:
    value = None if a.value is None or b.value is None else a.value - b.value
    difference = estimate(value, a.reason or b.reason, difference_K, num_patients, level)
    p = None
    if difference.low is not None:
        defined_K = difference_K[~np.isnan(difference_K)]
        fewer = min(np.count_nonzero(defined_K <= 0), np.count_nonzero(defined_K >= 0))
        p = min(1.0, 2 * (int(fewer) + 1) / (len(defined_K) + 1))
    return AreaDifference(a.value, b.value, difference, p, p_delong)
