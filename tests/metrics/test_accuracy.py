"""Accuracy of classes that exclude each other, and its paired difference, against a plain loop."""

from __future__ import annotations

import numpy as np
import pytest
from cohort import cohort, scored

from distcxr.metrics.accuracy import accuracy, accuracy_difference, is_exclusive, right_N
from distcxr.metrics.bootstrap import PatientResamples


def test_the_difference_equals_a_plain_paired_loop() -> None:
    found = cohort(3, num=300, patients=40, findings=3, decimals=6)
    rng = np.random.default_rng(0)
    classes = rng.integers(0, 3, size=300)
    targets = np.eye(3, dtype=np.uint8)[classes]
    mask = np.ones_like(targets)
    mask[:20, 1] = 0  # a label of these is unknown: they count for nothing
    a_NC = found.logits_NC + 2 * targets
    b_NC = found.logits_NC
    a_N, b_N = (right_N(logits, targets, mask) for logits in (a_NC, b_NC))
    assert a_N is not None and b_N is not None and np.isnan(a_N[:20]).all()
    all_known = scored(a_NC, targets, mask, found.patient_id)
    resamples = PatientResamples(all_known.num_patients, 100, seed=1)
    result = accuracy_difference(resamples, all_known, a_N, b_N)
    right = [(logits.argmax(axis=1) == classes)[20:] for logits in (a_NC, b_NC)]
    assert (result.a, result.b) == pytest.approx([each.mean() for each in right], abs=1e-12)
    assert result.a == accuracy(a_NC, targets, mask)
    drawn = []
    for replicate in range(100):
        rows = np.repeat(np.arange(280), resamples.weights(replicate)[all_known.patient_N[20:]])
        drawn.append(right[0][rows].mean() - right[1][rows].mean())
    low, high = np.percentile(drawn, [2.5, 97.5])
    assert (result.difference.low, result.difference.high) == pytest.approx((low, high), abs=1e-12)
    assert result.p == result.p_floor == 2 / 101  # a is better in every draw


def test_few_patients_have_no_p_value() -> None:
    targets = np.eye(2, dtype=np.uint8)[[0, 1, 0, 1]]
    few = scored(np.zeros((4, 2), dtype=np.float32), targets, np.ones_like(targets), np.array([1, 1, 2, 3]))
    result = accuracy_difference(PatientResamples(3, 50), few, np.array([1.0, 1, 1, 0]), np.array([0.0, 1, 0, 0]))
    assert result.difference.value == 0.5 and result.p is None
    assert result.p_reason == "3 patients: nothing holds with fewer than 10"


def test_where_accuracy_means_something() -> None:
    one = np.eye(3, dtype=np.uint8)[[0, 1, 2]]
    mask = np.ones_like(one)
    assert is_exclusive(one, mask) and not is_exclusive(1 - one, mask) and not is_exclusive(one[:, :1], mask[:, :1])
    two = one.copy()
    two[0] = 1
    assert not is_exclusive(two, mask)
    mask[0, 1] = 0  # who knows
    assert is_exclusive(two, mask)
    logits = np.full((3, 3), np.nan, dtype=np.float32)
    assert accuracy(logits, one, mask) is None and accuracy(np.zeros((3, 3)), one, np.zeros_like(mask)) is None
