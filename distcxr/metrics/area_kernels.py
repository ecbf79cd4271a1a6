"""Compiled loops over bootstrap replicates: one pass over the samples serves 128 of them. They never hold the GIL.

Shape suffixes: P patients, L replicates of a block, M samples from the highest score to the lowest,
G groups of positives with equal scores, E entries, V sums.

A sample's weight in a replicate is how often its patient was drawn, so the weights of a block are one row of L
bytes per patient, and every step below is the same small operation on L neighbours: it vectorises, and no
replicate's sum depends on another's, on the machine's vector width or on the number of threads.

Importing this file imports numba and compiles (seconds, once per machine): so it is imported inside functions.
"""

from __future__ import annotations

import numpy as np
from numba import types
from numpy.typing import NDArray

from distcxr.compiled import compiled

BLOCK = 128  # a block of 2,797 patients is 358 KB: it stays in a core's own cache

_WEIGHTS_PL = types.Array(types.uint8, 2, "C", readonly=True)
_PATIENTS = types.Array(types.int32, 1, "C", readonly=True)
_BOUNDS = types.Array(types.int64, 2, "C", readonly=True)
_STARTS = types.Array(types.int64, 1, "C", readonly=True)
_VALUES = types.Array(types.float64, 1, "C", readonly=True)
_SUMS = types.Array(types.float64, 2, "C")
_BYTES = types.Array(types.uint8, 1, "C", readonly=True)
_CHOSEN = types.Array(types.int32, 1, "C")


@compiled(types.void(_WEIGHTS_PL, _PATIENTS, _BOUNDS, _SUMS))
def weighted_areas(
    weights_PL: NDArray[np.uint8],
    patient_M: NDArray[np.int32],
    bounds_G3: NDArray[np.int64],
    areas_2L: NDArray[np.float64],
) -> None:
    """AUROC and average precision of each replicate, NaN where it lacks a class.

    Samples are in the order of falling score. A row of `bounds_G3` is one distinct score that positives have: where its
    negatives begin, where its positives begin, where they end.

        score  .9   .8   .8   .8   .7   .6        false positives: those before, plus half of those level
        label   0    0    1    1    0    1        U = pairs - sum of that over the positives
                     |    |         |             exact: integers up to the last division
                   bounds of .8
    """
    true = np.zeros(BLOCK, dtype=np.int32)
    false = np.zeros(BLOCK, dtype=np.int32)
    false_above = np.zeros(BLOCK, dtype=np.int32)
    drawn = np.zeros(BLOCK, dtype=np.int32)
    doubled_loss = np.zeros(BLOCK, dtype=np.int64)
    precision = np.zeros(BLOCK, dtype=np.float64)
    at = 0
    for group in range(len(bounds_G3)):
        level, first, end = bounds_G3[group, 0], bounds_G3[group, 1], bounds_G3[group, 2]
        for sample in range(at, level):
            row = weights_PL[patient_M[sample]]
            for k in range(BLOCK):
                false[k] += row[k]
        false_above[:] = false
        for sample in range(level, first):
            row = weights_PL[patient_M[sample]]
            for k in range(BLOCK):
                false[k] += row[k]
        drawn[:] = 0
        for sample in range(first, end):
            row = weights_PL[patient_M[sample]]
            for k in range(BLOCK):
                drawn[k] += row[k]
        for k in range(BLOCK):
            true[k] += drawn[k]
            doubled_loss[k] += np.int64(drawn[k]) * np.int64(false_above[k] + false[k])
            called = max(true[k] + false[k], 1)
            precision[k] += np.float64(drawn[k]) * (np.float64(true[k]) / np.float64(called))
        at = end
    for sample in range(at, len(patient_M)):
        row = weights_PL[patient_M[sample]]
        for k in range(BLOCK):
            false[k] += row[k]
    for k in range(BLOCK):
        doubled_pairs = 2 * np.int64(true[k]) * np.int64(false[k])
        if doubled_pairs == 0:
            areas_2L[0, k] = np.nan
            areas_2L[1, k] = np.nan
        else:
            areas_2L[0, k] = np.float64(doubled_pairs - doubled_loss[k]) / np.float64(doubled_pairs)
            areas_2L[1, k] = precision[k] / np.float64(true[k])


@compiled(types.void(_WEIGHTS_PL, _PATIENTS, _VALUES, _STARTS, _SUMS))
def weighted_sums(
    weights_PL: NDArray[np.uint8],
    patient_E: NDArray[np.int32],
    value_E: NDArray[np.float64],
    start_V: NDArray[np.int64],
    sums_VL: NDArray[np.float64],
) -> None:
    """Sum v of a replicate: entries from `start_V[v]` to `start_V[v + 1]`, each value times its patient's weight.

    Added up in the order of the entries: BLAS would be as fast, but its last digit depends on its threads.
    `start_V` is one longer than the number of sums.
    """
    for v in range(len(start_V) - 1):
        sums = sums_VL[v]
        sums[:] = 0.0
        for entry in range(start_V[v], start_V[v + 1]):
            row = weights_PL[patient_E[entry]]
            value = value_E[entry]
            for k in range(BLOCK):
                sums[k] += value * np.float64(row[k])


@compiled(types.void(_WEIGHTS_PL, _PATIENTS, _BYTES, _BYTES, types.int64, types.float64, _CHOSEN))
def weighted_choice(
    weights_PL: NDArray[np.uint8],
    patient_M: NDArray[np.int32],
    targets_M: NDArray[np.uint8],
    ends_M: NDArray[np.uint8],
    kind: int,
    at: float,
    chosen_L: NDArray[np.int32],
) -> None:
    """The sample with the score that each replicate chooses as threshold; -1 where a class, or such a score, is absent.

    `kind`: 0 Youden, 1 the largest F1, 2 a recall of `at`, 3 a specificity of `at`, as `threshold.choose_threshold`
    chooses; `ends_M` is 1 at the last sample of every distinct score, 2 where a positive has that score: only there can
    rules 0 to 2 choose, which is what makes them cheap.
    """
    true = np.zeros(BLOCK, dtype=np.int32)
    false = np.zeros(BLOCK, dtype=np.int32)
    positive = np.zeros(BLOCK, dtype=np.int32)
    negative = np.zeros(BLOCK, dtype=np.int32)
    most = np.zeros(BLOCK, dtype=np.int32)  # false positives that a specificity of `at` allows
    before = np.zeros(BLOCK, dtype=np.int32)
    best = np.full(BLOCK, -np.inf)
    for sample in range(len(patient_M)):
        row = weights_PL[patient_M[sample]]
        sums = positive if targets_M[sample] else negative
        for k in range(BLOCK):
            sums[k] += row[k]
    for k in range(BLOCK):
        most[k] = np.int32((1 - at) * negative[k]) + 1
        while most[k] > 0 and (negative[k] - most[k]) / max(negative[k], 1) < at:
            most[k] -= 1
    chosen_L[:] = -1
    for sample in range(len(patient_M)):
        row = weights_PL[patient_M[sample]]
        sums = true if targets_M[sample] else false
        for k in range(BLOCK):
            sums[k] += row[k]
        if ends_M[sample] == 0 or (kind < 3 and ends_M[sample] == 1):
            continue
        if kind == 3:
            for k in range(BLOCK):
                called = true[k] + false[k]
                is_better = (false[k] <= most[k]) & (called != before[k])  # or this score was not drawn
                chosen_L[k] = sample if is_better else chosen_L[k]
                before[k] = called
            continue
        for k in range(BLOCK):
            called = true[k] + false[k]
            if kind == 0:
                value = np.float64(true[k]) * negative[k] - np.float64(false[k]) * positive[k]
            elif kind == 1:
                value = 2.0 * true[k] / max(called + positive[k], 1)
            else:
                value = 1.0 if best[k] < 1 and true[k] / max(positive[k], 1) >= at else -np.inf
            if value >= best[k] and called != before[k] and value > -np.inf:
                best[k] = value
                chosen_L[k] = sample
            before[k] = called
    for k in range(BLOCK):
        if positive[k] == 0 or negative[k] == 0:
            chosen_L[k] = -1
