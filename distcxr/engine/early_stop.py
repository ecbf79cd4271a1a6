"""When training ends because it no longer helps."""

from __future__ import annotations

import math
from collections.abc import Sequence


def stops_early(scores: Sequence[float | None], *, patience: int | None, min_delta: float) -> bool:
    """Whether `patience` validations in a row have not been better than the best by more than `min_delta`.

    Args:
        scores: of a stage's validations so far, the higher the better; None, where it is undefined, is not better.
        patience: None never stops.
    """
    best, waited = -math.inf, 0
    for score in scores:
        if score is not None and score > best + min_delta:
            best, waited = score, 0
        else:
            waited += 1
        if patience is not None and waited >= patience:
            return True
    return False
