"""What the choice of a threshold adds to the uncertainty of a rate: other patients of validation choose another.

Shape suffixes: M samples with a known label, K replicates, Q thresholds.

A nested bootstrap without its inner loop. Patients of validation are resampled and the threshold is chosen anew in each
replicate; the spread of the test split's rate over these thresholds is the variance of the choice. It adds to that of
the test patients, which `influence` has by formula: the two splits share no patient. Such an interval is about the
*rule*, "a threshold for a recall of .9 chosen on so many patients"; the one that holds the threshold is about the
threshold that was chosen. `benchmarks/inference.py` measures both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from distcxr.metrics.bootstrap import PatientResamples
from distcxr.metrics.degrees import MIN_PATIENTS
from distcxr.metrics.estimate import MIN_DEFINED, Estimate
from distcxr.metrics.influence import Spread, sample_variance, score_interval, share_spread, welch
from distcxr.metrics.scored import Known, Scored
from distcxr.metrics.threshold import Rule, shares_by_patient

CHOICE_RATES = ("recall", "specificity")
NUM_KEPT = 41
"""Thresholds kept of the replicates': their quantiles at (i + 1/2) / 41."""

_KINDS = {"youden": 0, "max_f1": 1, "recall": 2, "specificity": 3}


def resampled_thresholds(resamples: PatientResamples, scored: Scored, rule: Rule) -> list[tuple[float, ...]]:
    """Quantiles of the thresholds that the rule chooses on resampled patients, on the scale of the scores, for each
    finding. Empty where a tenth of the replicates choose none, and for a rule that does not choose.

    Costs .15 s for 14 findings, 11,000 images and 1,000 replicates.
    """
    if rule.kind not in _KINDS:
        return [()] * len(scored.known)
    list(resamples.blocks())  # made once, not by every thread
    with ThreadPoolExecutor(resamples.threads) as pool:
        return list(pool.map(lambda known: _resampled(resamples, known, rule), scored.known))


def _resampled(resamples: PatientResamples, known: Known, rule: Rule) -> tuple[float, ...]:
    from distcxr.metrics.area_kernels import BLOCK, weighted_choice

    if known.reason:
        return ()
    order_M = np.lexsort((known.patient_M, known.targets_M, -known.scores_M))
    scores_M, patient_M = known.scores_M[order_M], known.patient_M[order_M].astype(np.int32)
    targets_M = known.targets_M[order_M].astype(np.uint8)
    is_last_M = np.append(scores_M[1:] != scores_M[:-1], True)
    group_M = np.cumsum(is_last_M) - is_last_M
    ends_M = (is_last_M * (1 + (np.bincount(group_M, weights=targets_M)[group_M] > 0))).astype(np.uint8)
    chosen_K = np.empty(resamples.num_replicates, dtype=np.int64)
    for block, weights_PL in resamples.blocks():
        chosen_L = np.empty(BLOCK, dtype=np.int32)
        weighted_choice(weights_PL, patient_M, targets_M, ends_M, _KINDS[rule.kind], rule.at or 0.0, chosen_L)
        chosen_K[block] = chosen_L[: block.stop - block.start]
    chosen_K = chosen_K[chosen_K >= 0]
    if len(chosen_K) < MIN_DEFINED * resamples.num_replicates:
        return ()
    places = ((np.arange(NUM_KEPT) + 0.5) / NUM_KEPT * len(chosen_K)).astype(int)
    return tuple(known.to_score(float(rank)) for rank in np.sort(scores_M[chosen_K])[places])


def with_choice(
    known: Known, num_patients: int, threshold: float, threshold_Q: Sequence[float], num_chosen_on: int
) -> dict[str, Estimate]:
    """`CHOICE_RATES` at a threshold of `scores_M`, with intervals that include its choice.

    Args: patients of the split; the thresholds of `resampled_thresholds`, as `scores_M` are; positive patients that
    they were chosen on.
    """
    found = {}
    for rate in CHOICE_RATES:
        part_P, whole_P = shares_by_patient(known, num_patients, threshold)[rate]
        of = 1 if rate == "recall" else 0
        reason = None
        if min(num := int(np.count_nonzero(whole_P)), num_chosen_on) < MIN_PATIENTS:
            which = f"of {num}" if num < MIN_PATIENTS else f"chosen on {num_chosen_on} positive"
            reason = f"{which} patients: an interval needs {MIN_PATIENTS}"
        elif not threshold_Q:
            reason = "too few resamples of the patients choose a threshold"
        if reason:
            found[rate] = Estimate(None, None, None, reason)
            continue
        spread = share_spread(part_P, whole_P)
        scores_M = np.sort(known.scores_M[known.targets_M == of])
        below_Q = np.searchsorted(scores_M, np.asarray(threshold_Q, dtype=np.float32)) / len(scores_M)
        low, high = score_interval(_wider(spread, float(below_Q.var()), num_chosen_on, len(scores_M)), of_ranks=False)
        found[rate] = Estimate(spread.value, low, high, None)
    return found


def _wider(spread: Spread, added: float, num_chosen_on: int, num: int) -> Spread:
    """With the variance of the choice; a share of 0 or 1 has that of one a little inside."""
    inside = (spread.value * num + 0.5) / (num + 1)
    own = max(spread.variance, spread.factor * sample_variance(inside, False))
    df = welch(own + added, [(own, spread.df), (added, num_chosen_on - 1)])
    assert math.isfinite(df)
    return Spread(spread.value, spread.influence_P, own + added, df, spread.factor * (1 + added / own))
