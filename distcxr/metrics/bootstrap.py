"""Bootstrap by patient: each replicate draws patients with replacement, and a patient brings all images.

Shape suffixes: N samples, C findings, P patients, K replicates, L replicates of a block, G groups of positives with
equal scores, M samples with a known label (from the highest score to the lowest, where ranked), E entries, V sums.

Nothing is drawn sample by sample. A replicate is a weight per patient, how often it was drawn, and every figure is a
weighted sum: rank a finding once, then walk the ranks with the weights of 128 replicates at a time. All figures of
one `PatientResamples` are of the same draws, so they may be averaged, subtracted and compared draw by draw.

    patient      a a a b b c
    replicate 0  1 1 1 2 2 0      drew a, b, b
    replicate 1  0 0 0 1 1 2      drew c, b, c
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distcxr.metrics.scored import Known, Scored

_MAX_KEPT_BYTES = 2**28  # weights are kept up to here; those beyond are drawn again for each figure
_PATIENT_BITS = 31

Entries = tuple[NDArray[np.int32], NDArray[np.float64], NDArray[np.int64]]


class PatientResamples:
    """The draws of a patient-level bootstrap, made once and shared by every figure of a split.

    Args: the number of patients; the number of replicates; a seed from 0 to 2**64 - 1; the most threads that share the
    findings (default: this process's cores, at most 4; no figure depends on it).
    Replicate k is a function of (seed, k, number of patients) alone: Philox with the key (seed, k); its raw bits
    numpy promises not to change. Patients count in ascending order of their ids.
    Raises ValueError for fewer than 2 replicates, or a seed out of range.
    """

    def __init__(self, num_patients: int, replicates: int = 1000, seed: int = 0, threads: int | None = None) -> None:
        if replicates < 2:
            raise ValueError(f"bootstrap replicates: {replicates} make no interval; 1000 are usual")
        if not 0 <= seed < 2**64:
            raise ValueError(f"the bootstrap's seed must be from 0 to 2**64 - 1, got {seed}")
        self.num_patients = num_patients
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
        """The replicates of a block and their weights, uint8 `[P, L]`; those past the last replicate are 0."""
        from distcxr.metrics.area_kernels import BLOCK

        for number, start in enumerate(range(0, self.num_replicates, BLOCK)):
            block = slice(start, min(start + BLOCK, self.num_replicates))
            if number < len(self._kept):
                yield block, self._kept[number]
                continue
            weights_LP = np.zeros((BLOCK, self.num_patients), dtype=np.uint8)
            for replicate in range(block.start, block.stop):
                drawn_P = self.weights(replicate)
                assert drawn_P.max(initial=0) <= 255, "one patient's weight fills a byte"
                weights_LP[replicate - start] = drawn_P
            weights_PL = np.ascontiguousarray(weights_LP.T)
            if (number + 1) * weights_PL.nbytes <= _MAX_KEPT_BYTES:
                self._kept.append(weights_PL)
            yield block, weights_PL


def area_replicates(resamples: PatientResamples, scored: Scored) -> NDArray[np.float64]:
    """Exact AUROC (0) and average precision (1) of each replicate, `[2, C, K]`; ties count as in `ranking`.

    NaN where a replicate lacks a class. Raises ValueError for draws of another number of patients.
    """
    from distcxr.metrics.area_kernels import weighted_areas

    with ThreadPoolExecutor(resamples.threads) as pool:
        ranked = list(pool.map(_rank, scored.known))
    return np.stack(_replicates(resamples, scored, weighted_areas, ranked, [2] * len(ranked)), axis=1)


def sum_replicates(
    resamples: PatientResamples, scored: Scored, entries_C: Sequence[Entries]
) -> list[NDArray[np.float64]]:
    """Weighted sums of each replicate, `[V, K]` for each of C sets of entries made by `entries_by_patient`.

    Raises ValueError for draws of another number of patients.
    """
    from distcxr.metrics.area_kernels import weighted_sums

    num_sums = [len(start_V) - 1 for _, _, start_V in entries_C]
    return _replicates(resamples, scored, weighted_sums, entries_C, num_sums)


def entries_by_patient(
    patient_M: NDArray[np.int32], sum_M: NDArray[np.int64], value_M: NDArray[np.float64], num_sums: int
) -> Entries:
    """What each patient adds to each sum: value m of patient m goes to sum `sum_M[m]`, of `num_sums`.

    Returns patient and value `[E]`, ordered by sum and patient, and where each sum begins `[V + 1]`.
    """
    num_patients = int(patient_M.max(initial=-1)) + 1
    unique_E, entry_M = np.unique(sum_M.astype(np.int64) * max(num_patients, 1) + patient_M, return_inverse=True)
    sum_E, patient_E = np.divmod(unique_E, max(num_patients, 1))
    value_E: NDArray[np.float64] = np.bincount(entry_M, weights=value_M, minlength=len(unique_E)).astype(np.float64)
    return patient_E.astype(np.int32), value_E, np.searchsorted(sum_E, np.arange(num_sums + 1)).astype(np.int64)


def _replicates(
    resamples: PatientResamples, scored: Scored, kernel: Callable[..., None], inputs_C: Sequence[tuple[Any, ...]],
    num_rows_C: Sequence[int],
) -> list[NDArray[np.float64]]:  # fmt: skip
    """What a kernel makes of each of C inputs: as many rows as are given, `[V, K]`; the threads share the inputs."""
    if resamples.num_patients != scored.num_patients:
        raise ValueError(f"the draws are of {resamples.num_patients} patients, but {scored.num_patients} were scored")
    figures_CVK = [np.empty((num_rows, resamples.num_replicates)) for num_rows in num_rows_C]
    with ThreadPoolExecutor(resamples.threads) as pool:
        for block, weights_PL in resamples.blocks():

            def work(column: int, block: slice = block, weights_PL: NDArray[np.uint8] = weights_PL) -> None:
                figures_VL = np.empty((num_rows_C[column], weights_PL.shape[1]))
                kernel(weights_PL, *inputs_C[column], figures_VL)
                figures_CVK[column][:, block] = figures_VL[:, : block.stop - block.start]

            list(pool.map(work, range(len(inputs_C))))
    return figures_CVK


def _rank(known: Known) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Patients `[M]` from the highest score to the lowest, and the groups' bounds `[G, 3]`, as the kernel wants them.

    One sort by value of 64 bits: a code that falls as the score rises, the label, the patient.
    """
    bits_M = (known.scores_M + np.float32(0)).view(np.uint32)  # -0.0 becomes 0.0
    rising_M = (~bits_M).view(np.int32) >> np.int32(31)
    code_M = bits_M ^ (rising_M.view(np.uint32) & np.uint32(0x7FFFFFFF))
    keys_M = code_M.astype(np.uint64) << np.uint64(32)
    keys_M |= known.targets_M.astype(np.uint64) << np.uint64(_PATIENT_BITS)
    keys_M |= known.patient_M.astype(np.uint64)
    keys_M.sort()
    patient_M = (keys_M & np.uint64(2**_PATIENT_BITS - 1)).astype(np.int32)
    keys_M >>= np.uint64(_PATIENT_BITS)
    positions = np.flatnonzero(keys_M & np.uint64(1))
    key = keys_M[positions]
    starts = np.flatnonzero(np.concatenate(([True], key[1:] != key[:-1]))) if len(positions) else positions
    first_G = positions[starts]
    level_G = keys_M.searchsorted(key[starts] - np.uint64(1))
    end_G = first_G + np.diff(starts, append=len(positions))
    return patient_M, np.stack((level_G, first_G, end_G), axis=1).astype(np.int64)
