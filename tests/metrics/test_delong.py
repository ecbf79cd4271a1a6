"""DeLong against the textbook's pairs, by simulation, and at the edges."""

from __future__ import annotations

import math

import numpy as np
import pytest
from cohort import auroc, known
from numpy.typing import NDArray

from distcxr.metrics.clustered import paired_p_value
from distcxr.metrics.delong import delong_interval
from distcxr.metrics.estimate import Estimate


def sample(
    seed: int, num: int = 120, decimals: int = 1
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.uint8]]:
    """Two models that share half of their noise."""
    rng = np.random.default_rng(seed)
    targets = (rng.random(num) < 0.3).astype(np.uint8)
    targets[:4] = 0, 1, 0, 1
    shared = rng.normal(size=num)
    models = [(shared + rng.normal(size=num) + gain * targets).round(decimals) for gain in (1.5, 1.0)]
    return models[0].astype(np.float32), models[1].astype(np.float32), targets


def textbook(models: list[NDArray[np.float32]], targets: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Covariance of the models' areas from all pairs: S10 / m + S01 / n, each a sample covariance of placements."""
    v10, v01 = [], []
    for scores in models:
        positives, negatives = scores[targets == 1][:, None], scores[targets == 0][None]
        psi = (positives > negatives) + 0.5 * (positives == negatives)
        v10.append(psi.mean(axis=1))
        v01.append(psi.mean(axis=0))
    return np.atleast_2d(np.cov(v10)) / len(v10[0]) + np.atleast_2d(np.cov(v01)) / len(v01[0])


def interval(scores: NDArray[np.float32], targets: NDArray[np.uint8]) -> Estimate:
    return delong_interval(known(scores, targets))


def p_value(a: NDArray[np.float32], b: NDArray[np.float32], targets: NDArray[np.uint8]) -> float | None:
    return paired_p_value(known(a, targets), known(b, targets))


@pytest.mark.parametrize("decimals", [6, 1, 0], ids=["distinct", "ties", "nearly all tied"])
@pytest.mark.parametrize("seed", range(5))
def test_equals_the_textbook(seed: int, decimals: int) -> None:
    a, b, targets = sample(seed, decimals=decimals)
    from scipy.stats import t

    covariance = textbook([a, b], targets)
    error = math.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    difference = auroc(a, targets) - auroc(b, targets)
    expected = 2 * t.sf(abs(difference) / error, min(targets.sum(), (1 - targets).sum()) - 1)
    assert p_value(a, b, targets) == pytest.approx(expected, rel=1e-9)
    area, found = auroc(a, targets), interval(a, targets)
    reach = math.log(found.high / (1 - found.high)) - math.log(area / (1 - area))
    variance = (reach / 1.959963984540054 * area * (1 - area)) ** 2
    assert variance == pytest.approx(covariance[0, 0], rel=1e-10)


def test_the_interval_is_symmetric_in_the_logit() -> None:
    a, _, targets = sample(0)
    found = interval(a, targets)
    area = auroc(a, targets)
    reach = 1.959963984540054 * math.sqrt(textbook([a], targets)[0, 0]) / (area * (1 - area))
    for end, sign in ((found.low, -1), (found.high, 1)):
        assert math.log(end / (1 - end)) == pytest.approx(math.log(area / (1 - area)) + sign * reach, abs=1e-12)
    assert found.value == area and found.reason is None


def test_the_interval_stays_below_1_where_the_plain_one_does_not() -> None:
    rng = np.random.default_rng(1)
    targets = np.concatenate((np.ones(4), np.zeros(200))).astype(np.uint8)
    scores = (rng.normal(size=204) + 3 * targets).astype(np.float32)
    found = interval(scores, targets)
    assert found.value + 1.96 * math.sqrt(textbook([scores], targets)[0, 0]) > 1
    assert found.low < found.value < found.high < 1


def test_the_interval_covers_and_the_p_value_is_uniform_under_no_difference() -> None:
    truth = 0.5 * (1 + math.erf(0.5))
    rng = np.random.default_rng(2)
    covered, p_values = 0, []
    for _ in range(400):
        targets = (rng.random(200) < 0.3).astype(np.uint8)
        shared = rng.normal(size=200) * 0.6
        a, b = ((shared + 0.8 * rng.normal(size=200) + targets).astype(np.float32) for _ in range(2))
        found = interval(a, targets)
        covered += found.low <= truth <= found.high
        p_values.append(p_value(a, b, targets))
    assert 0.92 <= covered / 400 <= 0.98
    for share in (0.05, 0.5, 0.9):
        assert np.mean(np.array(p_values) < share) == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / 400))


def test_only_the_order_counts_and_which_model_comes_first_does_not() -> None:
    a, b, targets = sample(3)
    ranks = np.unique(a, return_inverse=True)[1].astype(np.float32) * 7 - 100
    assert interval(ranks, targets) == interval(a, targets)
    assert p_value(a, b, targets) == p_value(b, a, targets)
    shuffled = np.random.default_rng(0).permutation(len(a))
    mixed = p_value(a[shuffled], b[shuffled], targets[shuffled])
    assert mixed == pytest.approx(p_value(a, b, targets), rel=1e-9)


def test_a_model_against_itself() -> None:
    a, _, targets = sample(4)
    assert p_value(a, a, targets) == p_value(a, 2 * a, targets) == 1


def test_no_variance_no_interval() -> None:
    targets = np.uint8([0, 0, 0, 1, 1])
    for scores, area in (([1, 2, 3, 4, 5], 1.0), ([5, 4, 3, 2, 1], 0.0), ([2, 2, 2, 2, 2], 0.5)):
        found = interval(np.float32(scores), targets)
        assert (found.value, found.low, found.high) == (area, None, None)
        assert "variance is 0" in found.reason
    best, worst = np.float32([1, 2, 3, 4, 5]), np.float32([5, 4, 3, 2, 1])
    assert p_value(best, worst, targets) is None


def test_absent_and_lonely_classes_have_a_reason() -> None:
    scores = np.float32([1, 2, 3, 4])
    none, one = np.uint8([0, 0, 0, 0]), np.uint8([0, 1, 0, 0])
    assert interval(scores, none) == Estimate(None, None, None, "no positives among 4 known labels")
    assert p_value(scores, scores, none) is None
    assert interval(scores[:0], none[:0]).reason == "no known labels"
    lonely = interval(scores, one)
    assert lonely.value == pytest.approx(1 / 3) and lonely.low is None
    assert lonely.reason == "one positive only: DeLong's variance needs two of each class"
    assert delong_interval(known(scores, 1 - one)).reason.startswith("one negative only")
    assert p_value(scores, scores[::-1], one) is None and p_value(scores, scores[::-1], 1 - one) is None


def test_scores_that_are_not_finite() -> None:
    a, b, targets = sample(5)
    b[[2, 9]] = np.nan
    assert interval(b, targets) == Estimate(None, None, None, "2 of 120 logits are not finite")
    assert p_value(a, b, targets) is None
