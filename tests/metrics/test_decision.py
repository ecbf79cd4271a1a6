"""Decision curves against counts at every threshold, a plain loop, and the edges."""

from __future__ import annotations

import numpy as np
import pytest
from cohort import cohort, scored

from distcxr.metrics.bootstrap import PatientResamples
from distcxr.metrics.calibration import probabilities
from distcxr.metrics.decision import THRESHOLDS, decision_curves


def net_benefit(prob: np.ndarray, targets: np.ndarray, at: float) -> float:
    called = prob >= at
    true, false = np.count_nonzero(called & (targets == 1)), np.count_nonzero(called & (targets == 0))
    return (true - false * at / (1 - at)) / len(targets)


def test_net_benefit_and_its_interval_are_those_of_a_plain_loop() -> None:
    found = cohort(1)
    held = scored(*found)
    resamples = PatientResamples(held.num_patients, 140, seed=2)
    for column, curve in enumerate(decision_curves(resamples, held)):
        keep = np.flatnonzero(found.mask_NC[:, column])
        prob, targets = probabilities(found.logits_NC[:, column]), found.targets_NC[:, column]
        for at, one, treat_all in zip(THRESHOLDS, curve.model, curve.treat_all, strict=True):
            assert one.value == pytest.approx(net_benefit(prob[keep], targets[keep], at), abs=1e-14)
            assert treat_all == pytest.approx(net_benefit(np.ones(len(keep)), targets[keep], at), abs=1e-14)
        drawn = [np.repeat(keep, resamples.weights(number)[held.patient_N[keep]]) for number in range(140)]
        ends = np.percentile([net_benefit(prob[rows], targets[rows], 0.2) for rows in drawn], [2.5, 97.5])
        one = curve.model[THRESHOLDS.index(0.2)]
        assert (one.low, one.high) == pytest.approx(ends, abs=1e-12)


def test_edges() -> None:
    found = cohort(2)
    found.mask_NC[:, 1], found.targets_NC[:, 2] = 0, 0
    held = scored(*found._replace(logits_NC=np.full_like(found.logits_NC, -50)))
    curves = decision_curves(PatientResamples(held.num_patients, 20), held)
    assert curves[1].model[0].reason == "no known labels" and curves[1].treat_all[0] is None
    assert [one.value for one in curves[0].model] == [0] * len(THRESHOLDS)  # nobody is called
    assert curves[2].treat_all[0] == pytest.approx(-0.001 / 0.999)
