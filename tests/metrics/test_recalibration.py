"""Recalibration against scikit-learn's fit, its intervals against another variance, a simulation, and the edges."""

from __future__ import annotations

import numpy as np
import pytest
from cohort import cohort, known, scored

from distcxr.metrics.calibration import fit_temperature, probabilities
from distcxr.metrics.degrees import MIN_PATIENTS
from distcxr.metrics.recalibration import recalibrate
from distcxr.metrics.student import quantile, two_sided_p


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_slope_intercept_ratio_and_skill_are_those_of_scikit_learn(temperature: float) -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import brier_score_loss

    for one in scored(*cohort(1, num=900, patients=200)).known:
        found = recalibrate(one, temperature)
        logits, targets = one.logits_M.astype(np.float64)[:, None] / temperature, one.targets_M
        fit = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(logits, targets)
        assert found.slope.value == pytest.approx(fit.coef_[0, 0], rel=1e-5)
        prob = probabilities(one.logits_M, temperature)
        shifted = 1 / (1 + np.exp(-logits[:, 0] - found.intercept.value))
        assert shifted.mean() == pytest.approx(targets.mean(), rel=1e-12)
        assert found.observed_expected.value == pytest.approx(targets.sum() / prob.sum(), rel=1e-12)
        chance = brier_score_loss(targets, np.full(len(targets), targets.mean()))
        assert found.brier_skill.value == pytest.approx(1 - brier_score_loss(targets, prob) / chance, rel=1e-12)


def test_intervals_are_those_of_leaving_out_one_patient_at_a_time() -> None:
    """The jackknife by patient is another way to the same variance; they agree as patients become many."""
    held = scored(*cohort(3, num=1500, patients=300))
    one = held.known[0]
    found = recalibrate(one)
    patients = np.unique(one.patient_M)
    without = [recalibrate(one.within(held.patient_N != patient)) for patient in patients]
    positive = len(np.unique(one.patient_M[one.targets_M == 1]))
    reach = quantile(0.95, positive - 1)
    for name in ("slope", "intercept", "brier_skill", "observed_expected"):
        values, whole = np.array([getattr(each, name).value for each in without]), getattr(found, name)
        low, high = whole.low, whole.high
        if name == "observed_expected":
            values, low, high = np.log(values), np.log(low), np.log(high)
        error = np.sqrt(np.sum((values - values.mean()) ** 2) * (len(values) - 1) / len(values))
        if name == "brier_skill":  # where Hall's transform of T is Student's t
            without_P = values.mean() - values
            skewness = (without_P**3).sum() / (without_P**2).sum() ** 1.5
            for end, at in ((low, reach), (high, -reach)):
                ratio = (whole.value - end) / error
                transformed = ratio + skewness * ratio**2 / 3 + skewness**2 * ratio**3 / 27 + skewness / 6
                assert transformed == pytest.approx(at, rel=0.03)
            continue
        assert (high - low) / 2 / reach == pytest.approx(error, rel=0.03)


def test_the_interval_of_a_rare_findings_skill_reaches_further_up() -> None:
    """By symmetric intervals the true skill is above in a tenth of samples, and nearly never below."""
    rng = np.random.default_rng(5)
    logits = (1.2 * rng.normal(size=6_000) - 6.2).astype(np.float32)
    found = recalibrate(known(logits, (rng.random(6_000) < probabilities(logits)).astype(np.uint8))).brier_skill
    assert found.low < found.value < found.high <= 1
    assert found.high - found.value > 1.5 * (found.value - found.low)


def test_student_is_scipys() -> None:
    from scipy.stats import t

    for degrees in (9, 10, 15, 40, 1000):
        assert quantile(0.95, degrees) == pytest.approx(t.ppf(0.975, degrees), rel=1e-9)
        for value in (0.0, 1e-9, 0.3, 1.0, 2.2, 5.0, 15.0):
            assert two_sided_p(value, degrees) == pytest.approx(2 * t.sf(value, degrees), rel=1e-9)
    assert two_sided_p(np.inf, 10) == 0


def test_a_shift_alone_makes_a_temperature_above_1_but_no_slope_below_1() -> None:
    """A slope of 1 shifted by -1.5: not "too sure", as a temperature of 1.6 would have been read."""
    rng = np.random.default_rng(0)
    right = rng.normal(size=40_000) - 1
    targets = (rng.random(40_000) < 1 / (1 + np.exp(-right))).astype(np.uint8)
    shifted = known((right - 1.5).astype(np.float32), targets)
    found, temperature = recalibrate(shifted), fit_temperature(shifted).value
    assert temperature is not None and temperature > 1.3
    assert found.slope.low < 1 < found.slope.high
    assert found.intercept.low < 1.5 < found.intercept.high and found.observed_expected.low > 1
    sharp = recalibrate(known((right * 2).astype(np.float32), targets))
    assert sharp.slope.low < 0.5 < sharp.slope.high


def test_copies_of_images_do_not_narrow_an_interval() -> None:
    found = cohort(4, patients=300)
    labels = found.targets_NC, found.mask_NC, np.arange(400)
    once = recalibrate(scored(found.logits_NC, *labels).known[0])
    copied = [np.repeat(part, 5, axis=0) for part in (found.logits_NC, *labels)]
    again = recalibrate(scored(*copied).known[0])
    for name in ("slope", "intercept", "observed_expected", "brier_skill"):
        one, other = getattr(once, name), getattr(again, name)
        assert (other.low, other.value, other.high) == pytest.approx((one.low, one.value, one.high), rel=1e-9)


def test_what_is_undefined_has_a_reason() -> None:
    targets = np.uint8([0, 0, 1, 1])
    apart = recalibrate(known(np.float32([-2, -1, 1, 2]), targets))
    assert apart.slope.value is None and "separate" in apart.slope.reason
    assert apart.intercept.value is not None
    assert apart.intercept.reason.startswith(f"2 positive patients: nothing holds with fewer than {MIN_PATIENTS}")
    assert "separate" in recalibrate(known(np.float32([2, 1, 1, -2]), targets)).slope.reason
    flat = recalibrate(known(np.zeros(4, dtype=np.float32), targets))
    assert flat.slope.reason == "all scores are equal" and flat.intercept.value == pytest.approx(0)
    none = recalibrate(known(np.zeros(4, dtype=np.float32), targets * 0))
    assert none.observed_expected.reason == "no positives among 4 known labels"
    for scale in (1e-30, 1e-3, 1e3, 3e37):
        logits = (np.float32([-1, 0.2, 0.5, 1, 2, -3]) * np.float32(scale)).astype(np.float32)
        found = recalibrate(known(logits, np.uint8([0, 0, 1, 1, 0, 1])))
        for one in (found.slope, found.intercept, found.observed_expected, found.brier_skill):
            assert one.value is None or np.isfinite(one.value)
            assert one.reason
