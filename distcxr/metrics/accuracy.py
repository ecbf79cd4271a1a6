"""Accuracy, where classes exclude each other: the share of samples for which the likeliest class is right.

Shape suffixes: N samples, C classes, M samples with all labels known, K replicates.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from distcxr.metrics.bootstrap import PatientResamples, entries_by_patient, sum_replicates
from distcxr.metrics.degrees import MIN_PATIENTS
from distcxr.metrics.estimate import Estimate
from distcxr.metrics.paired_tests import PairedDifference, paired_difference
from distcxr.metrics.scored import Floats, Scored, count_patients


def is_exclusive(targets_NC: NDArray[np.uint8], mask_NC: NDArray[np.uint8]) -> bool:
    """Whether every sample with all labels known shows exactly one of two classes or more."""
    known_N = mask_NC.all(axis=1)
    return targets_NC.shape[1] > 1 and bool(known_N.any()) and bool((targets_NC[known_N].sum(axis=1) == 1).all())


def right_N(scores_NC: Floats, targets_NC: NDArray[np.uint8], mask_NC: NDArray[np.uint8]) -> NDArray[np.float64] | None:
    """1 where the likeliest class is right, 0 where it is not, NaN without all labels; None where no sample has them,
    or a known sample's scores are not finite."""
    known_N = mask_NC.all(axis=1)
    if not known_N.any() or not np.isfinite(scores_NC[known_N]).all():
        return None
    return np.where(known_N, scores_NC.argmax(axis=1) == targets_NC.argmax(axis=1), np.nan)


def accuracy(scores_NC: Floats, targets_NC: NDArray[np.uint8], mask_NC: NDArray[np.uint8]) -> float | None:
    """Of logits or probabilities; None where `right_N` is."""
    found_N = right_N(scores_NC, targets_NC, mask_NC)
    return None if found_N is None else float(np.nanmean(found_N))


def accuracy_difference(
    resamples: PatientResamples, scored: Scored, a_N: NDArray[np.float64], b_N: NDArray[np.float64]
) -> PairedDifference:
    """Model a's accuracy less b's on the same samples and the same draws of the patients.

    Args:
        scored: any figures of these samples, for their patients.
        a_N, b_N: of both models, from `right_N`.
    """
    known_N = ~np.isnan(a_N)
    patient_M, a_M, b_M = scored.patient_N[known_N], a_N[known_N], b_N[known_N]
    num = len(patient_M)
    entries = entries_by_patient(
        np.tile(patient_M, 2), np.repeat([0, 1], num), np.concatenate((a_M - b_M, np.ones(num))), 2
    )
    (sums_2K,) = sum_replicates(resamples, scored, [entries])
    with np.errstate(invalid="ignore"):
        difference_K = sums_2K[0] / sums_2K[1]
    values = [Estimate(float(one_M.mean()), None, None, None) for one_M in (a_M, b_M)]
    patients = count_patients(patient_M)
    too_few = f"{patients} patients: nothing holds with fewer than {MIN_PATIENTS}" if patients < MIN_PATIENTS else None
    return paired_difference(values[0], values[1], difference_K, patients, (None, too_few))
