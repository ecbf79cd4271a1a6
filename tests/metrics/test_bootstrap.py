"""The patient-level bootstrap against scikit-learn on resamples made by hand, its draws, and the edges."""

from __future__ import annotations

import math

import numpy as np
import pytest
from cohort import Cohort, auprc, auroc, auroc_per_finding, cohort, scored
from numpy.typing import NDArray

from distcxr.metrics import bootstrap
from distcxr.metrics.bootstrap import Areas, PatientResamples, area_estimates, area_replicates
from distcxr.metrics.estimate import Estimate, average, average_replicates, estimate
from distcxr.metrics.scored import Scored

TOLERANCE = 1e-12


def drawn_rows(resamples: PatientResamples, held: Scored, replicate: int) -> NDArray[np.int64]:
    """Rows of one replicate, written out: every image of every patient drawn, as often as drawn."""
    return np.repeat(np.arange(len(held)), resamples.weights(replicate)[held.patient_N])


def areas_of(
    data: Cohort, replicates: int = 100, seed: int = 0, threads: int | None = None, macro: list[str] | None = None
) -> Areas:
    held = scored(*data)
    return area_estimates(PatientResamples(held.num_patients, replicates, seed, threads), held, macro)


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


def test_the_interval_is_that_of_a_plain_loop() -> None:
    logits, targets, mask, patients = cohort(1)
    held = scored(logits, targets, mask, patients)
    resamples = PatientResamples(held.num_patients, replicates=300, seed=1)
    areas = area_estimates(resamples, held, ["A", "C"])
    by_hand = np.empty((300, 4))
    for replicate in range(300):
        rows = drawn_rows(resamples, held, replicate)
        by_hand[replicate] = auroc_per_finding(logits[rows], targets[rows], mask[rows])
    for column, found in enumerate(areas.auroc):
        keep = mask[:, column] == 1
        assert found.value == auroc(logits[keep, column], targets[keep, column])
        assert areas.auprc[column].value == auprc(logits[keep, column], targets[keep, column])
        assert (found.low, found.high) == pytest.approx(np.percentile(by_hand[:, column], [2.5, 97.5]), abs=TOLERANCE)
        assert found.reason is None and found.num_left_out == 0
    macro = by_hand[:, [0, 2]].mean(axis=1)
    assert areas.macro_findings == ("A", "C")
    assert areas.macro_auroc.value == pytest.approx((areas.auroc[0].value + areas.auroc[2].value) / 2, abs=TOLERANCE)
    assert (areas.macro_auroc.low, areas.macro_auroc.high) == pytest.approx(
        np.percentile(macro, [2.5, 97.5]), abs=TOLERANCE
    )


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


def test_same_seed_same_figures_whatever_the_threads_and_the_order_of_findings() -> None:
    logits, targets, mask, patients = cohort(2)
    first = areas_of(Cohort(logits, targets, mask, patients), 200, 7, 1)
    second = areas_of(Cohort(logits, targets, mask, patients), 200, 7, 3)
    assert first == second
    turned = areas_of(Cohort(logits[:, ::-1], targets[:, ::-1], mask[:, ::-1], patients), 200, 7, macro=list("DCBA"))
    assert turned.auroc[::-1] == first.auroc and turned.auprc[::-1] == first.auprc
    other = areas_of(Cohort(logits, targets, mask, patients), 200, 8)
    assert other.auroc[0].value == first.auroc[0].value and other.auroc[0].low != first.auroc[0].low


def test_more_replicates_begin_with_the_same_ones() -> None:
    held = scored(*cohort(3))
    few = area_replicates(PatientResamples(held.num_patients, 100), held)
    many = area_replicates(PatientResamples(held.num_patients, 260), held)
    np.testing.assert_array_equal(many[:, :, :100], few)


def test_the_order_of_samples_does_not_count() -> None:
    logits, targets, mask, patients = cohort(4)
    shuffled = np.random.default_rng(0).permutation(len(logits))
    plain = areas_of(Cohort(logits, targets, mask, patients))
    mixed = areas_of(Cohort(logits[shuffled], targets[shuffled], mask[shuffled], patients[shuffled]))
    assert plain == mixed


@pytest.mark.world_size(2)
def test_ranks_come_to_identical_figures() -> None:
    import torch.distributed as dist

    logits, targets, mask, patients = cohort(5)
    threads = 1 + dist.get_rank()
    mine = areas_of(Cohort(logits, targets, mask, patients), 200, threads=threads)
    everyone: list[object] = [None, None]
    dist.all_gather_object(everyone, mine)
    assert everyone == [mine, mine]


def test_intervals_by_patient_are_wider_where_images_of_a_patient_resemble_each_other() -> None:
    one = cohort(6, num=120, patients=120, decimals=6)
    copies = Cohort(*(np.repeat(part, 6, axis=0) for part in one))
    width = []
    for ids in (copies.patient_id, np.arange(len(copies.patient_id))):
        found = areas_of(copies._replace(patient_id=ids), 400)
        width.append(found.auroc[0].high - found.auroc[0].low)
    assert width[0] / width[1] == pytest.approx(math.sqrt(6), rel=0.2)
    # Copies add no information: the interval is that of one image a patient, draw by draw.
    alone = areas_of(one, 400)
    again = areas_of(copies, 400)
    for left, right in zip(alone.auroc, again.auroc, strict=True):
        assert (left.low, left.high) == pytest.approx((right.low, right.high), abs=TOLERANCE)


def test_the_interval_covers_the_truth_about_as_often_as_its_level() -> None:
    """AUROC of N(0,1) against N(1,1) is Phi(1 / sqrt 2) = .7602."""
    truth, covered = 0.5 * (1 + math.erf(0.5)), 0
    rng = np.random.default_rng(0)
    for seed in range(100):
        targets = (rng.random((300, 1)) < 0.3).astype(np.uint8)
        logits = (rng.normal(size=(300, 1)) + targets).astype(np.float32)
        found = areas_of(Cohort(logits, targets, np.ones_like(targets), np.arange(300)), 200, seed)
        covered += found.auroc[0].low <= truth <= found.auroc[0].high
    assert 87 <= covered <= 100


@pytest.mark.parametrize("value", [0, 1])
def test_an_absent_class_is_none_with_the_reason_and_out_of_the_average(value: int) -> None:
    logits, targets, mask, patients = cohort(7)
    targets[:, 1] = value
    mask[:, 3] = 0
    found = areas_of(Cohort(logits, targets, mask, patients))
    num = int(mask[:, 1].sum())
    absent = "negatives" if value else "positives"
    assert found.auroc[1] == Estimate(None, None, None, f"no {absent} among {num} known labels")
    assert found.auprc[3] == Estimate(None, None, None, "no known labels")
    assert found.macro_findings == ("A", "C")
    assert found.macro_auroc.low is not None and found.macro_auroc.low < found.macro_auroc.value
    nothing = areas_of(Cohort(logits, targets, mask, patients), macro=["D"])
    assert nothing.macro_auroc == Estimate(None, None, None, "undefined for all 1 named findings")
    assert nothing.macro_findings == ()
    unnamed = areas_of(Cohort(logits, targets, mask, patients), macro=[])
    assert unnamed.macro_auroc.reason == "no findings are named for the average"


def test_replicates_without_a_class_are_left_out_and_counted() -> None:
    logits, targets, mask, patients = cohort(8, num=200, patients=50)
    ids = np.unique(patients)
    targets[:, 0], targets[:, 1] = patients == ids[0], np.isin(patients, ids[:4])
    mask[:] = 1
    held = scored(logits, targets, mask, patients)
    resamples = PatientResamples(held.num_patients, 1000)
    missing = [int(sum(not resamples.weights(k)[:num].any() for k in range(1000))) for num in (1, 4)]
    found = area_estimates(resamples, held)
    rare, fair = found.auroc[:2]
    assert rare.num_left_out == missing[0] > 300
    assert rare.value is not None and rare.low is None and rare.high is None
    assert rare.reason == f"undefined in {missing[0]} of 1000 resamples of the patients: too few cases"
    assert fair.num_left_out == missing[1] > 0
    assert fair.reason is None and fair.low is not None


def test_one_patient_has_no_interval() -> None:
    logits, targets, mask, patients = cohort(9)
    found = areas_of(Cohort(logits, targets, mask, np.full_like(patients, 7)))
    for one in (*found.auroc, *found.auprc, found.macro_auroc):
        assert one.value is not None and one.low is None and one.high is None
        assert one.reason == "one patient only: patients can't be resampled"
    # One patient among the known labels of a finding is as bad as one patient in all.
    ids, counts = np.unique(patients, return_counts=True)
    only = patients == ids[counts.argmax()]
    mask[:, 0] = only
    targets[only, 0] = np.arange(only.sum()) % 2
    assert areas_of(Cohort(logits, targets, mask, patients)).auroc[0].reason.startswith("one pat")


def test_no_samples_are_legal() -> None:
    logits, targets, mask, patients = (part[:0] for part in cohort())
    found = areas_of(Cohort(logits, targets, mask, patients))
    assert [one.reason for one in found.auroc] == ["no known labels"] * 4
    assert found.macro_auroc.reason == "undefined for all 4 named findings"


def test_constant_scores_are_worth_one_half_in_every_draw() -> None:
    _, targets, mask, patients = cohort(10)
    for value in (0.0, -0.0, 3.0):
        logits = np.full(targets.shape, value, dtype=np.float32)
        found = areas_of(Cohort(logits, targets, mask, patients))
        assert (found.auroc[0].low, found.auroc[0].value, found.auroc[0].high) == (0.5, 0.5, 0.5)


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


def test_what_lies_under_an_unknown_label_does_not_count() -> None:
    logits, targets, mask, patients = cohort(11)
    expected = areas_of(Cohort(logits, targets, mask, patients))
    logits[mask == 0] = np.nan
    targets[mask == 0] = 9
    assert areas_of(Cohort(logits, targets, mask, patients)) == expected


def test_scores_that_are_not_finite_leave_the_finding_without_areas() -> None:
    data = cohort()
    data.mask_NC[3, 0], data.logits_NC[3, 0] = 1, np.nan
    found = areas_of(data)
    assert found.auroc[0] == Estimate(None, None, None, f"1 of {data.mask_NC[:, 0].sum()} logits are not finite")
    assert found.macro_findings == ("B", "C", "D") and found.auroc[1] == areas_of(cohort()).auroc[1]


def test_wrong_settings_are_refused() -> None:
    held = scored(*cohort())
    with pytest.raises(ValueError, match="1 make no interval"):
        PatientResamples(9, 1)
    with pytest.raises(ValueError, match="seed must be"):
        PatientResamples(9, 10, seed=-1)
    resamples = PatientResamples(held.num_patients, 10)
    with pytest.raises(ValueError, match=r"\['Z'\] are not scored"):
        area_estimates(resamples, held, ["Z"])
    with pytest.raises(ValueError, match="repeat"):
        area_estimates(resamples, held, ["B", "B"])
    for one_off in (held.num_patients - 1, held.num_patients + 1):
        with pytest.raises(ValueError, match=f"draws are of {one_off} patients, but {held.num_patients} were scored"):
            area_estimates(PatientResamples(one_off, 10), held)


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
