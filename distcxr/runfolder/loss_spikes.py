"""Steps with a loss far above those before them: for the log while a run trains, and for its report."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

NUM_BEFORE = 100
"""Steps that one is compared with."""
_FEWEST = 20
_TIMES, _DEVIATIONS = 3.0, 10.0
_TO_SIGMA = 1.4826  # of a normal distribution, from its median absolute deviation


def typical_loss(before: Sequence[float], loss: float) -> float | None:
    """The median of the losses before where `loss` is a spike, None where it is not.

    A spike is over 3 times the median and over 10 standard deviations above it, by the median absolute deviation: small
    batches and losses of rare findings scatter widely. With fewer than 20 losses before, nothing is one.
    """
    if len(before) < _FEWEST:
        return None
    middle = median(before)
    if loss <= _TIMES * middle:
        return None  # what most losses take
    spread = _TO_SIGMA * median(abs(one - middle) for one in before)
    return middle if loss > middle + _DEVIATIONS * spread else None


def find_spikes(losses: Sequence[float]) -> list[tuple[int, float]]:
    """(position, median of the up to 100 losses before) of each spike."""
    found = []
    for at, loss in enumerate(losses):
        middle = typical_loss(losses[max(0, at - NUM_BEFORE) : at], loss)
        if middle is not None:
            found.append((at, middle))
    return found
