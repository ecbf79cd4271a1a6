"""The patient-level bootstrap against scikit-learn on resamples made by hand, its draws, and the edges."""

from __future__ import annotations

import math

import numpy as np
import pytest
from cohort import auroc, cohort, scored
from numpy.typing import NDArray

from distcxr.metrics import bootstrap
from distcxr.metrics.bootstrap import PatientResamples, area_replicates
from distcxr.metrics.estimate import Estimate, average, average_replicates, estimate
from distcxr.metrics.scored import Scored

TOLERANCE = 1e-12


def drawn_rows(resamples: PatientResamples, held: Scored, replicate: int) -> NDArray[np.int64]:
    """Rows of one replicate, written out: every image of every patient drawn, as often as drawn."""
    return np.repeat(np.arange(len(held)), resamples.weights(replicate)[held.patient_N])


@pytest.mark.parametrize("decimals", [6, 1, 0], ids=["distinct", "ties", "nearly all tied"])
def test_every_replicate_equals_sklearn_on_the_rows_drawn(decimals: int) -> None:
    from sklearn.metrics import average_precision_score, roc_auc_score

    logits, targets, mask, patients = cohort(decimals=decimals)
    held = scored(logits, targets, mask, patients)
    resamples = PatientResamples(held.num_patients, replicates=150, seed=3)  # the second block of 128 is not full
    areas = area_replicates(resamples, held)
    assert areas.shape == (2, 4, 150)
    for replicate in (0, 1, 77, 127, 128, 149):
        rows = drawn_rows(resamples, held, replicate)
        for column in range(4):
            known = rows[mask[rows, column] == 1]
            arguments = targets[known, column], logits[known, column]
            assert areas[0, column, replicate] == pytest.approx(roc_auc_score(*arguments), rel=0, abs=TOLERANCE)
            expected = average_precision_score(*arguments)
            assert areas[1, column, replicate] == pytest.approx(expected, rel=0, abs=TOLERANCE)


def test_draws_are_a_multinomial() -> None:
    """Each patient is drawn once on average, with a variance of nearly 1; replicates differ."""
    resamples = PatientResamples(500, replicates=400, seed=11)
    weights = np.stack([resamples.weights(replicate) for replicate in range(400)])
    assert (weights.sum(axis=1) == 500).all()
    assert abs(weights.mean(axis=0) - 1).max() < 5 / math.sqrt(400)
    assert weights.var() == pytest.approx(1 - 1 / 500, abs=0.02)
    assert len({tuple(row) for row in weights.tolist()}) == 400


def test_draws_are_these_for_ever() -> None:
    """Golden: another numpy, machine or release must draw the same patients for the same seed."""
    resamples = PatientResamples(8, replicates=2, seed=6)
    assert [resamples.weights(0).tolist(), resamples.weights(1).tolist()] == [
        [4, 0, 2, 1, 0, 1, 0, 0],
        [5, 0, 0, 1, 1, 1, 0, 0],
    ]


def test_blocks_hold_the_weights_kept_or_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = PatientResamples(20, replicates=300, seed=2)
    for _ in range(2):
        blocks = [(block.start, block.stop, weights) for block, weights in kept.blocks()]
        assert [(start, stop) for start, stop, _ in blocks] == [(0, 128), (128, 256), (256, 300)]
        for start, stop, weights in blocks:
            expected = np.stack([kept.weights(replicate) for replicate in range(start, stop)], axis=1)
            np.testing.assert_array_equal(weights[:, : stop - start], expected)
            assert not weights[:, stop - start :].any()
    monkeypatch.setattr(bootstrap, "_MAX_KEPT_BYTES", 20 * 128)  # one block
    again = PatientResamples(20, replicates=300, seed=2)
    for _ in range(2):
        for (_, weights), (_, expected) in zip(again.blocks(), kept.blocks(), strict=True):
            np.testing.assert_array_equal(weights, expected)
    assert len(again._kept) == 1 and len(kept._kept) == 3


def test_same_areas_whatever_the_threads() -> None:
    held = scored(*cohort(2))
    one, three = (area_replicates(PatientResamples(held.num_patients, 200, 7, threads), held) for threads in (1, 3))
    np.testing.assert_array_equal(one, three)


def test_more_replicates_begin_with_the_same_ones() -> None:
    held = scored(*cohort(3))
    few = area_replicates(PatientResamples(held.num_patients, 100), held)
    many = area_replicates(PatientResamples(held.num_patients, 260), held)
    np.testing.assert_array_equal(many[:, :, :100], few)


def test_both_zeros_and_the_whole_float32_range_rank_as_in_ranking() -> None:
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**32, size=600, dtype=np.uint64).astype(np.uint32).view(np.float32)
    logits = np.concatenate((bits[np.isfinite(bits)], np.float32([0, -0.0, 0, -0.0, 1e-45, -1e-45])))[:, None]
    targets = rng.integers(0, 2, size=logits.shape).astype(np.uint8)
    held = scored(logits, targets, np.ones_like(targets), np.arange(len(logits)) // 3)
    resamples = PatientResamples(held.num_patients, 20)
    areas = area_replicates(resamples, held)
    for replicate in range(20):
        rows = drawn_rows(resamples, held, replicate)
        assert areas[0, 0, replicate] == auroc(logits[rows, 0], targets[rows, 0])


def test_wrong_settings_are_refused() -> None:
    held = scored(*cohort())
    with pytest.raises(ValueError, match="1 make no interval"):
        PatientResamples(9, 1)
    with pytest.raises(ValueError, match="seed must be"):
        PatientResamples(9, 10, seed=-1)
    for one_off in (held.num_patients - 1, held.num_patients + 1):
        with pytest.raises(ValueError, match=f"draws are of {one_off} patients, but {held.num_patients} were scored"):
            area_replicates(PatientResamples(one_off, 10), held)


def test_a_replicates_average_is_of_the_findings_it_defines() -> None:
    nan = np.nan
    figures = np.array([[0.5, nan, nan], [0.7, 0.8, nan]])
    np.testing.assert_allclose(average_replicates(figures), [0.6, 0.8, nan])
    assert np.isnan(average_replicates(figures[:0])).all()
    assert average([0.5, None, 1.0]) == (0.75, None)


def test_an_interval_needs_nine_tenths_of_the_replicates() -> None:
    figures = np.linspace(0, 1, 101)
    assert estimate(0.5, None, figures, 9) == Estimate(0.5, pytest.approx(0.025), pytest.approx(0.975), None, 0)
    figures = figures[:100]
    figures[:10] = np.nan
    assert estimate(0.5, None, figures, 9).low is not None
    figures[10] = np.nan
    assert estimate(0.5, None, figures, 9).low is None
