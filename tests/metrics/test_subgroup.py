"""Groups, their scores against the samples cut out by hand, differences, and the edges."""

from __future__ import annotations

import numpy as np
import pytest
from cohort import Cohort, auroc, cohort, scored

from distcxr.metrics.bootstrap import PatientResamples, area_estimates
from distcxr.metrics.subgroup import MACRO, Grouping, Subgroups, by_age, by_images_per_patient, by_name, score_subgroups

FINDINGS = ("A", "B", "C", "D")


def names_of(grouping: Grouping) -> list[str]:
    return [grouping.groups[number] for number in grouping.group_N]


def halves(found: Cohort, share: float = 0.5) -> Grouping:
    rng = np.random.default_rng(0)
    return by_name("sex", np.where(rng.random(len(found.patient_id)) < share, "F", "M"))


def score(found: Cohort, *groupings: Grouping, replicates: int = 200, threads: int = 2) -> Subgroups:
    held = scored(*found)
    resamples = PatientResamples(held.num_patients, replicates, seed=1, threads=threads)
    return score_subgroups(resamples, held, groupings)


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
    whole = area_estimates(PatientResamples(held.num_patients, 200, seed=1), held)
    scores = score(found, everyone).scores
    assert tuple(one.auroc for one in scores[:-1]) == whole.auroc
    assert scores[-1].auroc == whole.macro_auroc


def test_same_figures_whatever_the_threads() -> None:
    found = cohort(3)
    groups = halves(found), by_images_per_patient(found.patient_id)
    assert score(found, *groups, threads=1) == score(found, *groups, threads=3)


@pytest.mark.parametrize(("lower", "higher"), ["FM", "MF"])
def test_a_planted_difference_is_named_and_no_other(lower: str, higher: str) -> None:
    found = cohort(4, num=1500, patients=1500, decimals=6)
    sexes = halves(found)
    harmed = sexes.group_N == sexes.groups.index(lower)
    rng = np.random.default_rng(1)
    found.logits_NC[harmed, 1] = rng.normal(size=harmed.sum())  # worthless for them
    subgroups = score(found, sexes)
    assert [(one.attribute, one.finding) for one in subgroups.differences] == [("sex", "B"), ("sex", MACRO)]
    first = subgroups.differences[0]
    assert (first.lower.group, first.higher.group) == (lower, higher)
    assert first.lower.auroc.high < first.higher.auroc.low
    assert subgroups.num_pairs == 5


def test_groups_alike_seldom_differ() -> None:
    """Disjoint 95 % intervals of two independent groups of equal size: about 1 in 200."""
    count = pairs = 0
    for seed in range(20):
        found = cohort(10 + seed, num=300, patients=300)
        subgroups = score(found, halves(found), replicates=100)
        count += len(subgroups.differences)
        pairs += subgroups.num_pairs
    assert pairs == 100
    assert count <= 6


def test_averages_of_different_findings_are_not_compared() -> None:
    found = cohort(5, num=1500, patients=1500)
    sexes = halves(found)
    women = sexes.group_N == 0
    found.targets_NC[women, 0] = 0
    found.logits_NC[women] = 0  # one half everywhere: each area differs
    subgroups = score(found, sexes)
    assert {one.finding for one in subgroups.differences} == {"B", "C", "D"}
    assert subgroups.num_pairs == 3
    absent = next(one for one in subgroups.scores if (one.group, one.finding) == ("F", "A"))
    assert absent.auroc.value is None and absent.auroc.reason.startswith("no positives")
    macro = next(one for one in subgroups.scores if (one.group, one.finding) == ("F", MACRO))
    assert macro.macro_findings == ("B", "C", "D")


def test_small_groups_have_values_without_intervals() -> None:
    found = cohort(6)
    ids, counts = np.unique(found.patient_id, return_counts=True)
    ages = np.where(found.patient_id == ids[counts.argmax()], 10, 50).astype(np.float32)
    found.targets_NC[ages == 10] = (np.arange((ages == 10).sum()) % 2)[:, None]
    found.mask_NC[:] = 1
    subgroups = score(found, by_age(ages))
    young = [one for one in subgroups.scores if one.group == "0-17"]
    assert {one.num_patients for one in young} == {1}
    assert {one.auroc.reason for one in young} == {"one patient only: patients can't be resampled"}
    assert all(one.auroc.value is not None and one.auroc.low is None for one in young)
    assert subgroups.num_pairs == 0 and subgroups.differences == ()


@pytest.mark.parametrize(("num_positive", "named"), [(2, False), (9, False), (10, True)])
def test_groups_with_a_handful_of_positives_are_not_compared(num_positive: int, named: bool) -> None:
    """Perfect in one group, worthless in the other: two perfect positives give the interval 1 to 1."""
    rng = np.random.default_rng(5)
    num = 400
    targets = (rng.random(num) < 0.4).astype(np.uint8)
    small = np.arange(num) < 60
    targets[small] = np.arange(60) < num_positive
    scores = np.where(small, targets * 5.0, 0) + rng.normal(size=num) * np.where(small, 0.01, 1)
    held = Cohort(scores[:, None].astype(np.float32), targets[:, None], np.ones((num, 1), np.uint8), np.arange(num))
    found = score(held, by_name("view", np.where(small, "AP", "PA")))
    assert [one.finding for one in found.differences if one.finding == "A"] == ["A"] * named


def test_no_samples_no_groups() -> None:
    nobody = Cohort(*(part[:0] for part in cohort()))
    assert score(nobody, by_age(np.float32([]))) == Subgroups((), (), 0)


def test_bad_arguments_are_refused() -> None:
    found = cohort(7)
    with pytest.raises(ValueError, match="sex: 399 values for 400 samples"):
        score(found, by_name("sex", np.full(399, "M")))
    held = scored(*found)
    with pytest.raises(ValueError, match="draws are of 3 patients"):
        score_subgroups(PatientResamples(3, 10), held, [halves(found)])


def test_a_finding_with_scores_that_are_not_finite_has_no_samples_in_any_group() -> None:
    found = cohort(8)
    found.mask_NC[2], found.logits_NC[2, 0] = 1, np.nan
    for one in score(found, halves(found)).scores:
        assert (one.num == 0 and one.auroc.value is None) == (one.finding == "A")
        assert one.finding != MACRO or one.macro_findings == ("B", "C", "D")
