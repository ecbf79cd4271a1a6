"""Is the AUROC of one model that of another? DeLong's test by patient: images of one patient count as dependent.

Shape suffixes: P positives, Q negatives, K patients.

Obuchowski's variance: placements (see `delong`) are summed within each patient first, and what a patient's positives
and negatives have in common is in it. Where every image is a patient of its own, it is DeLong's. Nancy Obuchowski,
Biometrics 53 (1997), 567-578. Student's t takes the place of the normal distribution, which raises too many false
alarms with few positive patients; `benchmarks/inference.py` counts them.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from distcxr.metrics.degrees import degrees_of_freedom
from distcxr.metrics.delong import placements
from distcxr.metrics.scored import Known
from distcxr.metrics.student import two_sided_p


def paired_p_value(a: Known, b: Known) -> float | None:
    """Two-sided; both scored the same samples, and the test takes their correlation in.

    Models that rank every pair the same have p 1. None where a class is absent or of fewer patients than
    `degrees.MIN_PATIENTS`, and where the variance of the difference is 0 though there is one.
    """
    degrees, _ = degrees_of_freedom(a)
    if degrees is None or a.ranks is None or b.ranks is None:
        return None
    is_positive_M = a.targets_M.astype(bool)
    (a_P, a_Q), (b_P, b_Q) = placements(a), placements(b)
    variance = _variance(a_P - b_P, a_Q - b_Q, a.patient_M[is_positive_M], a.patient_M[~is_positive_M])
    difference = a.ranks.auroc() - b.ranks.auroc()
    if variance <= 0:
        return 1.0 if difference == 0 else None
    return two_sided_p(difference / math.sqrt(variance), degrees)


def _variance(
    half_pairs_P: NDArray[np.int64],
    half_pairs_Q: NDArray[np.int64],
    patient_P: NDArray[np.int32],
    patient_Q: NDArray[np.int32],
) -> float:
    """Of two areas' difference, from the differences of their placements; each class is of two patients or more."""
    num_ids = int(max(patient_P.max(), patient_Q.max())) + 1
    num_positive, num_negative = len(patient_P), len(patient_Q)
    scale = 2.0 * num_positive * num_negative
    mean = half_pairs_P.sum() / scale
    sums, present = [], []
    for half_pairs, patient, others in (
        (half_pairs_P, patient_P, num_negative),
        (half_pairs_Q, patient_Q, num_positive),
    ):
        counts_K = np.bincount(patient, minlength=num_ids)
        total_K = np.bincount(patient, weights=half_pairs, minlength=num_ids) / (2 * others)
        sums.append((total_K - counts_K * mean) / len(patient))
        present.append(counts_K > 0)
    num_with = [int(np.count_nonzero(inside_K)) for inside_K in present]
    num_patients = int(np.count_nonzero(present[0] | present[1]))
    (by_P, by_Q), (with_P, with_Q) = sums, num_with
    own = float(by_P @ by_P) * with_P / (with_P - 1) + float(by_Q @ by_Q) * with_Q / (with_Q - 1)
    return own + 2 * float(by_P @ by_Q) * num_patients / (num_patients - 1)
