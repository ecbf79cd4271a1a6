"""Paired differences against a plain loop, under no difference and a real one, and at the edges."""

from __future__ import annotations

import numpy as np
import pytest
from cohort import Cohort, auroc_per_finding, cohort, known, scored
from numpy.typing import NDArray
from scipy.stats import norm, t

from distcxr.metrics.areas import area_estimates
from distcxr.metrics.bootstrap import PatientResamples
from distcxr.metrics.clustered import paired_p_value
from distcxr.metrics.degrees import degrees_of_freedom
from distcxr.metrics.operating import choose_operating
from distcxr.metrics.p_values import holm
from distcxr.metrics.paired_tests import Comparison, compare_models
from distcxr.metrics.threshold import count_cells


def second(found: Cohort, noise: float = 0.7, seed: int = 99) -> NDArray[np.float32]:
    """Logits of a model that resembles the first."""
    rng = np.random.default_rng(seed)
    return (found.logits_NC + noise * rng.normal(size=found.logits_NC.shape)).round(1).astype(np.float32)


def compared(found: Cohort, logits_b: NDArray[np.float32], replicates: int = 200, **more: object) -> Comparison:
    a, b = scored(*found), scored(*found._replace(logits_NC=logits_b))
    return compare_models(PatientResamples(a.num_patients, replicates, seed=1), a, b, **more)


def expanded(p: float, df: int) -> float:
    """A p-value of Student's t where resamples gave `p`."""
    return min(1.0, 2 * t.sf(norm.isf(p / 2) * np.sqrt(df / (df + 1)), df))


def ends(difference_K: NDArray[np.float64], df: int) -> NDArray[np.float64]:
    """Expanded percentiles."""
    tail = norm.sf(t.isf(0.025, df) * np.sqrt((df + 1) / df))
    return np.quantile(difference_K, [tail, 1 - tail])


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
    for column, one in enumerate(result.auroc):
        assert (one.a, one.b) == (points[0][column], points[1][column])
        assert one.difference.value == points[0][column] - points[1][column]
        df = degrees_of_freedom(scored(*found).known[column])[0]
        assert (one.difference.low, one.difference.high) == pytest.approx(ends(differences[:, column], df), abs=1e-9)
        smaller = min((differences[:, column] <= 0).sum(), (differences[:, column] >= 0).sum())
        assert one.p == pytest.approx(expanded(2 * (smaller + 1) / 201, df) if 2 * smaller < 199 else 1, abs=1e-9)
        models = [scored(*found._replace(logits_NC=logits)).known[column] for logits in (found.logits_NC, other)]
        assert one.p_delong == paired_p_value(*models) and one.p_floor == pytest.approx(expanded(2 / 201, df))
    for name in ("p", "p_delong"):
        adjusted = [getattr(one, f"{name}_holm") for one in result.auroc]
        assert adjusted == holm([getattr(one, name) for one in result.auroc])
    macro = differences[:, [1, 3]].mean(axis=1)
    assert result.macro_findings == ("B", "D") and result.macro_auroc.p_delong is None
    assert result.macro_auroc.difference.value == pytest.approx(
        np.mean([result.auroc[column].difference.value for column in (1, 3)]), abs=1e-12
    )
    df = max(degrees_of_freedom(scored(*found).known[column])[0] for column in (1, 3))
    assert (result.macro_auroc.difference.low, result.macro_auroc.difference.high) == pytest.approx(
        ends(macro, df), abs=1e-9
    )


def test_turning_the_models_round_turns_the_sign() -> None:
    found = cohort(2)
    other = second(found)
    there = compared(found, other)
    back = compared(found._replace(logits_NC=other), found.logits_NC)
    for one, two in zip((*there.auroc, there.macro_auroc), (*back.auroc, back.macro_auroc), strict=True):
        assert (one.p, one.p_delong) == (two.p, two.p_delong)
        assert (one.difference.low, one.difference.high) == pytest.approx((-two.difference.high, -two.difference.low))


def test_same_figures_again_and_areas_are_those_of_each_model_alone() -> None:
    found = cohort(3)
    other = second(found)
    result = compared(found, other)
    assert compared(found, other) == result
    alone = scored(*found._replace(logits_NC=other))
    alone = area_estimates(alone)
    assert [one.b for one in result.auroc] == [one.value for one in alone.auroc]
    assert result.macro_auroc.b == alone.macro_auroc.value


def test_a_model_against_itself_differs_by_nothing() -> None:
    found = cohort(4)
    for logits in (found.logits_NC, found.logits_NC * 4):
        for one in (*compared(found, logits).auroc, compared(found, logits).macro_auroc):
            assert (one.difference.low, one.difference.value, one.difference.high, one.p) == (0, 0, 0, 1)


def test_the_paired_interval_is_narrower_than_that_of_either_model() -> None:
    found = cohort(5)
    held = scored(*found)
    alone = area_estimates(held)
    for one, area in zip(compared(found, second(found, 0.2)).auroc, alone.auroc, strict=True):
        assert one.difference.high - one.difference.low < 0.6 * (area.high - area.low)


def test_a_worthless_model_is_found_out() -> None:
    found = cohort(6)
    noise = np.random.default_rng(0).normal(size=found.logits_NC.shape).astype(np.float32)
    result = compared(found, noise, replicates=400)
    for one in (*result.auroc, result.macro_auroc):
        assert one.difference.low > 0
        assert 2 / 401 < one.p == one.p_floor < 0.012  # never 0
    assert all(one.p_delong < 1e-3 for one in result.auroc)


def test_p_values_under_no_difference_are_not_small_too_often() -> None:
    """Two models of equal worth on 1 to 11 alike images a patient: tests by patient hold, DeLong by image does not."""
    small = {"p": 0, "p_delong": 0, "by image": 0, "auprc": 0, "any after Holm": 0}
    for seed in range(30):
        rng = np.random.default_rng(seed)
        row = np.repeat(np.arange(120), rng.integers(1, 12, size=120))
        targets = (rng.normal(size=(120, 10)) > 0.3)[row].astype(np.uint8)
        shared = rng.normal(size=(120, 10))[row]
        own = [rng.normal(size=(120, 10))[row] + 0.5 * rng.normal(size=targets.shape) for _ in range(2)]
        logits = [(shared + one + targets).astype(np.float32) for one in own]
        models = [scored(one, targets, np.ones_like(targets), row) for one in logits]
        result = compare_models(PatientResamples(120, 200, seed), *models)
        images = [[known(one[:, column], targets[:, column]) for one in logits] for column in range(10)]
        small["by image"] += sum(paired_p_value(*pair) < 0.1 for pair in images)
        for name in ("p", "p_delong"):
            small[name] += sum(getattr(one, name) < 0.1 for one in result.auroc)
        small["auprc"] += sum(one.p < 0.1 for one in result.auprc)
        small["any after Holm"] += min(one.p_delong_holm for one in result.auroc) < 0.1
    for name in ("p", "p_delong", "auprc"):
        assert small[name] == pytest.approx(0.1 * 300, abs=18), small
    assert small["by image"] > 0.2 * 300 and small["any after Holm"] <= 7


def test_average_precision_and_rates_are_compared_too() -> None:
    """Against a plain loop, each model at thresholds of its own."""
    found = cohort(3)
    models = [scored(*found), scored(*found._replace(logits_NC=second(found)))]
    operating = tuple(choose_operating(one) for one in models)
    resamples = PatientResamples(models[0].num_patients, 150, seed=1)
    result = compare_models(resamples, *models, operating=operating)
    alone = [area_estimates(one) for one in models]
    for column, one in enumerate(result.auprc):
        assert (one.a, one.b) == tuple(areas.auprc[column].value for areas in alone) and one.p_delong is None
    assert result.macro_auprc.difference.value == pytest.approx(
        alone[0].macro_auprc.value - alone[1].macro_auprc.value, abs=1e-12
    )
    assert set(result.points) == set(operating[0].thresholds)
    for rule, rates in result.points.items():
        for column, one in enumerate(rates["recall"]):
            thresholds = [chosen.threshold(rule, column, "logit") for chosen in operating]
            pairs = [(model.known[column], at) for model, at in zip(models, thresholds, strict=True)]
            assert [one.a, one.b] == [count_cells(*pair).rates()["recall"] for pair in pairs]
            keep = pairs[0][0].targets_M == 1
            called = [(model.scores_M >= np.float32(at))[keep] for model, at in pairs]
            patient = pairs[0][0].patient_M[keep]
            drawn = [np.repeat(np.arange(keep.sum()), resamples.weights(k)[patient]) for k in range(150)]
            differences = np.array([called[0][rows].mean() - called[1][rows].mean() for rows in drawn])
            expected = ends(differences, degrees_of_freedom(pairs[0][0])[0])
            assert (one.difference.low, one.difference.high) == pytest.approx(expected, abs=1e-9)
    undefined = found.targets_NC.copy()
    undefined[:, 1] = 0
    none = choose_operating(scored(*found._replace(targets_NC=undefined)))
    youden = compare_models(resamples, *models, operating=(none, operating[1])).points["youden"]["recall"][1]
    assert youden.difference.reason == "there is no threshold" and youden.p is None


def test_what_is_undefined_is_none_with_the_reason() -> None:
    found = cohort(7)
    found.targets_NC[:, 1] = 0
    found.mask_NC[:, 2] = 0
    result = compared(found, second(found))
    absent, unknown = result.auroc[1:3]
    assert (absent.a, absent.difference.value, absent.p, absent.p_delong) == (None,) * 4
    assert absent.difference.reason.startswith("no positives among")
    assert unknown.difference.reason == "no known labels"
    assert result.macro_findings == ("A", "D") and result.macro_auroc.p is not None
    alone = compared(found._replace(patient_id=found.patient_id * 0), second(found)).auroc[0]
    assert alone.difference.value is not None and alone.difference.low is None and alone.p is None
    assert alone.difference.reason == alone.p_reason == "1 positive patient: nothing holds with fewer than 10"
    assert alone.p_delong is None
    nobody = Cohort(*(part[:0] for part in found))
    assert compared(nobody, nobody.logits_NC).macro_auroc.difference.reason == "undefined for all 4 named findings"


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
