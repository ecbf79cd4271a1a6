"""Steps with a loss far above those before them: for the log while a run trains, and for its report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import NamedTuple

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


class Spike(NamedTuple):
    """A step's loss, and the median of the up to 100 before it."""

    step: float
    loss: float
    typical: float

    def __str__(self) -> str:
        times = f"{self.loss / self.typical:.1f} times " if self.typical > 0 else "above "
        return f"{self.loss:.4g}, {times}the median of the steps before ({self.typical:.4g})"


def find_spikes(columns: Mapping[str, Sequence[float | None]]) -> list[Spike]:
    """The spikes among the finite losses of `steps.csv`.

    Args:
        columns: its `step` and `loss`, as `read_columns` gives them.
    """
    pairs = zip(columns.get("step", ()), columns.get("loss", ()), strict=False)
    points = [(step, loss) for step, loss in pairs if step is not None and loss is not None]
    losses, found = [loss for _, loss in points], []
    for at, (step, loss) in enumerate(points):
        typical = typical_loss(losses[max(0, at - NUM_BEFORE) : at], loss)
        if typical is not None:
            found.append(Spike(step, loss, typical))
    return found
