"""The patient-level bootstrap against scikit-learn on resamples made by hand, its draws, and the edges."""

from __future__ import annotations

import math

import numpy as np
import pytest
from cohort import Cohort, cohort
from numpy.typing import NDArray

from distcxr.metrics import bootstrap
from distcxr.metrics.bootstrap import Estimate, PatientResamples, area_estimates, area_replicates
from distcxr.metrics.estimate import average, average_replicates, estimate
from distcxr.metrics.ranking import auprc, auroc, auroc_per_finding

TOLERANCE = 1e-12


def drawn_rows(resamples: PatientResamples, replicate: int) -> NDArray[np.int64]:
    """Rows of one replicate, written out: every image of every patient drawn, as often as drawn."""
    return np.repeat(np.arange(len(resamples.patient_N)), resamples.weights(replicate)[resamples.patient_N])


@pytest.mark.parametrize("decimals", [6, 1, 0], ids=["distinct", "ties", "nearly all tied"])
def test_every_replicate_equals_sklearn_on_the_rows_drawn(decimals: int) -> None:
    from sklearn.metrics import average_precision_score, roc_auc_score

    logits, targets, mask, patients = cohort(decimals=decimals)
    resamples = PatientResamples(patients, replicates=150, seed=3)  # the second block of 128 is not full
    areas = area_replicates(resamples, logits, targets, mask)
    assert areas.shape == (2, 4, 150)
    for replicate in (0, 1, 77, 127, 128, 149):
        rows = drawn_rows(resamples, replicate)
        for column in range(4):
            known = rows[mask[rows, column] == 1]
            arguments = targets[known, column], logits[known, column]
            assert areas[0, column, replicate] == pytest.approx(roc_auc_score(*arguments), rel=0, abs=TOLERANCE)
            expected = average_precision_score(*arguments)
            assert areas[1, column, replicate] == pytest.approx(expected, rel=0, abs=TOLERANCE)


def test_the_interval_is_that_of_a_plain_loop() -> None:
    logits, targets, mask, patients = cohort(1)
    resamples = PatientResamples(patients, replicates=300, seed=1)
    areas = area_estimates(resamples, logits, targets, mask, macro_columns=[0, 2])
    by_hand = np.empty((300, 4))
    for replicate in range(300):
        rows = drawn_rows(resamples, replicate)
        by_hand[replicate] = auroc_per_finding(logits[rows], targets[rows], mask[rows])
    for column, found in enumerate(areas.auroc):
        keep = mask[:, column] == 1
        assert found.value == auroc(logits[keep, column], targets[keep, column])
        assert areas.auprc[column].value == auprc(logits[keep, column], targets[keep, column])
        assert (found.low, found.high) == pytest.approx(np.percentile(by_hand[:, column], [2.5, 97.5]), abs=TOLERANCE)
        assert found.reason is None and found.num_left_out == 0
    macro = by_hand[:, [0, 2]].mean(axis=1)
    assert areas.macro_columns == (0, 2)
    assert areas.macro_auroc.value == pytest.approx((areas.auroc[0].value + areas.auroc[2].value) / 2, abs=TOLERANCE)
    assert (areas.macro_auroc.low, areas.macro_auroc.high) == pytest.approx(
        np.percentile(macro, [2.5, 97.5]), abs=TOLERANCE
    )


def test_draws_are_a_multinomial() -> None:
    """Each patient is drawn once on average, with a variance of nearly 1; replicates differ."""
    resamples = PatientResamples(np.arange(500), replicates=400, seed=11)
    weights = np.stack([resamples.weights(replicate) for replicate in range(400)])
    assert (weights.sum(axis=1) == 500).all()
    assert abs(weights.mean(axis=0) - 1).max() < 5 / math.sqrt(400)
    assert weights.var() == pytest.approx(1 - 1 / 500, abs=0.02)
    assert len({tuple(row) for row in weights.tolist()}) == 400


def test_draws_are_these_for_ever() -> None:
    """Golden: another numpy, machine or release must draw the same patients for the same seed."""
    resamples = PatientResamples(np.arange(8), replicates=2, seed=6)
    assert [resamples.weights(0).tolist(), resamples.weights(1).tolist()] == [
        [4, 0, 2, 1, 0, 1, 0, 0],
        [5, 0, 0, 1, 1, 1, 0, 0],
    ]


def test_blocks_hold_the_weights_kept_or_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    patients = np.arange(40) // 2
    kept = PatientResamples(patients, replicates=300, seed=2)
    for _ in range(2):
        lanes = [(lanes.start, lanes.stop, weights) for lanes, weights in kept.blocks()]
        assert [(start, stop) for start, stop, _ in lanes] == [(0, 128), (128, 256), (256, 300)]
        for start, stop, weights in lanes:
            expected = np.stack([kept.weights(replicate) for replicate in range(start, stop)], axis=1)
            np.testing.assert_array_equal(weights[:, : stop - start], expected)
            assert not weights[:, stop - start :].any()
    monkeypatch.setattr(bootstrap, "_MAX_KEPT_BYTES", 20 * 128)  # one block
    again = PatientResamples(patients, replicates=300, seed=2)
    for _ in range(2):
        for (_, weights), (_, expected) in zip(again.blocks(), kept.blocks(), strict=True):
            np.testing.assert_array_equal(weights, expected)
    assert len(again._kept) == 1 and len(kept._kept) == 3


def test_same_seed_same_figures_whatever_the_threads_and_the_order_of_findings() -> None:
    logits, targets, mask, patients = cohort(2)
    first = area_estimates(PatientResamples(patients, 200, seed=7, threads=1), logits, targets, mask)
    second = area_estimates(PatientResamples(patients, 200, seed=7, threads=3), logits, targets, mask)
    assert first == second
    turned = area_estimates(
        PatientResamples(patients, 200, seed=7), logits[:, ::-1], targets[:, ::-1], mask[:, ::-1], [3, 2, 1, 0]
    )
    assert turned.auroc[::-1] == first.auroc and turned.auprc[::-1] == first.auprc
    other = area_estimates(PatientResamples(patients, 200, seed=8), logits, targets, mask)
    assert other.auroc[0].value == first.auroc[0].value and other.auroc[0].low != first.auroc[0].low


def test_more_replicates_begin_with_the_same_ones() -> None:
    logits, targets, mask, patients = cohort(3)
    few = area_replicates(PatientResamples(patients, 100), logits, targets, mask)
    many = area_replicates(PatientResamples(patients, 260), logits, targets, mask)
    np.testing.assert_array_equal(many[:, :, :100], few)


def test_the_order_of_samples_does_not_count() -> None:
    logits, targets, mask, patients = cohort(4)
    shuffled = np.random.default_rng(0).permutation(len(logits))
    plain = area_estimates(PatientResamples(patients, 100), logits, targets, mask)
    mixed = area_estimates(
        PatientResamples(patients[shuffled], 100), logits[shuffled], targets[shuffled], mask[shuffled]
    )
    assert plain == mixed


@pytest.mark.world_size(2)
def test_ranks_come_to_identical_figures() -> None:
    import torch.distributed as dist

    logits, targets, mask, patients = cohort(5)
    threads = 1 + dist.get_rank()
    mine = area_estimates(PatientResamples(patients, 200, threads=threads), logits, targets, mask)
    everyone: list[object] = [None, None]
    dist.all_gather_object(everyone, mine)
    assert everyone == [mine, mine]


def test_intervals_by_patient_are_wider_where_images_of_a_patient_resemble_each_other() -> None:
    one = cohort(6, num=120, patients=120, decimals=6)
    copies = Cohort(*(np.repeat(part, 6, axis=0) for part in one))
    width = []
    for ids in (copies.patient_id, np.arange(len(copies.patient_id))):
        found = area_estimates(PatientResamples(ids, 400), copies.logits_NC, copies.targets_NC, copies.mask_NC)
        width.append(found.auroc[0].high - found.auroc[0].low)
    assert width[0] / width[1] == pytest.approx(math.sqrt(6), rel=0.2)
    # Copies tell nothing new: the interval is that of one image a patient, draw by draw.
    alone = area_estimates(PatientResamples(one.patient_id, 400), one.logits_NC, one.targets_NC, one.mask_NC)
    again = area_estimates(
        PatientResamples(copies.patient_id, 400), copies.logits_NC, copies.targets_NC, copies.mask_NC
    )
    for left, right in zip(alone.auroc, again.auroc, strict=True):
        assert (left.low, left.high) == pytest.approx((right.low, right.high), abs=TOLERANCE)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """AUROC of N(0,1) against N(1,1) is Phi(1 / sqrt 2) = .7602."""
    truth, covered = 0.5 * (1 + math.erf(0.5)), 0
    rng = np.random.default_rng(0)
    for seed in range(100):
        targets = (rng.random((300, 1)) < 0.3).astype(np.uint8)
        logits = (rng.normal(size=(300, 1)) + targets).astype(np.float32)
        found = area_estimates(PatientResamples(np.arange(300), 200, seed), logits, targets, np.ones_like(targets))
        covered += found.auroc[0].low <= truth <= found.auroc[0].high
    assert 87 <= covered <= 100


@pytest.mark.parametrize("value", [0, 1])
def test_an_absent_class_is_none_with_the_reason_and_out_of_the_average(value: int) -> None:
    logits, targets, mask, patients = cohort(7)
    targets[:, 1] = value
    mask[:, 3] = 0
    found = area_estimates(PatientResamples(patients, 100), logits, targets, mask)
    num = int(mask[:, 1].sum())
    absent = "negatives" if value else "positives"
    assert found.auroc[1] == Estimate(None, None, None, f"no {absent} among {num} known labels")
    assert found.auprc[3] == Estimate(None, None, None, "no known labels")
    assert found.macro_columns == (0, 2)
    assert found.macro_auroc.low is not None and found.macro_auroc.low < found.macro_auroc.value
    nothing = area_estimates(PatientResamples(patients, 100), logits, targets, mask, macro_columns=[3])
    assert nothing.macro_auroc == Estimate(None, None, None, "undefined for all 1 named findings")
    assert nothing.macro_columns == ()
    unnamed = area_estimates(PatientResamples(patients, 100), logits, targets, mask, macro_columns=[])
    assert unnamed.macro_auroc.reason == "no findings are named for the average"


def test_replicates_without_a_class_are_left_out_and_counted() -> None:
    logits, targets, mask, patients = cohort(8, num=200, patients=50)
    ids = np.unique(patients)
    targets[:, 0], targets[:, 1] = patients == ids[0], np.isin(patients, ids[:4])
    mask[:] = 1
    resamples = PatientResamples(patients, 1000)
    missing = [int(sum(not resamples.weights(k)[:num].any() for k in range(1000))) for num in (1, 4)]
    found = area_estimates(resamples, logits, targets, mask)
    rare, fair = found.auroc[:2]
    assert rare.num_left_out == missing[0] > 300
    assert rare.value is not None and rare.low is None and rare.high is None
    assert rare.reason == f"undefined in {missing[0]} of 1000 resamples of the patients: too few cases"
    assert fair.num_left_out == missing[1] > 0
    assert fair.reason is None and fair.low is not None


def test_one_patient_has_no_interval() -> None:
    logits, targets, mask, patients = cohort(9)
    found = area_estimates(PatientResamples(np.full_like(patients, 7), 100), logits, targets, mask)
    for one in (*found.auroc, *found.auprc, found.macro_auroc):
        assert one.value is not None and one.low is None and one.high is None
        assert one.reason == "one patient only: patients can't be resampled"
    # One patient among the known labels of a finding is as bad as one patient in all.
    ids, counts = np.unique(patients, return_counts=True)
    only = patients == ids[counts.argmax()]
    mask[:, 0] = only
    targets[only, 0] = np.arange(only.sum()) % 2
    assert area_estimates(PatientResamples(patients, 100), logits, targets, mask).auroc[0].reason.startswith("one pat")


def test_no_samples_are_legal() -> None:
    logits, targets, mask, patients = (part[:0] for part in cohort())
    found = area_estimates(PatientResamples(patients, 100), logits, targets, mask)
    assert [one.reason for one in found.auroc] == ["no known labels"] * 4
    assert found.macro_auroc.reason == "undefined for all 4 named findings"


def test_constant_scores_are_worth_one_half_in_every_draw() -> None:
    _, targets, mask, patients = cohort(10)
    for value in (0.0, -0.0, 3.0):
        logits = np.full(targets.shape, value, dtype=np.float32)
        found = area_estimates(PatientResamples(patients, 100), logits, targets, mask)
        assert (found.auroc[0].low, found.auroc[0].value, found.auroc[0].high) == (0.5, 0.5, 0.5)


def test_both_zeros_and_the_whole_float32_range_rank_as_in_ranking() -> None:
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**32, size=600, dtype=np.uint64).astype(np.uint32).view(np.float32)
    logits = np.concatenate((bits[np.isfinite(bits)], np.float32([0, -0.0, 0, -0.0, 1e-45, -1e-45])))[:, None]
    targets = rng.integers(0, 2, size=logits.shape).astype(np.uint8)
    resamples = PatientResamples(np.arange(len(logits)) // 3, 20)
    areas = area_replicates(resamples, logits, targets, np.ones_like(targets))
    for replicate in range(20):
        rows = drawn_rows(resamples, replicate)
        assert areas[0, 0, replicate] == auroc(logits[rows, 0], targets[rows, 0])


def test_what_lies_under_an_unknown_label_does_not_count() -> None:
    logits, targets, mask, patients = cohort(11)
    expected = area_estimates(PatientResamples(patients, 100), logits, targets, mask)
    logits[mask == 0] = np.nan
    targets[mask == 0] = 9
    assert area_estimates(PatientResamples(patients, 100), logits, targets, mask) == expected


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_are_refused_with_their_rows(bad: float) -> None:
    logits, targets, mask, patients = cohort()
    mask[[3, 17]] = 1
    logits[3, 0] = logits[17, 2] = logits[17, 3] = bad
    with pytest.raises(ValueError, match=r"NaN or infinite in 2 of 400 rows: 3, 17$"):
        area_estimates(PatientResamples(patients, 10), logits, targets, mask)
    logits[:9] = bad
    with pytest.raises(ValueError, match=r"rows: 0, 1, 2, 3, 4, \.\.\.$"):
        area_estimates(PatientResamples(patients, 10), logits, targets, np.ones_like(mask))


def test_labels_other_than_0_1_and_unknown_are_refused_with_their_rows() -> None:
    logits, targets, mask, patients = cohort()
    mask[5], targets[5, 1] = 1, 2
    with pytest.raises(ValueError, match="targets other than 0 and 1 where the mask is 1 in 1 of 400 rows: 5"):
        area_replicates(PatientResamples(patients, 10), logits, targets, mask)
    targets[5, 1], mask[6, 0] = 1, 255
    with pytest.raises(ValueError, match="mask other than 0 and 1 in 1 of 400 rows: 6"):
        area_replicates(PatientResamples(patients, 10), logits, targets, mask)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c._replace(logits_NC=c.logits_NC.astype(np.float64)), "float32, got float64"),
        (lambda c: c._replace(logits_NC=c.logits_NC[:, 0]), r"must share one \[N, C\]"),
        (lambda c: c._replace(targets_NC=c.targets_NC.astype(np.int64)), "targets must be uint8 or bool"),
        (lambda c: c._replace(patient_id=c.patient_id[:-1]), "399 patient ids, but 400 rows"),
        (lambda c: c._replace(patient_id=c.patient_id.astype(np.float64)), "integers"),
    ],
)
def test_wrong_arrays_are_refused(change: object, message: str) -> None:
    logits, targets, mask, patients = change(cohort())  # type: ignore[operator]
    with pytest.raises(ValueError, match=message):
        area_estimates(PatientResamples(patients, 10), logits, targets, mask)


def test_wrong_settings_are_refused() -> None:
    logits, targets, mask, patients = cohort()
    with pytest.raises(ValueError, match="1 make no interval"):
        PatientResamples(patients, 1)
    with pytest.raises(ValueError, match="seed must be"):
        PatientResamples(patients, 10, seed=-1)
    with pytest.raises(ValueError, match="not all among the 4 findings"):
        area_estimates(PatientResamples(patients, 10), logits, targets, mask, macro_columns=[4])
    with pytest.raises(ValueError, match="repeat"):
        area_estimates(PatientResamples(patients, 10), logits, targets, mask, macro_columns=[1, 1])
    with pytest.raises(ValueError, match="between 0 and 1, got 95"):
        area_estimates(PatientResamples(patients, 10), logits, targets, mask, level=95)


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
