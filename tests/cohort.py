"""A few hundred samples of a few dozen patients, ties and unknown labels included."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Cohort(NamedTuple):
    logits_NC: NDArray[np.float32]
    targets_NC: NDArray[np.uint8]
    mask_NC: NDArray[np.uint8]
    patient_id: NDArray[np.int64]


def cohort(seed: int = 0, num: int = 400, patients: int = 60, findings: int = 4, decimals: int = 1) -> Cohort:
    """Patients differ in how often they are ill and how high they score, as real ones do."""
    rng = np.random.default_rng(seed)
    row = rng.integers(0, patients, size=num)
    ill = rng.normal(size=(patients, findings))[row]
    targets = (ill + rng.normal(size=(num, findings)) > 1).astype(np.uint8)
    logits = (ill + targets + rng.normal(size=(num, findings)) - 1).round(decimals).astype(np.float32)
    mask = (rng.random((num, findings)) > 0.1).astype(np.uint8)
    ids = rng.permutation(10 * patients)[:patients][row].astype(np.int64)
    return Cohort(logits, targets, mask, ids)
