"""Exact AUROC and average precision of one finding; its arrays were checked by `scored`.

Shape suffixes: M samples with a known label, P positives, G groups of positives with equal scores.

How: every score becomes an unsigned integer of the same order with the label in its lowest bit, and the
integers are sorted by value. Nothing is permuted (an argsort costs about five times as much), and afterwards
a positive's position in the sorted array, less the positives before it, is the number of negatives it beats or
ties with.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_MAGNITUDE_BITS = 0x7FFFFFFF


@dataclass(frozen=True)
class PositiveRanks:
    """Where one finding's positives rank among its negatives: all that AUROC and average precision need.

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


def dense_ranks(scores_M: NDArray[np.float64]) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Finite float64 scores as float32 numbers of the same order: two of them tie if, and only if, they are equal.

    A cast would round neighbours to ties. Each score becomes its position among the distinct scores, from 0.
    Returns the positions `[M]`, and the distinct scores in rising order.
    Raises ValueError for more than 2**24 distinct scores, which float32 can't count.
    """
    levels, position_M = np.unique(scores_M, return_inverse=True)
    if len(levels) > 2**24:
        raise ValueError(f"a finding has {len(levels):,} distinct scores; at most {2**24:,} can be ranked")
    return position_M.astype(np.float32), levels


def rank_positives(scores_M: NDArray[np.float32], targets_M: NDArray[np.uint8]) -> PositiveRanks:
    """Count the negatives below and level with each positive score.

    Args: finite float32 scores `[M]`, contiguous, and their targets, 0 or 1, at least one of each.
    """
    keys_M = _sorted_keys(scores_M, targets_M)
    position_P = np.flatnonzero(keys_M & keys_M.dtype.type(1))
    num_positive = len(position_P)
    assert 0 < num_positive < len(keys_M), "without both classes the areas are undefined"
    key_P = keys_M[position_P]
    first_G = np.flatnonzero(np.concatenate(([True], key_P[1:] != key_P[:-1])))
    position_G, key_G = position_P[first_G], key_P[first_G]
    # A group's negatives are directly before its positives, their key one less. Position 0 looks at the last
    # key, which is no smaller than its own, so it never counts as tied.
    tied_G = keys_M[position_G - 1] == key_G - 1
    start_G = position_G.copy()
    start_G[tied_G] = keys_M.searchsorted(key_G[tied_G] - 1)
    return PositiveRanks(
        num_positive=num_positive,
        num_negative=len(keys_M) - num_positive,
        size_G=np.diff(first_G, append=num_positive),
        positives_below_G=first_G,
        negatives_below_G=start_G - first_G,
        negatives_tied_G=position_G - start_G,
    )


def _sorted_keys(scores_M: NDArray[np.float32], targets_M: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Sorted integers: twice the score's rank-preserving code, plus the target.

    Float magnitudes order like their bit patterns. Patterns are counted from just below the smallest non-zero
    one, so that the code and the label fit 32 bits (which sort in half the time of 64) for scores with
    largest and smallest non-zero magnitudes less than a factor 2**128 apart; beyond that the keys are 64
    bits wide.
    """
    bits_M = scores_M.view(np.int32)
    code_M = bits_M & np.int32(_MAGNITUDE_BITS)
    largest = int(code_M.max())
    # Unsigned, 0 - 1 is the largest number there is, so zeros do not decide the minimum.
    below_smallest = min(int((code_M.view(np.uint32) - np.uint32(1)).min()), largest)
    np.maximum(code_M, np.int32(below_smallest), out=code_M)
    code_M -= np.int32(below_smallest)
    span = largest - below_smallest
    # Two's complement negation where the sign bit is set; 0.0 and -0.0 both become 0, and so tie.
    sign_M = bits_M >> np.int32(31)
    code_M ^= sign_M
    code_M -= sign_M

    # A negative code wraps here and comes back with the next line. (uint64 stands for both in the types.)
    keys_M: NDArray[np.uint64] = code_M.astype(np.uint32 if span < 2**30 else np.uint64)
    keys_M += keys_M.dtype.type(span)
    keys_M <<= keys_M.dtype.type(1)
    keys_M |= targets_M
    keys_M.sort()
    return keys_M
