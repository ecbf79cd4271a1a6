"""Intervals that know patients: each replicate draws patients with replacement, and a patient brings all images.

Shape suffixes: N samples, C findings, P patients, K replicates, L replicates of a block, G groups of positives with
equal scores, M samples with a known label (from the highest score to the lowest, where ranked), E entries, V sums.

Nothing is drawn sample by sample. A replicate is a weight per patient, how often it was drawn, and every figure is a
weighted sum: rank a finding once, then walk the ranks with the weights of 128 replicates at a time. All figures of
one `PatientResamples` stand on the same draws, so they may be averaged, subtracted and compared draw by draw.

    patient      a a a b b c
    replicate 0  1 1 1 2 2 0      drew a, b, b
    replicate 1  0 0 0 1 1 2      drew c, b, c
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distcxr.metrics.estimate import Estimate, absent_class, average, average_replicates, estimate
from distcxr.metrics.ranking import check_arrays, known, rank_positives

_MAX_KEPT_BYTES = 2**28  # weights are kept up to here; those beyond are drawn again for each figure
_PATIENT_BITS = 31

Labels = NDArray[np.uint8]
Entries = tuple[NDArray[np.int32], NDArray[np.float64], NDArray[np.int64]]


@dataclass(frozen=True)
class Areas:
    """AUROC and average precision, a finding each, and the averages over `macro_columns`."""

    auroc: tuple[Estimate, ...]
    auprc: tuple[Estimate, ...]
    macro_auroc: Estimate
    macro_auprc: Estimate
    macro_columns: tuple[int, ...]
    """The columns averaged: those asked for, less those where a class is absent."""


class PatientResamples:
    """The draws of a patient-level bootstrap over N samples, made once and shared by every figure.

    Args: patient ids, integers `[N]`; the number of replicates; a seed from 0 to 2**64 - 1; the most threads that
    share the findings (default: this process's cores, at most 4; no figure depends on it).
    Replicate k is a function of (seed, k, number of patients) alone: Philox with the key (seed, k), whose raw bits
    numpy promises not to change. Patients count in ascending order of their ids.
    Raises ValueError for ids of another kind, fewer than 2 replicates, or a seed out of range.
    """

    def __init__(
        self, patient_id: NDArray[np.int64], replicates: int = 1000, seed: int = 0, threads: int | None = None
    ) -> None:
        if patient_id.ndim != 1 or patient_id.dtype.kind not in "iu":
            raise ValueError(f"patient ids must be integers [N], got {patient_id.dtype} {patient_id.shape}")
        if replicates < 2:
            raise ValueError(f"bootstrap replicates: {replicates} make no interval; 1000 are usual")
        if not 0 <= seed < 2**64:
            raise ValueError(f"the bootstrap's seed must be from 0 to 2**64 - 1, got {seed}")
        ids_P, row_N = np.unique(patient_id, return_inverse=True)
        self.patient_N: NDArray[np.int32] = row_N.astype(np.int32)
        self.num_patients = len(ids_P)
        self.num_replicates = replicates
        self.seed = seed
        self.threads = threads or min(4, len(os.sched_getaffinity(0)))
        self._kept: list[NDArray[np.uint8]] = []

    def weights(self, replicate: int) -> NDArray[np.int64]:
        """How often each patient was drawn, int64 `[P]`; they sum to P."""
        bits_P = np.random.Philox(key=np.array([self.seed, replicate], dtype=np.uint64)).random_raw(self.num_patients)
        drawn_P = ((bits_P >> np.uint64(11)) * (self.num_patients * 2.0**-53)).astype(np.int64)
        return np.bincount(drawn_P, minlength=self.num_patients)

    def blocks(self) -> Iterator[tuple[slice, NDArray[np.uint8]]]:
        """The replicates of a block and their weights, uint8 `[P, L]`; lanes past the last replicate are 0."""
        from distcxr.metrics.kernels import LANES

        for number, start in enumerate(range(0, self.num_replicates, LANES)):
            lanes = slice(start, min(start + LANES, self.num_replicates))
            if number < len(self._kept):
                yield lanes, self._kept[number]
                continue
            weights_LP = np.zeros((LANES, self.num_patients), dtype=np.uint8)
            for replicate in range(lanes.start, lanes.stop):
                drawn_P = self.weights(replicate)
                assert drawn_P.max(initial=0) <= 255, "one patient's weight fills a byte"
                weights_LP[replicate - start] = drawn_P
            weights_PL = np.ascontiguousarray(weights_LP.T)
            if (number + 1) * weights_PL.nbytes <= _MAX_KEPT_BYTES:
                self._kept.append(weights_PL)
            yield lanes, weights_PL

    def num_patients_of(self, keep_N: NDArray[Any]) -> int:
        """Patients among the samples whose entry in `[N]` is not 0."""
        return int(np.count_nonzero(np.bincount(self.patient_N[keep_N.astype(bool)], minlength=1)))


def area_estimates(
    resamples: PatientResamples,
    logits_NC: NDArray[np.float32],
    targets_NC: Labels,
    mask_NC: Labels,
    macro_columns: Sequence[int] | None = None,
    level: float = 0.95,
) -> Areas:
    """AUROC and average precision with intervals, for each finding and on average.

    Args: raw float32 logits, uint8 targets and mask (1 = label known), all `[N, C]`; the columns to average (all
    by default); the intervals' level. Intervals run between percentiles of the replicates.
    A replicate's average is that of the averaged findings it defines. To leave a finding out whose logits are not
    finite, set its mask to 0.
    Raises ValueError as `ranking.check_arrays` does, for columns that are not there or repeat.
    """
    areas_2CK = area_replicates(resamples, logits_NC, targets_NC, mask_NC)
    return summarise_areas(areas_2CK, resamples, logits_NC, targets_NC, mask_NC, macro_columns, level)


def summarise_areas(
    areas_2CK: NDArray[np.float64],
    resamples: PatientResamples,
    logits_NC: NDArray[np.float32],
    targets_NC: Labels,
    mask_NC: Labels,
    macro_columns: Sequence[int] | None = None,
    level: float = 0.95,
) -> Areas:
    """`area_estimates` from replicates that are at hand."""
    columns = list(range(logits_NC.shape[1]) if macro_columns is None else macro_columns)
    if any(not 0 <= column < logits_NC.shape[1] for column in columns):
        raise ValueError(f"macro columns {columns} are not all among the {logits_NC.shape[1]} findings")
    if len(set(columns)) < len(columns):
        raise ValueError(f"macro columns repeat a finding: {columns}")
    estimates: tuple[list[Estimate], list[Estimate]] = ([], [])
    for column in range(logits_NC.shape[1]):
        scores_N, targets_N = known(logits_NC[:, column], targets_NC[:, column], mask_NC[:, column])
        reason = absent_class(targets_N)
        ranks = None if reason else rank_positives(scores_N, targets_N)
        num_patients = resamples.num_patients_of(mask_NC[:, column])
        for index, value in enumerate((ranks.auroc(), ranks.auprc()) if ranks else (None, None)):
            estimates[index].append(estimate(value, reason, areas_2CK[index, column], num_patients, level))
    averaged = [column for column in columns if estimates[0][column].value is not None]
    num_patients = resamples.num_patients_of(np.any(mask_NC[:, averaged], axis=1))
    macros = []
    for index in (0, 1):
        value, reason = average([estimates[index][column].value for column in columns])
        macro_K = average_replicates(areas_2CK[index, averaged])
        macros.append(estimate(value, reason, macro_K, num_patients, level))
    return Areas(tuple(estimates[0]), tuple(estimates[1]), macros[0], macros[1], tuple(averaged))


def area_replicates(
    resamples: PatientResamples, logits_NC: NDArray[np.float32], targets_NC: Labels, mask_NC: Labels
) -> NDArray[np.float64]:
    """Exact AUROC (0) and average precision (1) of each replicate, `[2, C, K]`; ties count as in `ranking`.

    NaN where a replicate lacks a class. Errors as for `area_estimates`.
    """
    from distcxr.metrics.kernels import LANES, weighted_areas

    check(resamples, logits_NC, targets_NC, mask_NC)
    areas_2CK = np.empty((2, logits_NC.shape[1], resamples.num_replicates))
    columns = range(logits_NC.shape[1])
    with ThreadPoolExecutor(resamples.threads) as pool:
        ranked = list(
            pool.map(
                lambda c: _rank(logits_NC[:, c], targets_NC[:, c], mask_NC[:, c].astype(bool), resamples.patient_N),
                columns,
            )
        )
        for lanes, weights_PL in resamples.blocks():

            def walk(column: int, lanes: slice = lanes, weights_PL: NDArray[np.uint8] = weights_PL) -> None:
                areas_2L = np.empty((2, LANES))
                weighted_areas(weights_PL, *ranked[column], areas_2L)
                areas_2CK[:, column, lanes] = areas_2L[:, : lanes.stop - lanes.start]

            list(pool.map(walk, columns))
    return areas_2CK


def sum_replicates(resamples: PatientResamples, entries_C: Sequence[Entries]) -> list[NDArray[np.float64]]:
    """Weighted sums of each replicate, `[V, K]` for each of C sets of entries made by `entries_by_patient`."""
    from distcxr.metrics.kernels import LANES, weighted_sums

    sums_CVK = [np.empty((len(start_V) - 1, resamples.num_replicates)) for _, _, start_V in entries_C]
    with ThreadPoolExecutor(resamples.threads) as pool:
        for lanes, weights_PL in resamples.blocks():

            def add_up(column: int, lanes: slice = lanes, weights_PL: NDArray[np.uint8] = weights_PL) -> None:
                sums_VL = np.empty((len(sums_CVK[column]), LANES))
                weighted_sums(weights_PL, *entries_C[column], sums_VL)
                sums_CVK[column][:, lanes] = sums_VL[:, : lanes.stop - lanes.start]

            list(pool.map(add_up, range(len(entries_C))))
    return sums_CVK


def entries_by_patient(
    patient_M: NDArray[np.int32], sum_M: NDArray[np.int64], value_M: NDArray[np.float64], num_sums: int
) -> Entries:
    """What each patient adds to each sum: value m of patient m goes to sum `sum_M[m]`, of `num_sums`.

    Returns patient and value `[E]`, ordered by sum and patient, and where each sum begins `[V + 1]`.
    """
    num_patients = int(patient_M.max(initial=-1)) + 1
    place_E, place_M = np.unique(sum_M.astype(np.int64) * max(num_patients, 1) + patient_M, return_inverse=True)
    sum_E, patient_E = np.divmod(place_E, max(num_patients, 1))
    value_E: NDArray[np.float64] = np.bincount(place_M, weights=value_M, minlength=len(place_E)).astype(np.float64)
    return patient_E.astype(np.int32), value_E, np.searchsorted(sum_E, np.arange(num_sums + 1)).astype(np.int64)


def check(
    resamples: PatientResamples,
    logits_NC: NDArray[np.floating[Any]],
    targets_NC: Labels,
    mask_NC: Labels,
    *,
    double: bool = False,
) -> None:
    """`ranking.check_arrays`, and that the resamples are of as many samples."""
    check_arrays(logits_NC, targets_NC, mask_NC, double=double)
    if len(resamples.patient_N) != len(logits_NC):
        raise ValueError(f"{len(resamples.patient_N)} patient ids, but {len(logits_NC)} rows of logits")


def _rank(
    scores_N: NDArray[np.float32], targets_N: Labels, keep_N: NDArray[np.bool_], patient_N: NDArray[np.int32]
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Patients `[M]` from the highest score to the lowest, and the groups' bounds `[G, 3]`, as the kernel wants them.

    One sort by value of 64 bits: a code that falls as the score rises, the label, the patient.
    """
    bits_M = (scores_N[keep_N] + np.float32(0)).view(np.uint32)  # -0.0 becomes 0.0
    rising_M = (~bits_M).view(np.int32) >> np.int32(31)
    code_M = bits_M ^ (rising_M.view(np.uint32) & np.uint32(0x7FFFFFFF))
    keys_M = code_M.astype(np.uint64) << np.uint64(32)
    keys_M |= targets_N[keep_N].astype(np.uint64) << np.uint64(_PATIENT_BITS)
    keys_M |= patient_N[keep_N].astype(np.uint64)
    keys_M.sort()
    patient_M = (keys_M & np.uint64(2**_PATIENT_BITS - 1)).astype(np.int32)
    keys_M >>= np.uint64(_PATIENT_BITS)
    place = np.flatnonzero(keys_M & np.uint64(1))
    key = keys_M[place]
    starts = np.flatnonzero(np.concatenate(([True], key[1:] != key[:-1]))) if len(place) else place
    first_G = place[starts]
    level_G = keys_M.searchsorted(key[starts] - np.uint64(1))
    end_G = first_G + np.diff(starts, append=len(place))
    return patient_M, np.stack((level_G, first_G, end_G), axis=1).astype(np.int64)
