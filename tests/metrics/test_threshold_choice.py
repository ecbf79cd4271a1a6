"""Thresholds of resampled patients against a plain loop, and what they add to an interval."""

from __future__ import annotations

import numpy as np
import pytest
from cohort import cohort, scored

from distcxr.metrics.bootstrap import PatientResamples
from distcxr.metrics.operating import RULES, Operating, choose_operating
from distcxr.metrics.scored import Scored
from distcxr.metrics.threshold import choose_threshold, rate_estimates
from distcxr.metrics.threshold_choice import NUM_KEPT, resampled_thresholds, with_choice

HELD = scored(*cohort(1, num=300, patients=120))
RESAMPLES = PatientResamples(HELD.num_patients, 150, seed=3)


@pytest.mark.parametrize("name", ["youden", "max_f1", "recall_90", "specificity_90"])
def test_each_is_what_the_rule_chooses_on_the_drawn_patients(name: str) -> None:
    for column in (0, 1):
        one, chosen = HELD.known[column], []
        for replicate in range(150):
            rows = np.repeat(np.arange(one.num), RESAMPLES.weights(replicate)[one.patient_M])
            columns = (one.given_M[rows], one.targets_M[rows], np.ones_like(one.targets_M[rows]))
            drawn = Scored.of(["A"], *(part[:, None] for part in columns), one.patient_M[rows]).known[0]
            value = choose_threshold(drawn, RULES[name]).value
            chosen += [] if value is None else [drawn.to_score(value)]
        assert len(chosen) > 140
        places = ((np.arange(NUM_KEPT) + 0.5) / NUM_KEPT * len(chosen)).astype(int)
        found = resampled_thresholds(RESAMPLES, HELD, RULES[name])[column]
        assert found == tuple(np.sort(chosen)[places]) and len(set(found)) > 3


def test_an_interval_with_the_choice_is_wider_and_that_of_one_threshold_is_not() -> None:
    threshold = choose_threshold(HELD.known[0], RULES["recall_90"]).value
    again = resampled_thresholds(RESAMPLES, HELD, RULES["recall_90"])[0]
    held = rate_estimates(HELD, [threshold] * len(HELD.known))[0]
    for rate in ("recall", "specificity"):
        wide = with_choice(HELD.known[0], HELD.num_patients, threshold, again, 30)[rate]
        assert wide.value == held[rate].value and wide.low < held[rate].low and held[rate].high < wide.high
        same = with_choice(HELD.known[0], HELD.num_patients, threshold, [threshold] * 41, 10_000)[rate]
        assert (same.low, same.high) == pytest.approx((held[rate].low, held[rate].high), abs=0.02)
        few = with_choice(HELD.known[0], HELD.num_patients, threshold, again, 9)[rate]
        assert few.low is None and few.reason == "chosen on 9 positive patients: an interval needs 10"


def test_they_are_kept_with_the_thresholds_and_older_files_have_none() -> None:
    operating = choose_operating(HELD, replicates=50)
    content = operating.to_json()
    assert Operating.from_json(content) == operating
    assert len(operating.resampled("youden", 0, "logit")) == NUM_KEPT
    assert operating.resampled("probability_50", 0, "logit") == []
    assert max(operating.resampled("youden", 0, "probability")) < 1
    for entry in content["findings"].values():
        for kept in entry["thresholds"].values():
            del kept["resampled"]
    older = Operating.from_json(content)
    assert older.resampled("youden", 0, "logit") == [] and older.thresholds["youden"][0].value is not None
