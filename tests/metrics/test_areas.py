"""AUROC and average precision with intervals: influences against finite differences, coverage, and the edges."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from cohort import Cohort, cohort, scored

from distcxr.metrics.areas import SAME_SCORE, Areas, area_estimates
from distcxr.metrics.degrees import MIN_PATIENTS
from distcxr.metrics.estimate import Estimate
from distcxr.metrics.influence import Spread, auprc_spread, auroc_spread, logit_interval, score_interval

TOLERANCE = 1e-12


def areas_of(data: Cohort, macro: list[str] | None = None) -> Areas:
    return area_estimates(scored(*data), macro)


@pytest.fixture(scope="module")
def simulation() -> ModuleType:
    """`benchmarks/interval_coverage.py`."""
    path = Path(__file__).parents[2] / "benchmarks" / "interval_coverage.py"
    spec = importlib.util.spec_from_file_location("simulated_coverage", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("decimals", [6, 1, 0], ids=["distinct", "ties", "nearly all tied"])
def test_a_patients_influence_is_the_derivative_by_its_weight(decimals: int) -> None:
    from sklearn.metrics import average_precision_score, roc_auc_score

    held = scored(*cohort(num=200, patients=30, findings=1, decimals=decimals))
    known = held.known[0]
    for make, reference in ((auroc_spread, roc_auc_score), (auprc_spread, average_precision_score)):
        spread = make(known, held.num_patients)
        for patient in (0, 7, 29):
            is_its_M = known.patient_M == patient
            by = [
                reference(known.targets_M, known.scores_M, sample_weight=1 + step * is_its_M) for step in (1e-4, -1e-4)
            ]
            assert spread.influence_P[patient] == pytest.approx((by[0] - by[1]) / 2e-4, rel=0.15, abs=2e-4)
        assert abs(spread.influence_P.sum()) < 0.05 * np.abs(spread.influence_P).sum()


def test_the_auroc_of_lone_images_has_delongs_variance() -> None:
    """But for the degrees of freedom of each class, n - 1 of n, which both take in."""
    from distcxr.metrics.delong import delong_interval

    data = cohort(3, num=3000, findings=1, decimals=6)
    held = scored(*data._replace(patient_id=np.arange(3000)))
    ours, delong = area_estimates(held).auroc[0], delong_interval(held.known[0])
    assert ours.high - ours.low == pytest.approx(delong.high - delong.low, rel=0.01)


@pytest.mark.parametrize("images", ["1", "1-10", "pareto"])
@pytest.mark.parametrize("patients", [10, 32])
def test_intervals_hold_the_truth_about_as_often_as_they_claim(
    simulation: ModuleType, patients: int, images: str
) -> None:
    """Of 150 data sets; percentiles of patient resamples hold it in .80 to .88 of those of ten patients."""
    for figure, truth in (("auroc", 0.75), ("auroc", 0.96), ("recall", 0.8)):
        found = simulation.measure((simulation.Case(figure, patients, images, truth), 150, 0))["distcxr"]
        assert found["given"] == 1 and found["coverage"] >= 0.9, (figure, truth)


def test_fewer_than_ten_positive_patients_have_no_interval() -> None:
    data = cohort(5, num=300, patients=100, findings=1)
    data.mask_NC[:] = 1
    for num, reason in ((9, f"9 positive patients: an interval needs {MIN_PATIENTS}"), (10, None)):
        data.targets_NC[:, 0] = np.isin(data.patient_id, np.unique(data.patient_id)[:num])
        found = areas_of(data)
        for one in (found.auroc[0], found.auprc[0]):
            assert one.value is not None and one.reason == reason and (one.low is None) == (num == 9)


@pytest.mark.parametrize("patients", [10, 40])
def test_classes_apart_have_a_lower_bound(patients: int) -> None:
    targets = (np.arange(300) < patients).astype(np.uint8)[:, None]
    scores = targets + np.random.default_rng(0).random((300, 1))
    found = areas_of(Cohort(scores.astype(np.float32), targets, np.ones_like(targets), np.arange(300)))
    assert found.auroc[0].value == found.auroc[0].high == 1
    assert 0.8 < found.auroc[0].low < 0.99
    assert (
        found.auprc[0].value == 1 and found.auprc[0].low is None and "no two patients differ" in found.auprc[0].reason
    )


def test_no_interval_has_no_width() -> None:
    for value in (0.0, 1e-9, 0.5, 1 - 1e-9, 1.0):
        low, high = score_interval(Spread(value, np.zeros(3), 0.0, 6.0, 0.01), of_ranks=True)
        assert low <= value <= high and high - low > 1e-3


def test_the_average_rests_on_what_patients_share() -> None:
    """Two findings with the same scores and labels have one finding's interval; independent ones a narrower one."""
    data = cohort(6, num=1200, patients=400, findings=2, decimals=6)
    data.mask_NC[:] = 1
    apart = areas_of(data).macro_auroc
    data.targets_NC[:, 1], data.logits_NC[:, 1] = data.targets_NC[:, 0], data.logits_NC[:, 0]
    found = areas_of(data)
    one, both = found.auroc[0], found.macro_auroc
    assert both.high - both.low == pytest.approx(one.high - one.low, rel=0.02)
    assert apart.high - apart.low < 0.9 * (one.high - one.low)


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
    mine = areas_of(Cohort(logits, targets, mask, patients))
    everyone: list[object] = [None, None]
    dist.all_gather_object(everyone, mine)
    assert everyone == [mine, mine]


def test_intervals_by_patient_are_wider_where_images_of_a_patient_resemble_each_other() -> None:
    one = cohort(6, num=120, patients=120, decimals=6)
    copies = Cohort(*(np.repeat(part, 6, axis=0) for part in one))
    width = []
    for ids in (copies.patient_id, np.arange(len(copies.patient_id))):
        found = areas_of(copies._replace(patient_id=ids))
        width.append(found.auroc[0].high - found.auroc[0].low)
    assert width[0] / width[1] == pytest.approx(math.sqrt(6), rel=0.2)
    # Copies add no information. The interval is a little narrower than that of one image a patient, because the model's
    # part of the variance takes images of a patient for less alike.
    alone = areas_of(one)
    again = areas_of(copies)
    for left, right in zip(alone.auroc, again.auroc, strict=True):
        assert right.high - right.low == pytest.approx(left.high - left.low, rel=0.15)


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


def test_one_patient_has_no_interval() -> None:
    logits, targets, mask, patients = cohort(9)
    found = areas_of(Cohort(logits, targets, mask, np.full_like(patients, 7)))
    for one in (*found.auroc, *found.auprc, found.macro_auroc):
        assert one.value is not None and one.low is None and one.high is None
        assert one.reason.startswith("one patient only")
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


def test_constant_scores_are_worth_one_half_without_an_interval() -> None:
    _, targets, mask, patients = cohort(10)
    for value in (0.0, -0.0, 3.0):
        logits = np.full(targets.shape, value, dtype=np.float32)
        found = areas_of(Cohort(logits, targets, mask, patients))
        assert (found.auroc[0].low, found.auroc[0].value, found.auroc[0].reason) == (None, 0.5, SAME_SCORE)


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


def test_averages_of_other_findings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\['Z'\] are not scored"):
        areas_of(cohort(), ["Z"])
    with pytest.raises(ValueError, match="repeat"):
        areas_of(cohort(), ["B", "B"])


def test_an_interval_of_hardly_any_information_is_nearly_everything() -> None:
    """And no overflow."""
    low, high = logit_interval(Spread(1e-3, np.array([0.5, -0.5]), 0.5, 1.0))
    assert 0 <= low < 1e-9 and 1 - 1e-9 < high <= 1
