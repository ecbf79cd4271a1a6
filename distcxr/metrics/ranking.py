"""Exact AUROC and average precision from raw float32 logits.

Shape suffixes: N samples, C findings, P positives, G groups of positives with equal scores, B bad rows.

Rank logits, never float32 probabilities: a float32 sigmoid rounds everything above about 17 to 1.0 and so
makes ties that the model did not.

How: every score becomes an unsigned integer of the same order with the label in its lowest bit, and the
integers are sorted by value. Nothing is permuted (an argsort costs about five times as much), and afterwards
a positive's place in the sorted array, less the positives before it, is the number of negatives it beats or
ties with.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

_INFINITY_BITS = 0x7F800000
_MAGNITUDE_BITS = 0x7FFFFFFF
_NUM_ROWS_SHOWN = 5

_Float = TypeVar("_Float", bound=np.floating[Any])


@dataclass(frozen=True)
class PositiveRanks:
    """Where one finding's positives stand among its negatives: all that AUROC and average precision need.

    Arrays are int64 `[G]`, one entry per distinct score that at least one positive has, lowest score first.
    `size_G` positives have that score, `positives_below_G` a lower one; `negatives_below_G` negatives have a
    lower score and `negatives_tied_G` the same one.
    """

    num_positive: int
    num_negative: int
    size_G: NDArray[np.int64]
    positives_below_G: NDArray[np.int64]
    negatives_below_G: NDArray[np.int64]
    negatives_tied_G: NDArray[np.int64]

    def auroc(self) -> float:
        """Mann-Whitney U with mid-ranks over its maximum; integers up to the one division."""
        doubled_u = int(np.dot(self.size_G, 2 * self.negatives_below_G + self.negatives_tied_G))
        return doubled_u / (2 * self.num_positive * self.num_negative)

    def auprc(self) -> float:
        """Average precision: the precision at each distinct threshold, weighted by the recall it adds.

        Thresholds that only negatives have add no recall, so the groups of positives are enough. No
        interpolation; the definition is that of `sklearn.metrics.average_precision_score`.
        """
        positives_at_G = self.num_positive - self.positives_below_G
        negatives_at_G = self.num_negative - self.negatives_below_G
        precision_G = positives_at_G / (positives_at_G + negatives_at_G)
        # Not np.dot: the last digit of BLAS depends on its threads.
        return float((self.size_G * precision_G).sum()) / self.num_positive


def auroc(scores_N: NDArray[np.float32], targets_N: NDArray[np.uint8]) -> float:
    """Exact area under the ROC curve; a tied pair counts one half. Errors as for `rank_positives`."""
    return rank_positives(scores_N, targets_N).auroc()


def auprc(scores_N: NDArray[np.float32], targets_N: NDArray[np.uint8]) -> float:
    """Average precision, ties included. Errors as for `rank_positives`."""
    return rank_positives(scores_N, targets_N).auprc()


def auroc_per_finding(
    logits_NC: NDArray[np.float32], targets_NC: NDArray[np.uint8], mask_NC: NDArray[np.uint8]
) -> list[float | None]:
    """Exact AUROC of each column over its known labels (mask 1); None where a class is absent.

    Raises ValueError for shapes that differ and as `rank_positives` does for values.
    """
    if not logits_NC.ndim == 2 or not logits_NC.shape == targets_NC.shape == mask_NC.shape:
        shapes = f"logits {logits_NC.shape}, targets {targets_NC.shape}, mask {mask_NC.shape}"
        raise ValueError(f"{shapes} must share one [N, C]")
    areas: list[float | None] = []
    for column in range(logits_NC.shape[1]):
        scores_N, targets_N = known(logits_NC[:, column], targets_NC[:, column], mask_NC[:, column])
        num_positive = np.count_nonzero(targets_N)
        areas.append(auroc(scores_N, targets_N) if 0 < num_positive < len(targets_N) else None)
    return areas


def dense_ranks(scores_NC: NDArray[np.float64]) -> tuple[NDArray[np.float32], list[NDArray[np.float64]]]:
    """Float64 scores as float32 numbers of the same order: two scores of a column tie if, and only if, they are equal.

    A cast would round neighbours to ties. Each score becomes its place among the distinct finite scores of its
    column, from 0; what is not finite becomes NaN.
    Returns the places `[N, C]`, and each column's distinct scores in rising order.
    Raises ValueError for more than 2**24 distinct scores, which float32 can't count.
    """
    ranks_NC = np.full(scores_NC.shape, np.nan, dtype=np.float32)
    levels = []
    for column in range(scores_NC.shape[1]):
        finite_N = np.isfinite(scores_NC[:, column])
        level, place = np.unique(scores_NC[finite_N, column], return_inverse=True)
        if len(level) > 2**24:
            raise ValueError(f"column {column} holds {len(level):,} distinct scores; at most {2**24:,} can be ranked")
        ranks_NC[finite_N, column] = place
        levels.append(level)
    return ranks_NC, levels


def check_arrays(
    logits_NC: NDArray[np.floating[Any]],
    targets_NC: NDArray[np.uint8],
    mask_NC: NDArray[np.uint8],
    *,
    double: bool = False,
) -> None:
    """Refuse what no figure could be made of; what stands under an unknown label (mask 0) may be anything.

    Raises ValueError for shapes that differ, logits that are not float32 (nor float64, where `double` allows it: what
    sorts bit patterns needs float32, what computes does not), targets or mask that are not uint8 or bool, a mask
    other than 0 and 1, a known target other than 0 and 1, and a known label's logit that is NaN or infinite; the
    last three name rows, counted from 0.
    """
    if logits_NC.ndim != 2 or not logits_NC.shape == targets_NC.shape == mask_NC.shape:
        shapes = f"logits {logits_NC.shape}, targets {targets_NC.shape}, mask {mask_NC.shape}"
        raise ValueError(f"{shapes} must share one [N, C]")
    if logits_NC.dtype != np.float32 and not (double and logits_NC.dtype == np.float64):
        raise ValueError(f"logits must be float32, got {logits_NC.dtype}")
    for name, labels_NC in (("targets", targets_NC), ("mask", mask_NC)):
        if labels_NC.dtype not in (np.uint8, np.bool_):
            raise ValueError(f"{name} must be uint8 or bool, got {labels_NC.dtype}")
    known_NC = mask_NC.astype(bool)
    for bad_NC, what in (
        (mask_NC.astype(np.uint8) > 1, "mask other than 0 and 1"),
        ((targets_NC.astype(np.uint8) > 1) & known_NC, "targets other than 0 and 1 where the mask is 1"),
        (~np.isfinite(logits_NC) & known_NC, "logits that are NaN or infinite"),
    ):
        if bad_NC.any():
            row_B = np.flatnonzero(bad_NC.any(axis=1))
            shown = ", ".join(map(str, row_B[:_NUM_ROWS_SHOWN])) + (", ..." if len(row_B) > _NUM_ROWS_SHOWN else "")
            raise ValueError(f"{what} in {len(row_B)} of {len(bad_NC)} rows: {shown}")


def known(
    scores_N: NDArray[_Float], targets_N: NDArray[np.uint8], mask_N: NDArray[np.uint8]
) -> tuple[NDArray[_Float], NDArray[np.uint8]]:
    """The scores and targets whose label is known (mask 1), contiguous; not copied more often than needed."""
    if mask_N.all():
        return np.ascontiguousarray(scores_N), np.ascontiguousarray(targets_N)
    keep_N = mask_N.astype(bool)
    return scores_N[keep_N], targets_N[keep_N]


def rank_positives(scores_N: NDArray[np.float32], targets_N: NDArray[np.uint8]) -> PositiveRanks:
    """Count the negatives below and level with each positive score.

    Args: scores float32 `[N]`, any finite values; targets `[N]` uint8 or bool, 0 or 1.
    Raises ValueError for another dtype or shape, a score that is not finite, a target other than 0 and 1, and
    when positives or negatives are absent (the areas are then undefined; a number here would be averaged by
    someone).
    """
    keys_N = _sorted_keys(scores_N, targets_N)
    place_P = np.flatnonzero(keys_N & keys_N.dtype.type(1))
    num_positive, num_negative = len(place_P), len(keys_N) - len(place_P)
    if num_positive == 0 or num_negative == 0:
        absent = "positives" if num_positive == 0 else "negatives"
        raise ValueError(f"no {absent} among {len(keys_N)} samples: the ranking metrics are undefined")

    key_P = keys_N[place_P]
    first_G = np.flatnonzero(np.concatenate(([True], key_P[1:] != key_P[:-1])))
    place_G, key_G = place_P[first_G], key_P[first_G]
    # A group's negatives stand directly before its positives, their key one less. Place 0 looks at the last
    # key, which is no smaller than its own, so it never counts as tied.
    tied_G = keys_N[place_G - 1] == key_G - 1
    start_G = place_G.copy()
    start_G[tied_G] = keys_N.searchsorted(key_G[tied_G] - 1)
    return PositiveRanks(
        num_positive=num_positive,
        num_negative=num_negative,
        size_G=np.diff(first_G, append=num_positive),
        positives_below_G=first_G,
        negatives_below_G=start_G - first_G,
        negatives_tied_G=place_G - start_G,
    )


def _sorted_keys(scores_N: NDArray[np.float32], targets_N: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Sorted integers: twice the score's rank-preserving code, plus the target.

    Float magnitudes order like their bit patterns. Patterns are counted from just below the smallest non-zero
    one, so that the code and the label fit 32 bits (which sort in half the time of 64) for any scores whose
    largest and smallest non-zero magnitudes are less than a factor 2**128 apart; beyond that the keys are 64
    bits wide.
    """
    if scores_N.ndim != 1 or scores_N.shape != targets_N.shape:
        raise ValueError(f"scores {scores_N.shape} and targets {targets_N.shape} must share one [N]")
    if scores_N.dtype != np.float32:
        raise ValueError(f"scores must be the raw float32 logits, got {scores_N.dtype}")
    if targets_N.dtype not in (np.uint8, np.bool_):
        raise ValueError(f"targets must be uint8 or bool, got {targets_N.dtype}")
    if len(scores_N) == 0:
        return np.zeros(0, dtype=np.uint64)
    if targets_N.max() > 1:
        raise ValueError(f"targets must be 0 or 1, got {targets_N.max()}; mask unknown labels out first")

    bits_N = np.ascontiguousarray(scores_N).view(np.int32)
    code_N = bits_N & np.int32(_MAGNITUDE_BITS)
    largest = int(code_N.max())
    if largest >= _INFINITY_BITS:
        num_bad = np.count_nonzero(code_N >= _INFINITY_BITS)
        raise ValueError(f"{num_bad} of {len(scores_N)} scores are not finite")
    # Unsigned, 0 - 1 is the largest number there is, so zeros do not decide the minimum.
    below_smallest = min(int((code_N.view(np.uint32) - np.uint32(1)).min()), largest)
    np.maximum(code_N, np.int32(below_smallest), out=code_N)
    code_N -= np.int32(below_smallest)
    span = largest - below_smallest
    # Two's complement negation where the sign bit is set; 0.0 and -0.0 both become 0, and so tie.
    sign_N = bits_N >> np.int32(31)
    code_N ^= sign_N
    code_N -= sign_N

    # A negative code wraps here and comes back with the next line. (uint64 stands for both in the types.)
    keys_N: NDArray[np.uint64] = code_N.astype(np.uint32 if span < 2**30 else np.uint64)
    keys_N += keys_N.dtype.type(span)
    keys_N <<= keys_N.dtype.type(1)
    keys_N |= targets_N
    keys_N.sort()
    return keys_N
