"""Thresholds, chosen on validation and applied elsewhere as they are; a sample is called positive at score >= t.

Shape suffixes: M samples with a known label, C findings, P patients, T thresholds from the highest to the lowest.

Only scores that validation holds are chosen: one between two of them calls the same samples, and "nobody" is not a
threshold. Equal scores are called together. A threshold is rounded to float32, as the scores are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from distcxr.metrics.degrees import MIN_PATIENTS
from distcxr.metrics.estimate import Estimate
from distcxr.metrics.influence import score_interval, share_spread
from distcxr.metrics.scored import Known, Scored

RATES = ("recall", "precision", "specificity", "npv", "accuracy", "f1")
RATE_METHOD = (
    "Wilson's interval with the variance between patients, averaged with that of images that resemble each other "
    "within a patient, and Student's t of the effective number of patients; the threshold is held"
)
_UNDEFINED = {
    "recall": "there are no positives",
    "precision": "nobody is called positive",
    "specificity": "there are no negatives",
    "npv": "nobody is called negative",
    "accuracy": "no known labels",
    "f1": "there are no positives and nobody is called positive",
}


@dataclass(frozen=True)
class Rule:
    """How to choose a threshold.

    `youden`: the largest recall + specificity - 1. `max_f1`: the largest F1. Of several as good, the lowest
    threshold, which misses the fewest.
    `recall`: the highest threshold with a recall of `at` or more; there always is one.
    `specificity`: the lowest threshold with a specificity of `at` or more; there is none where too many negatives
    share the highest score.
    `probability`: `at` itself, whatever the samples are.
    Raises ValueError for another kind, and where `at` is absent, beyond 0 to 1, or not asked for.
    """

    kind: Literal["youden", "max_f1", "recall", "specificity", "probability"]
    at: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("youden", "max_f1", "recall", "specificity", "probability"):
            raise ValueError(
                f"no threshold rule is called {self.kind!r}: use youden, max_f1, recall, specificity or probability"
            )
        if self.kind in ("youden", "max_f1"):
            if self.at is not None:
                raise ValueError(f"the threshold rule {self.kind} takes no figure, got {self.at}")
        elif self.at is None or not 0 < self.at <= 1:
            raise ValueError(f"the threshold rule {self.kind} needs a figure above 0 and up to 1, got {self.at}")


@dataclass(frozen=True)
class Threshold:
    """A chosen threshold, or why there is none."""

    value: float | None
    rule: Rule
    reason: str | None
    resampled: tuple[float, ...] = ()
    """What other patients might have chosen: see `threshold_choice.resampled_thresholds`."""


@dataclass(frozen=True)
class Confusion:
    """Counts of samples with a known label: called rightly or not, positive or not."""

    true_positive: int
    false_positive: int
    false_negative: int
    true_negative: int

    def rates(self) -> dict[str, float | None]:
        """`RATES` by name, None where undefined; `undefined_rate` has the reason."""
        return {name: part / whole if whole else None for name, (part, whole) in _shares(*astuple(self)).items()}

    def undefined_rate(self, name: str) -> str | None:
        """Why this rate is None; None where it is a number."""
        return _UNDEFINED[name] if self.rates()[name] is None else None


class Curve(NamedTuple):
    """What every distinct score calls as a threshold: float32 `[T]`, falling, and int64 counts `[T]`.

    Recall is `true_positive_T / num_positive`, the false positive rate `false_positive_T / num_negative`, and
    precision `true_positive_T / (true_positive_T + false_positive_T)`: the ROC and PR curves but for (0, 0).
    """

    threshold_T: NDArray[np.float32]
    true_positive_T: NDArray[np.int64]
    false_positive_T: NDArray[np.int64]
    num_positive: int
    num_negative: int


def curve(known: Known) -> Curve:
    """Exact counts at every threshold that the scores allow."""
    scores_M, targets_M = known.scores_M, known.targets_M
    order_M = np.argsort(scores_M)[::-1]
    sorted_M = scores_M[order_M]
    last_T = np.flatnonzero(np.concatenate((sorted_M[1:] != sorted_M[:-1], [True]))) if len(sorted_M) else order_M
    true_T = np.cumsum(targets_M[order_M], dtype=np.int64)[last_T]
    num_positive = int(np.count_nonzero(targets_M))
    return Curve(sorted_M[last_T], true_T, last_T + 1 - true_T, num_positive, len(targets_M) - num_positive)


def choose_threshold(known: Known, rule: Rule) -> Threshold:
    """The threshold that the rule picks on these samples, which should be those of validation.

    It is a value of `scores_M`. A rule that looks at them, so not `probability`.
    """
    assert rule.kind != "probability", "scores may be logits here: see operating.choose_operating"
    if known.reason:
        return Threshold(None, rule, known.reason)
    found = curve(known)
    at = rule.at or 0.0
    recall_T = found.true_positive_T / found.num_positive
    specificity_T = (found.num_negative - found.false_positive_T) / found.num_negative
    if rule.kind == "recall":
        chosen = int(np.argmax(recall_T >= at))  # the first of falling thresholds; the last always reaches it
    elif rule.kind == "specificity":
        reached = np.flatnonzero(specificity_T >= at)
        if len(reached) == 0:
            best = f"{found.false_positive_T[0]} of {found.num_negative} negatives share the highest score"
            return Threshold(None, rule, f"no threshold has specificity {rule.at}: {best}")
        chosen = int(reached[-1])
    elif rule.kind == "youden":
        # In integers: sums of two rounded rates would break ties at random.
        doubled_T = found.true_positive_T * found.num_negative - found.false_positive_T * found.num_positive
        chosen = int(np.flatnonzero(doubled_T == doubled_T.max())[-1])
    else:
        f1_T = 2 * found.true_positive_T / (found.true_positive_T + found.false_positive_T + found.num_positive)
        chosen = int(np.flatnonzero(f1_T == f1_T.max())[-1])
    return Threshold(float(found.threshold_T[chosen]), rule, None)


def count_cells(known: Known, threshold: float) -> Confusion:
    """Confusion counts at `scores_M` >= threshold. Raises ValueError for a threshold that is not a finite float32."""
    return Confusion(*np.bincount(_cells(known, threshold), minlength=4).tolist())


def rate_estimates(scored: Scored, threshold_C: Sequence[float | None]) -> list[dict[str, Estimate]]:
    """`RATES` of each finding at its given threshold, with intervals by patient.

    The threshold is held: how it would vary with other validation data is not in the interval. Where it is None,
    so is every rate. A rate of fewer than `MIN_PATIENTS` patients has no interval.
    Raises ValueError for another number of thresholds, and as `count_cells`.
    """
    if len(threshold_C) != len(scored.known):
        raise ValueError(f"{len(threshold_C)} thresholds for {len(scored.known)} findings: give one each")
    found = []
    for known, threshold in zip(scored.known, threshold_C, strict=True):
        if threshold is None:
            found.append(dict.fromkeys(RATES, Estimate(None, None, None, "there is no threshold")))
            continue
        shares = shares_by_patient(known, scored.num_patients, threshold)
        found.append({name: _rate(shares[name], _UNDEFINED[name]) for name in RATES})
    return found


def shares_by_patient(
    known: Known, num_patients: int, threshold: float
) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """For each of `RATES`, of each patient `[P]`: what is right, and of how much it is a share."""
    cell_M = _cells(known, threshold) + 4 * known.patient_M.astype(np.int64)
    return _shares(*np.bincount(cell_M, minlength=4 * num_patients).reshape(-1, 4).T.astype(np.float64))


def _rate(share: tuple[NDArray[np.float64], NDArray[np.float64]], undefined: str) -> Estimate:
    part_P, whole_P = share
    num_patients = int(np.count_nonzero(whole_P))
    if not num_patients:
        return Estimate(None, None, None, undefined)
    spread = share_spread(part_P, whole_P)
    if num_patients < MIN_PATIENTS:
        return Estimate(spread.value, None, None, f"of {num_patients} patients: an interval needs {MIN_PATIENTS}")
    low, high = score_interval(spread, of_ranks=False)
    return Estimate(spread.value, low, high, None)


def _cells(known: Known, threshold: float) -> NDArray[np.int64]:
    """0 true positive, 1 false positive, 2 false negative, 3 true negative, `[M]`."""
    if not abs(threshold) <= float(np.finfo(np.float32).max):
        raise ValueError(f"a threshold must be a finite float32 number, got {threshold}")
    called_M = known.scores_M >= np.float32(threshold)
    return np.where(called_M, 1 - known.targets_M.astype(np.int64), 3 - known.targets_M.astype(np.int64))


def _shares(true_positive: Any, false_positive: Any, false_negative: Any, true_negative: Any) -> dict[str, Any]:
    """`RATES` of counts, each a number or an array: what is right, and of how much it is a share."""
    right = true_positive + true_negative
    return {
        "recall": (true_positive, true_positive + false_negative),
        "precision": (true_positive, true_positive + false_positive),
        "specificity": (true_negative, true_negative + false_positive),
        "npv": (true_negative, true_negative + false_negative),
        "accuracy": (right, right + false_positive + false_negative),
        "f1": (2 * true_positive, 2 * true_positive + false_positive + false_negative),
    }
