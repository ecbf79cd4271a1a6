"""Ranking metrics against scikit-learn, under transforms they must ignore, and at the edges."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from cohort import auprc, auroc, auroc_per_finding, known
from numpy.typing import NDArray

from distcxr.metrics.ranking import dense_ranks

TOLERANCE = 1e-12
FLOAT32_MAX = float(np.finfo(np.float32).max)
SMALLEST = 1.4e-45  # the least subnormal float32


def sample(seed: int, num: int, rate: float) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    rng = np.random.default_rng(seed)
    targets = (rng.random(num) < rate).astype(np.uint8)
    targets[:2] = 0, 1
    return (rng.normal(size=num) + targets).astype(np.float32), targets


def assert_matches_sklearn(scores: NDArray[np.float32], targets: NDArray[np.uint8]) -> None:
    from sklearn.metrics import average_precision_score, roc_auc_score

    assert auroc(scores, targets) == pytest.approx(roc_auc_score(targets, scores), rel=0, abs=TOLERANCE)
    assert auprc(scores, targets) == pytest.approx(average_precision_score(targets, scores), rel=0, abs=TOLERANCE)


def by_pairs(scores: NDArray[np.float32], targets: NDArray[np.uint8]) -> float:
    positives, negatives = scores[targets == 1][:, None], scores[targets == 0][None]
    return float(np.mean((positives > negatives) + 0.5 * (positives == negatives)))


@pytest.mark.parametrize("decimals", [None, 2, 1, 0], ids=["distinct", "few ties", "ties", "nearly all tied"])
@pytest.mark.parametrize("rate", [0.003, 0.1, 0.5, 0.97])
@pytest.mark.parametrize("num", [7, 100, 5000])
def test_equals_sklearn(num: int, rate: float, decimals: int | None) -> None:
    for seed in range(5):
        scores, targets = sample(seed, num, rate)
        assert_matches_sklearn(scores if decimals is None else scores.round(decimals), targets)


def test_equals_the_count_of_pairs_on_every_tiny_set() -> None:
    values = np.array([-1.5, -0.0, 0.0, 2.0], dtype=np.float32)
    checked = 0
    for num in (2, 3, 4):
        for picks in np.ndindex(*[len(values)] * num):
            scores = values[list(picks)]
            for labels in range(1, 2**num - 1):
                targets = np.array([labels >> bit & 1 for bit in range(num)], dtype=np.uint8)
                assert abs(auroc(scores, targets) - by_pairs(scores, targets)) <= TOLERANCE
                checked += 1
    assert checked == 16 * 2 + 64 * 6 + 256 * 14


def test_equals_sklearn_over_the_whole_float32_range() -> None:
    """Scores further apart than 2**128, infinities excepted: 32-bit keys cannot hold them."""
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**32, size=4000, dtype=np.uint64).astype(np.uint32)
    scores = bits.view(np.float32)
    scores = scores[np.isfinite(scores)]
    targets = rng.integers(0, 2, size=len(scores)).astype(np.uint8)
    scores = np.concatenate((scores, np.float32([0, -0.0, SMALLEST, -SMALLEST, FLOAT32_MAX, -FLOAT32_MAX])))
    targets = np.concatenate((targets, np.uint8([1, 0, 1, 0, 1, 0])))
    # Ranks, not the scores: scikit-learn takes differences of scores, and those overflow.
    ranks = np.unique(scores, return_inverse=True)[1].astype(np.float32)
    assert_matches_sklearn(ranks, targets)
    assert auroc(scores, targets) == auroc(ranks, targets)
    assert auprc(scores, targets) == auprc(ranks, targets)


@pytest.mark.parametrize("steps", [-1, 0, 1, 2, 3])
def test_order_holds_where_the_keys_change_width(steps: int) -> None:
    """The smallest magnitude goes float by float past the 2**128th part of the largest."""
    largest, smallest = 2.0**63, 2.0**-65 * (1 + steps * 2.0**-23)
    scores = np.float32([-largest, -smallest, -0.0, 0.0, smallest, largest])
    for labels in range(1, 2**6 - 1):
        targets = np.array([labels >> bit & 1 for bit in range(6)], dtype=np.uint8)
        assert auroc(scores, targets) == pytest.approx(by_pairs(scores, targets), rel=0, abs=TOLERANCE)


def test_neighbouring_float32_values_are_not_tied() -> None:
    above = np.nextafter(np.float32(17.5), np.float32(18))
    assert auroc(np.float32([17.5, above]), np.uint8([0, 1])) == 1.0
    assert auroc(np.float32([17.5, above]), np.uint8([1, 0])) == 0.0


@pytest.mark.parametrize("value", [0.0, -0.0, 3.25, -FLOAT32_MAX])
def test_constant_scores_are_worth_nothing(value: float) -> None:
    targets = np.uint8([0, 1, 1, 0, 1])
    scores = np.full(5, value, dtype=np.float32)
    assert auroc(scores, targets) == 0.5
    assert auprc(scores, targets) == pytest.approx(0.6, rel=0, abs=TOLERANCE)


def test_zeros_of_either_sign_tie() -> None:
    assert auroc(np.float32([-0.0, 0.0]), np.uint8([0, 1])) == 0.5
    assert auroc(np.float32([-0.0, 0.0]), np.uint8([1, 0])) == 0.5


@pytest.mark.parametrize(
    "transform",
    [
        lambda scores: scores * np.float32(4),
        lambda scores: scores * np.float32(2**-20),
        lambda scores: np.unique(scores, return_inverse=True)[1].astype(np.float32) - 900,
    ],
    ids=["times 4", "times 2**-20", "ranks"],
)
def test_only_the_order_counts(transform: Callable[[NDArray[np.float32]], NDArray[np.float32]]) -> None:
    scores, targets = sample(1, 3000, 0.2)
    scores = scores.round(2)
    assert auroc(transform(scores), targets) == auroc(scores, targets)
    assert auprc(transform(scores), targets) == auprc(scores, targets)


def test_order_of_the_samples_does_not_count() -> None:
    scores, targets = sample(2, 3000, 0.2)
    shuffled = np.random.default_rng(0).permutation(3000)
    assert auroc(scores[shuffled], targets[shuffled]) == auroc(scores, targets)
    assert auprc(scores[shuffled], targets[shuffled]) == auprc(scores, targets)


def test_turned_scores_or_labels_give_the_complement() -> None:
    scores, targets = sample(3, 3000, 0.2)
    scores = scores.round(1)
    area = auroc(scores, targets)
    assert auroc(-scores, targets) == pytest.approx(1 - area, rel=0, abs=1e-15)
    assert auroc(scores, 1 - targets) == pytest.approx(1 - area, rel=0, abs=1e-15)


def test_arguments_are_left_as_they_were() -> None:
    scores, targets = sample(4, 100, 0.2)
    before = scores.copy(), targets.copy()
    auroc(scores, targets)
    np.testing.assert_array_equal(scores, before[0])
    np.testing.assert_array_equal(targets, before[1])


@pytest.mark.parametrize(
    ("scores", "targets", "reason"),
    [
        (np.float32([1, 2]), np.uint8([0, 0]), "no positives among 2 known labels"),
        (np.float32([1, 2]), np.uint8([1, 1]), "no negatives among 2 known labels"),
        (np.float32([1]), np.uint8([1]), "no negatives among 1 known labels"),
        (np.float32([]), np.uint8([]), "no known labels"),
        (np.float32([1, np.nan]), np.uint8([0, 1]), "1 of 2 logits are not finite"),
        (np.float32([-np.inf, np.inf]), np.uint8([0, 1]), "2 of 2 logits are not finite"),
    ],
)
def test_what_cannot_be_ranked_has_a_reason_and_no_ranks(scores: Any, targets: Any, reason: str) -> None:
    found = known(scores, targets)
    assert found.ranks is None and found.reason == reason


def test_unknown_labels_do_not_count() -> None:
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(5)
    logits = rng.normal(size=(400, 4)).astype(np.float32)
    targets = rng.integers(0, 2, size=(400, 4)).astype(np.uint8)
    mask = (rng.random((400, 4)) < 0.6).astype(np.uint8)
    mask[:, 1] = 1
    mask[:, 2] = 0
    targets[mask[:, 3] == 1, 3] = 1  # negatives only where the label is unknown
    logits[mask == 0] = np.nan
    areas = auroc_per_finding(logits, targets, mask)
    for column in (0, 1):
        keep = mask[:, column] == 1
        expected = roc_auc_score(targets[keep, column], logits[keep, column])
        assert areas[column] == pytest.approx(expected, rel=0, abs=TOLERANCE)
    assert areas[2:] == [None, None]


@pytest.mark.slow
def test_six_times_as_fast_as_sklearn_on_the_nih_test_split() -> None:
    """25,596 samples, 14 findings at about NIH's rates; medians of five, and the best of three tries."""
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(0)
    rates = [0.1, 0.025, 0.12, 0.18, 0.05, 0.055, 0.012, 0.05, 0.04, 0.02, 0.02, 0.015, 0.03, 0.003]
    targets = (rng.random((25_596, 14)) < rates).astype(np.uint8)
    logits = (rng.normal(size=targets.shape) + targets).astype(np.float32)
    mask = np.ones_like(targets)

    def median_s(work: Callable[[], object]) -> float:
        times = []
        for _ in range(5):
            start = time.perf_counter()
            work()
            times.append(time.perf_counter() - start)
        return statistics.median(times)

    def loop() -> list[float]:
        return [roc_auc_score(targets[:, column], logits[:, column]) for column in range(14)]

    np.testing.assert_allclose(auroc_per_finding(logits, targets, mask), loop(), rtol=0, atol=TOLERANCE)
    ratios = [median_s(loop) / median_s(lambda: auroc_per_finding(logits, targets, mask)) for _ in range(3)]
    assert max(ratios) >= 6, f"only {ratios} times as fast as scikit-learn's loop"


def test_ranks_of_doubles_keep_order_and_ties() -> None:
    rng = np.random.default_rng(0)
    scores = 0.7 + rng.integers(0, 50, size=300) * 2.0**-53  # one float32 number, all of them
    ranks, levels = dense_ranks(scores)
    assert ranks.dtype == np.float32
    assert np.array_equal(levels, np.unique(scores))
    assert np.array_equal(levels[ranks.astype(int)], scores)
    assert dense_ranks(np.zeros(0))[0].shape == (0,)
