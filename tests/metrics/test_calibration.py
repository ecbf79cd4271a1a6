"""Calibration against scikit-learn and a search, properties of a fitted temperature, and the edges."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cohort import cohort, known, scored
from numpy.typing import NDArray

from distcxr.metrics.bootstrap import PatientResamples
from distcxr.metrics.calibration import brier, calibration_estimates, fit_temperature, probabilities, reliability


def overconfident(seed: int, num: int, temperature: float) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Logits that are right once they are divided by the temperature."""
    rng = np.random.default_rng(seed)
    honest = rng.normal(-1, 2, size=num)
    targets = (rng.random(num) < 1 / (1 + np.exp(-honest))).astype(np.uint8)
    return (honest * temperature).astype(np.float32), targets


def log_loss(logits: NDArray[np.float32], targets: NDArray[np.uint8], temperature: float) -> float:
    scaled = logits.astype(np.float64) / temperature
    return float(np.mean(np.logaddexp(0, scaled) - targets * scaled))


def test_probabilities_are_those_of_scipy_and_never_overflow() -> None:
    from scipy.special import expit

    logits = np.concatenate((np.linspace(-60, 60, 1001), [-3e38, 3e38, 0.0, -0.0, 17.5])).astype(np.float32)
    found = probabilities(logits)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expit(logits.astype(np.float64)), rtol=1e-14)
    assert found[-1] < 1  # float32 would round it to 1.0
    np.testing.assert_array_equal(probabilities(logits, 2.0), probabilities(logits / np.float32(2)))
    assert probabilities(np.zeros((2, 3), dtype=np.float32)).shape == (2, 3)
    for bad in (0.0, -1.0, np.inf, np.nan):
        with pytest.raises(ValueError, match="temperature must be above 0"):
            probabilities(logits, bad)


@pytest.mark.parametrize("bins", [1, 5, 15])
def test_the_reliability_curve_and_brier_are_sklearns(bins: int) -> None:
    from sklearn.calibration import calibration_curve
    from sklearn.metrics import brier_score_loss

    logits, targets = overconfident(0, 500, 2.0)
    probs = probabilities(logits)
    found = reliability(probs, targets, bins)
    frequency, mean_prob = calibration_curve(targets, probs, n_bins=bins)
    np.testing.assert_allclose(found.frequency_B, frequency, rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.mean_prob_B, mean_prob, rtol=0, atol=1e-12)
    assert brier(probs, targets) == pytest.approx(brier_score_loss(targets, probs), rel=0, abs=1e-12)
    assert found.count_B.sum() == 500


def test_ece_by_hand() -> None:
    """Bins of .1: (0, .1] holds 0 and .1, (.1, .2] holds .2; (.9, 1] holds .95."""
    probs, targets = np.array([0.0, 0.1, 0.2, 0.95]), np.uint8([0, 1, 0, 1])
    found = reliability(probs, targets, bins=10)
    assert found.count_B.tolist() == [2, 1, 1]
    np.testing.assert_allclose(found.mean_prob_B, [0.05, 0.2, 0.95])
    np.testing.assert_allclose(found.frequency_B, [0.5, 0, 1])
    assert found.ece() == pytest.approx((2 * 0.45 + 0.2 + 0.05) / 4, abs=1e-15)


def test_replicates_equal_a_plain_loop() -> None:
    logits, targets, mask, patients = cohort(1)
    held = scored(logits, targets, mask, patients)
    resamples = PatientResamples(held.num_patients, replicates=140, seed=2)
    found = calibration_estimates(resamples, held, [1.0, 2.0, 0.5, None])
    assert found[3] is None
    for column, scale in enumerate([1.0, 2.0, 0.5]):
        keep = np.flatnonzero(mask[:, column])
        probs = probabilities(logits[:, column], scale)
        scores, gaps = [], []
        for replicate in range(140):
            rows = np.repeat(keep, resamples.weights(replicate)[held.patient_N[keep]])
            scores.append(brier(probs[rows], targets[rows, column]))
            gaps.append(reliability(probs[rows], targets[rows, column]).ece())
        one = found[column]
        assert one is not None
        assert one.ece.value == one.curve.ece()
        assert one.brier.value == brier(probs[keep], targets[keep, column])
        assert one.ece.value == reliability(probs[keep], targets[keep, column]).ece()
        assert (one.brier.low, one.brier.high) == pytest.approx(np.percentile(scores, [2.5, 97.5]), abs=1e-12)
        assert (one.ece.low, one.ece.high) == pytest.approx(np.percentile(gaps, [2.5, 97.5]), abs=1e-12)


def test_same_figures_whatever_the_threads() -> None:
    held = scored(*cohort(2))
    one, two = (
        calibration_estimates(PatientResamples(held.num_patients, 200, seed=3, threads=threads), held)
        for threads in (1, 3)
    )
    assert [(found.brier, found.ece) for found in one] == [(found.brier, found.ece) for found in two]


@pytest.mark.parametrize("truth", [0.4, 1.0, 3.0])
def test_the_temperature_is_found_again_and_is_the_best(truth: float) -> None:
    logits, targets = overconfident(3, 20_000, truth)
    found = fit_temperature(known(logits, targets))
    assert found.value == pytest.approx(truth, rel=0.05) and found.reason is None
    assert found.before == pytest.approx(log_loss(logits, targets, 1.0), abs=1e-12)
    assert found.after == pytest.approx(log_loss(logits, targets, found.value), abs=1e-12)
    assert found.after <= found.before
    for other in (0.999, 1.001):
        assert log_loss(logits, targets, found.value * other) > found.after
    # Where the slope is 0 the logits agree with the labels on average.
    residual = logits.astype(np.float64) * (probabilities(logits, found.value) - targets)
    assert abs(residual.mean()) < 1e-10 * truth


def test_the_temperature_is_that_of_scipys_search() -> None:
    from scipy.optimize import minimize_scalar

    for seed in range(5):
        logits, targets = overconfident(seed, 60, 5.0)
        best = minimize_scalar(lambda t: log_loss(logits, targets, np.exp(t)), bounds=(-6, 6), method="bounded")  # noqa: B023
        assert fit_temperature(known(logits, targets)).value == pytest.approx(np.exp(best.x), rel=1e-4)


def test_scaling_the_logits_scales_the_temperature_and_the_scaled_ones_need_none() -> None:
    logits, targets = overconfident(4, 3000, 2.0)
    found = fit_temperature(known(logits, targets)).value
    assert fit_temperature(known(logits * np.float32(64), targets)).value == pytest.approx(64 * found, rel=1e-9)
    assert fit_temperature(known(logits / np.float32(64), targets)).value == pytest.approx(found / 64, rel=1e-9)
    gap = [reliability(probabilities(logits, t), targets).ece() for t in (1.0, found)]
    assert gap[1] < 0.5 * gap[0]


def test_unknown_labels_do_not_count() -> None:
    logits, targets, mask, patients = cohort(5, num=3000, patients=3000)
    logits[mask == 0] = np.nan
    for column, one in enumerate(scored(logits, targets, mask, patients).known):
        keep = mask[:, column] == 1
        assert fit_temperature(one) == fit_temperature(known(logits[keep, column], targets[keep, column]))


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 1e4, 3e38])
def test_separated_classes_have_no_temperature(scale: float) -> None:
    targets = np.uint8([0, 0, 1, 1])
    logits = (np.float32([-1, -0.5, 0.5, 1]) * np.float32(scale)).astype(np.float32)
    found = fit_temperature(known(logits, targets))
    assert found.value is None and found.after is None
    assert found.reason.startswith("the sign of the logits separates")
    assert fit_temperature(known(-logits, targets)).value is None


def test_logits_without_information_or_turned_round_have_no_temperature() -> None:
    targets = np.uint8([0, 1, 0, 1])
    for logits in (np.float32([1, -1, 2, -2]), np.zeros(4, dtype=np.float32), np.ones(4, dtype=np.float32)):
        found = fit_temperature(known(logits, targets))
        assert found.value is None
        assert found.reason.startswith("the best temperature is beyond 1000")


def test_tiny_logits_are_refused_not_blown_up() -> None:
    found = fit_temperature(known(np.float32([-1, 0.2, 0.5, 1, 2]) * np.float32(1e-9), np.uint8([0, 0, 1, 1, 1])))
    assert found.value is None and found.reason.startswith("the best temperature is below 0.001")


def test_huge_logits_with_one_mistake_are_fitted_or_refused_but_never_nan() -> None:
    targets = np.uint8([0, 0, 1, 1, 1])
    for scale in (1e-2, 1.0, 1e2, 1e20, 1e38):
        logits = (np.float32([-1, 0.2, 0.5, 1, 2]) * np.float32(scale)).astype(np.float32)
        found = fit_temperature(known(logits, targets))
        assert (found.value is None) == (found.reason is not None)
        assert found.value is None or np.isfinite(found.value)
        assert np.isfinite(found.before)


def test_edges_are_none_with_a_reason() -> None:
    logits, targets, mask, patients = cohort(6)
    mask[:, 1] = 0

    def estimates(rows: int = 400, of_one_patient: bool = False) -> list[Any]:
        ids = patients * 0 if of_one_patient else patients
        held = scored(logits[:rows], targets[:rows], mask[:rows], ids[:rows])
        return calibration_estimates(PatientResamples(held.num_patients, 100), held)

    found = estimates()
    assert found[1].brier.value is None and found[1].ece.reason == "no known labels"
    alone = estimates(of_one_patient=True)
    assert alone[0].brier.value == found[0].brier.value and alone[0].brier.low is None
    assert estimates(rows=0)[0].ece.value is None
    assert reliability(np.zeros(0), np.zeros(0, dtype=np.uint8)).ece() is None
    assert brier(np.zeros(0), np.zeros(0, dtype=np.uint8)) is None
    assert fit_temperature(known(logits[:0, 0], targets[:0, 0])).reason == "no known labels"
    assert fit_temperature(known(logits[:, 0], targets[:, 0] * 0)).reason == "no positives among 400 known labels"
    # An absent class leaves the Brier score and the ECE what they are.
    targets[:, 2] = 0
    assert estimates()[2].brier.low is not None
    logits[8], mask[8] = np.inf, 1
    assert estimates()[0].ece.reason.endswith("logits are not finite")
    assert fit_temperature(known(logits[:, 0], targets[:, 0])).reason == "1 of 400 logits are not finite"


def test_bad_arguments_are_refused() -> None:
    held = scored(*cohort(7))
    resamples = PatientResamples(held.num_patients, 10)
    with pytest.raises(ValueError, match="2 temperatures for 4 findings"):
        calibration_estimates(resamples, held, [1.0, 1.0])
    with pytest.raises(ValueError, match="draws are of 3 patients"):
        calibration_estimates(PatientResamples(3, 10), held)
