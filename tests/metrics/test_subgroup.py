"""Groups, their scores against the samples cut out by hand, differences, and the edges."""

from __future__ import annotations

import numpy as np
import pytest
from cohort import Cohort, auroc, cohort, scored

from distcxr.metrics.areas import area_estimates
from distcxr.metrics.calibration import probabilities
from distcxr.metrics.group_tests import MIN_COMPARED, adjusted
from distcxr.metrics.subgroup import MACRO, Grouping, Subgroups, by_age, by_images_per_patient, by_name, score_subgroups

FINDINGS = ("A", "B", "C", "D")


def names_of(grouping: Grouping) -> list[str]:
    return [grouping.groups[number] for number in grouping.group_N]


def halves(found: Cohort, share: float = 0.5) -> Grouping:
    rng = np.random.default_rng(0)
    return by_name("sex", np.where(rng.random(len(found.patient_id)) < share, "F", "M"))


def score(found: Cohort, *groupings: Grouping, thresholds: list[float | None] | None = None) -> Subgroups:
    return score_subgroups(scored(*found), groupings, threshold_C=thresholds)


def test_age_bands() -> None:
    ages = np.float32([0, 17.99, 18, 39, 40, 59.5, 60, 79, 80, 120, np.nan, -1])
    expected = ["0-17"] * 2 + ["18-39"] * 2 + ["40-59"] * 2 + ["60-79"] * 2 + ["80+"] * 2 + ["unknown"] * 2
    assert names_of(by_age(ages)) == expected
    assert by_age(ages[2:4]).groups == ("18-39",)
    assert by_age(np.float32([])).groups == ()


def test_names_in_alphabetical_order_and_unknown_last() -> None:
    names = np.array(["PA", "", "AP", "PA"])
    found = by_name("view", names)
    assert found.groups == ("AP", "PA", "unknown") and found.attribute == "view"
    assert names_of(found) == ["PA", "unknown", "AP", "PA"]
    assert by_name("view", np.array(["", ""])).groups == ("unknown",)
    assert by_name("sex", np.array([], dtype="<U1")).groups == ()


def test_images_per_patient() -> None:
    patients = np.repeat([40, 10, 30, 20, 50], [1, 2, 5, 6, 9])
    found = by_images_per_patient(np.random.default_rng(0).permutation(patients))
    assert found.groups == ("1", "2-5", "6+")
    assert np.bincount(found.group_N).tolist() == [1, 7, 15]
    assert names_of(by_images_per_patient(patients)) == ["1"] + ["2-5"] * 7 + ["6+"] * 15


def test_a_group_scores_what_its_samples_alone_score() -> None:
    found = cohort(1)
    sexes = halves(found, 0.3)
    scores = score(found, sexes).scores
    assert [(one.group, one.finding) for one in scores] == [(g, f) for g in "FM" for f in (*FINDINGS, MACRO)]
    for one in scores:
        inside = sexes.group_N == sexes.groups.index(one.group)
        if one.finding == MACRO:
            assert one.macro_findings == FINDINGS
            areas = [other.auroc.value for other in scores if other.group == one.group and other.finding != MACRO]
            assert one.auroc.value == pytest.approx(np.mean(areas), abs=1e-12)
            assert one.num == inside.sum()
            assert one.num_patients == len(set(found.patient_id[inside]))
            continue
        column = FINDINGS.index(one.finding)
        keep = inside & (found.mask_NC[:, column] == 1)
        targets = found.targets_NC[keep, column]
        assert one.auroc.value == auroc(found.logits_NC[keep, column], targets)
        assert (one.num, one.num_positive) == (keep.sum(), targets.sum())
        assert one.num_patients == len(set(found.patient_id[keep]))
        assert one.auroc.low < one.auroc.value < one.auroc.high


def test_one_group_of_all_is_the_whole_split() -> None:
    found = cohort(2)
    everyone = by_name("view", np.full(len(found.patient_id), "PA"))
    held = scored(*found)
    whole = area_estimates(held)
    scores = score(found, everyone).scores
    assert tuple(one.auroc for one in scores[:-1]) == whole.auroc
    assert scores[-1].auroc == whole.macro_auroc


@pytest.mark.parametrize(("lower", "higher"), ["FM", "MF"])
def test_a_planted_difference_is_named_and_no_other(lower: str, higher: str) -> None:
    found = cohort(4, num=1500, patients=1500, decimals=6)
    sexes = halves(found)
    harmed = sexes.group_N == sexes.groups.index(lower)
    rng = np.random.default_rng(1)
    found.logits_NC[harmed, 1] = rng.normal(size=harmed.sum())  # worthless for them
    subgroups = score(found, sexes)
    assert {(one.attribute, one.finding) for one in subgroups.differences} == {("sex", "B"), ("sex", MACRO)}
    first = next(one for one in subgroups.differences if one.finding == "B")
    assert (first.lower.group, first.higher.group) == (lower, higher)
    assert first.difference.value == first.higher.auroc.value - first.lower.auroc.value
    assert 0 < first.difference.low < first.difference.value < first.difference.high
    assert first.p < first.p_adjusted < 0.05 and len(subgroups.tested) == 5


def test_groups_alike_seldom_differ() -> None:
    """A report of 25 tests, at 5 % for all of them: intervals that don't meet named 1 in 200 pairs."""
    named = []
    for seed in range(40):
        found = cohort(10 + seed, num=400, patients=200)
        thirds = by_name("view", np.array(["AP", "LL", "PA"])[np.arange(len(found.patient_id)) % 3])
        subgroups = score(found, halves(found), thirds)
        assert len(subgroups.tested) >= 4
        named.append(len(subgroups.differences) > 0)
    assert sum(named) <= 5


def test_patients_in_both_groups_are_one_patient() -> None:
    """Two views of a patient with the same scores: nothing differs, however many there are of them."""
    one = cohort(3, num=300, patients=100, findings=1, decimals=6)
    both = Cohort(*(np.repeat(part, 2, axis=0) for part in one))
    found = score(both, by_name("view", np.tile(["AP", "PA"], 300)))
    assert [(test.p, test.difference.value) for test in found.tested] == [(1.0, 0.0)]
    noise = np.random.default_rng(0).normal(size=both.logits_NC.shape, scale=0.01)
    near = score(
        both._replace(logits_NC=(both.logits_NC + noise).astype(np.float32)),
        by_name("view", np.tile(["AP", "PA"], 300)),
    )
    apart = area_estimates(scored(*one)).auroc[0]
    test = near.tested[0]
    assert test.difference.high - test.difference.low < 0.5 * (apart.high - apart.low)


def test_averages_are_compared_over_what_both_groups_have() -> None:
    found = cohort(5, num=1500, patients=1500)
    sexes = halves(found)
    women = sexes.group_N == 0
    found.targets_NC[women, 0] = 0
    found.logits_NC[women] = 0.1 * np.random.default_rng(0).normal(size=(women.sum(), 4))  # about one half everywhere
    subgroups = score(found, sexes)
    assert {one.finding for one in subgroups.differences} == {"B", "C", "D", MACRO}
    assert next(one for one in subgroups.tested if one.finding == MACRO).macro_findings == ("B", "C", "D")
    absent = next(one for one in subgroups.scores if (one.group, one.finding) == ("F", "A"))
    assert absent.auroc.value is None and absent.auroc.reason.startswith("no positives")


def test_a_group_of_one_patient_has_values_and_no_intervals() -> None:
    found = cohort(6)
    ids, counts = np.unique(found.patient_id, return_counts=True)
    ages = np.where(found.patient_id == ids[counts.argmax()], 10, 50).astype(np.float32)
    found.targets_NC[ages == 10] = (np.arange((ages == 10).sum()) % 2)[:, None]
    found.mask_NC[:] = 1
    subgroups = score(found, by_age(ages), thresholds=[0.0, 0.0, None, 0.0])
    young = [one for one in subgroups.scores if one.group == "0-17"]
    assert {one.num_patients for one in young} == {1}
    assert all(one.auroc.value is not None and one.auroc.low is None and one.auroc.reason for one in young)
    assert young[0].rates["recall"].low is None and young[0].gap.low is None
    assert subgroups.tested == subgroups.differences == ()


@pytest.mark.parametrize(("num_patients", "is_tested"), [(MIN_COMPARED - 1, False), (MIN_COMPARED, True)])
def test_groups_with_few_positive_patients_are_not_compared(num_patients: int, is_tested: bool) -> None:
    """Three images each: it is patients that count. Perfect in one group, worthless in the other."""
    rng = np.random.default_rng(5)
    num = 600
    targets = (rng.random(num) < 0.4).astype(np.uint8)
    small = np.arange(num) < 180
    targets[small] = np.arange(180) < 3 * num_patients
    scores = np.where(small, targets * 5.0, 0) + rng.normal(size=num) * np.where(small, 0.01, 1)
    held = Cohort(
        scores[:, None].astype(np.float32), targets[:, None], np.ones((num, 1), np.uint8), np.arange(num) // 3
    )
    found = score(held, by_name("view", np.where(small, "AP", "PA")))
    assert [one.finding for one in found.differences] == ["A"] * is_tested and len(found.tested) == is_tested


def test_recall_specificity_and_calibration_by_group() -> None:
    found = cohort(7)
    sexes = halves(found)
    for one in score(found, sexes, thresholds=[0.2] * 4).scores:
        if one.finding == MACRO:
            continue
        column = FINDINGS.index(one.finding)
        keep = (sexes.group_N == sexes.groups.index(one.group)) & (found.mask_NC[:, column] == 1)
        targets, logits = found.targets_NC[keep, column], found.logits_NC[keep, column]
        called = logits >= np.float32(0.2)
        assert one.rates["recall"].value == pytest.approx(called[targets == 1].mean(), abs=1e-12)
        assert one.rates["specificity"].value == pytest.approx((~called)[targets == 0].mean(), abs=1e-12)
        assert one.mean_prob == pytest.approx(probabilities(logits).mean(), abs=1e-12)
        assert one.gap.value == pytest.approx(targets.mean() - probabilities(logits).mean(), abs=1e-12)
        assert one.gap.low < one.gap.value < one.gap.high
        patients = found.patient_id[keep]
        assert one.num_positive_patients == len(set(patients[targets == 1]))


def test_holms_correction() -> None:
    """Against R's `p.adjust(c(.01, .04, .03, .005), "holm")`."""
    from dataclasses import replace

    pair = score(cohort(4, num=900, patients=900), halves(cohort(4, num=900, patients=900))).tested[0]
    found = adjusted([replace(pair, p=p) for p in (0.01, 0.04, 0.03, 0.005)])
    assert [one.p_adjusted for one in found] == pytest.approx([0.02, 0.03, 0.06, 0.06])


def test_no_samples_no_groups() -> None:
    nobody = Cohort(*(part[:0] for part in cohort()))
    assert score(nobody, by_age(np.float32([]))) == Subgroups((), ())


def test_bad_arguments_are_refused() -> None:
    found = cohort(7)
    with pytest.raises(ValueError, match="sex: 399 values for 400 samples"):
        score(found, by_name("sex", np.full(399, "M")))


def test_a_finding_with_scores_that_are_not_finite_has_no_samples_in_any_group() -> None:
    found = cohort(8)
    found.mask_NC[2], found.logits_NC[2, 0] = 1, np.nan
    for one in score(found, halves(found)).scores:
        assert (one.num == 0 and one.auroc.value is None) == (one.finding == "A")
        assert one.finding != MACRO or one.macro_findings == ("B", "C", "D")
