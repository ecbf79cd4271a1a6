"""Paired differences against a plain loop, under no difference and a real one, and at the edges."""

from __future__ import annotations

import numpy as np
import pytest
from cohort import Cohort, auroc_per_finding, cohort, known, scored
from numpy.typing import NDArray

from distcxr.metrics.areas import area_estimates
from distcxr.metrics.bootstrap import PatientResamples
from distcxr.metrics.delong import delong_p_value
from distcxr.metrics.paired_tests import Comparison, compare_models


def second(found: Cohort, noise: float = 0.7, seed: int = 99) -> NDArray[np.float32]:
    """Logits of a model that resembles the first."""
    rng = np.random.default_rng(seed)
    return (found.logits_NC + noise * rng.normal(size=found.logits_NC.shape)).round(1).astype(np.float32)


def compared(found: Cohort, logits_b: NDArray[np.float32], replicates: int = 200, **more: object) -> Comparison:
    a, b = scored(*found), scored(*found._replace(logits_NC=logits_b))
    return compare_models(PatientResamples(a.num_patients, replicates, seed=1), a, b, **more)


def test_equals_a_plain_paired_loop() -> None:
    found = cohort(1)
    other = second(found)
    result = compared(found, other, macro_findings=["B", "D"])
    patient_N = scored(*found).patient_N
    resamples = PatientResamples(patient_N.max() + 1, 200, seed=1)
    differences = np.empty((200, 4))
    for replicate in range(200):
        rows = np.repeat(np.arange(400), resamples.weights(replicate)[patient_N])
        areas = [
            np.array(auroc_per_finding(logits[rows], found.targets_NC[rows], found.mask_NC[rows]), dtype=float)
            for logits in (found.logits_NC, other)
        ]
        differences[replicate] = areas[0] - areas[1]
    points = [auroc_per_finding(logits, found.targets_NC, found.mask_NC) for logits in (found.logits_NC, other)]
    for column, one in enumerate(result.findings):
        assert (one.auroc_a, one.auroc_b) == (points[0][column], points[1][column])
        assert one.difference.value == points[0][column] - points[1][column]
        ends = np.percentile(differences[:, column], [2.5, 97.5])
        assert (one.difference.low, one.difference.high) == pytest.approx(ends, abs=1e-12)
        smaller = min((differences[:, column] <= 0).sum(), (differences[:, column] >= 0).sum())
        assert one.p == min(1, 2 * (smaller + 1) / 201)
        keep = found.mask_NC[:, column] == 1
        models = [known(logits[keep, column], found.targets_NC[keep, column]) for logits in (found.logits_NC, other)]
        assert one.p_delong == delong_p_value(*models)
    macro = differences[:, [1, 3]].mean(axis=1)
    assert result.macro_findings == ("B", "D") and result.macro.p_delong is None
    assert result.macro.difference.value == pytest.approx(
        np.mean([result.findings[column].difference.value for column in (1, 3)]), abs=1e-12
    )
    assert (result.macro.difference.low, result.macro.difference.high) == pytest.approx(
        np.percentile(macro, [2.5, 97.5]), abs=1e-12
    )


def test_turning_the_models_round_turns_the_sign() -> None:
    found = cohort(2)
    other = second(found)
    there = compared(found, other)
    back = compared(found._replace(logits_NC=other), found.logits_NC)
    for one, two in zip((*there.findings, there.macro), (*back.findings, back.macro), strict=True):
        assert (one.p, one.p_delong) == (two.p, two.p_delong)
        assert (one.difference.low, one.difference.high) == pytest.approx((-two.difference.high, -two.difference.low))


def test_same_figures_again_and_areas_are_those_of_each_model_alone() -> None:
    found = cohort(3)
    other = second(found)
    result = compared(found, other)
    assert compared(found, other) == result
    alone = scored(*found._replace(logits_NC=other))
    alone = area_estimates(alone)
    assert [one.auroc_b for one in result.findings] == [one.value for one in alone.auroc]
    assert result.macro.auroc_b == alone.macro_auroc.value


def test_a_model_against_itself_differs_by_nothing() -> None:
    found = cohort(4)
    for logits in (found.logits_NC, found.logits_NC * 4):
        for one in (*compared(found, logits).findings, compared(found, logits).macro):
            assert (one.difference.low, one.difference.value, one.difference.high, one.p) == (0, 0, 0, 1)


def test_the_paired_interval_is_narrower_than_that_of_either_model() -> None:
    found = cohort(5)
    held = scored(*found)
    alone = area_estimates(held)
    for one, area in zip(compared(found, second(found, 0.2)).findings, alone.auroc, strict=True):
        assert one.difference.high - one.difference.low < 0.6 * (area.high - area.low)


def test_a_worthless_model_is_found_out() -> None:
    found = cohort(6)
    noise = np.random.default_rng(0).normal(size=found.logits_NC.shape).astype(np.float32)
    result = compared(found, noise, replicates=400)
    for one in (*result.findings, result.macro):
        assert one.difference.low > 0
        assert one.p == 2 / 401  # never 0
    assert all(one.p_delong < 1e-3 for one in result.findings)


def test_p_values_under_no_difference_are_not_small_too_often() -> None:
    """Two models of equal worth on copies of images: by patient as it should be, DeLong fooled by the copies."""
    small = small_delong = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        targets = (rng.random((120, 1)) < 0.4).astype(np.uint8)
        shared = rng.normal(size=(120, 1))
        a, b = ((shared + rng.normal(size=(120, 1)) + targets).astype(np.float32) for _ in range(2))
        labels = [np.repeat(part, 6, axis=0) for part in (targets, np.ones_like(targets), np.arange(120))]
        models = [scored(np.repeat(logits, 6, axis=0), *labels) for logits in (a, b)]
        one = compare_models(PatientResamples(120, 100, seed), *models).findings[0]
        small += one.p < 0.1
        small_delong += one.p_delong < 0.1
    assert small <= 15
    assert small_delong > 1.5 * small


def test_what_is_undefined_is_none_with_the_reason() -> None:
    found = cohort(7)
    found.targets_NC[:, 1] = 0
    found.mask_NC[:, 2] = 0
    result = compared(found, second(found))
    absent, unknown = result.findings[1:3]
    assert (absent.auroc_a, absent.difference.value, absent.p, absent.p_delong) == (None,) * 4
    assert absent.difference.reason.startswith("no positives among")
    assert unknown.difference.reason == "no known labels"
    assert result.macro_findings == ("A", "D") and result.macro.p is not None
    alone = compared(found._replace(patient_id=found.patient_id * 0), second(found)).findings[0]
    assert alone.difference.value is not None and alone.difference.low is None and alone.p is None
    assert alone.difference.reason.startswith("one patient only") and alone.p_delong is not None
    nobody = Cohort(*(part[:0] for part in found))
    assert compared(nobody, nobody.logits_NC).macro.difference.reason == "undefined for all 4 named findings"


def test_bad_arguments_name_the_model() -> None:
    found = cohort(8)
    other = second(found)
    found.mask_NC[9] = 1
    other[9, 0] = np.nan
    num = found.mask_NC[:, 0].sum()
    with pytest.raises(ValueError, match=rf"model b: A \(1 of {num} logits are not finite\)$"):
        compared(found, other)
    with pytest.raises(ValueError, match="model a: A "):
        compared(found._replace(logits_NC=other), found.logits_NC)


def test_models_on_other_samples_or_labels_are_refused() -> None:
    found = cohort(9)
    held = scored(*found)
    resamples = PatientResamples(held.num_patients, 10)
    for other in (
        Cohort(*(part[1:] for part in found)),
        found._replace(targets_NC=1 - found.targets_NC),
        found._replace(mask_NC=np.ones_like(found.mask_NC)),
        found._replace(patient_id=found.patient_id[::-1]),
    ):
        with pytest.raises(ValueError, match="same samples, findings and labels"):
            compare_models(resamples, held, scored(*other))
    with pytest.raises(ValueError, match="same samples, findings and labels"):
        compare_models(resamples, held, scored(*found, findings="DCBA"))
