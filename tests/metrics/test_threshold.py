"""Thresholds against a search through all of them, rates against scikit-learn, and the edges."""

from __future__ import annotations

import numpy as np
import pytest
from cohort import Cohort, cohort, known, scored
from numpy.typing import NDArray

from distcxr.metrics.estimate import Estimate
from distcxr.metrics.threshold import RATES, Confusion, Rule, choose_threshold, count_cells, curve, rate_estimates

RULES = [Rule("youden"), Rule("max_f1"), Rule("recall", 0.8), Rule("recall", 1.0), Rule("specificity", 0.9)]


def one(seed: int, num: int = 80, decimals: int = 1) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    found = cohort(seed, num=num, decimals=decimals)
    return found.logits_NC[:, 0].copy(), found.targets_NC[:, 0].copy()


def by_search(scores: NDArray[np.float32], targets: NDArray[np.uint8], rule: Rule) -> float | None:
    """Every distinct score tried in turn, from the highest; fractions compared as integers."""
    best, best_key = None, None
    positives, negatives = int(targets.sum()), int((1 - targets).sum())
    for threshold in sorted(set(scores.tolist()), reverse=True):
        called = scores >= np.float32(threshold)
        true, false = int(targets[called].sum()), int((1 - targets[called]).sum())
        if rule.kind == "recall":
            if true / positives >= rule.at:
                return threshold
        elif rule.kind == "specificity":
            if (negatives - false) / negatives >= rule.at:
                best = threshold
        else:
            key = (
                true * negatives - false * positives if rule.kind == "youden" else 2 * true / (called.sum() + positives)
            )
            if best_key is None or key >= best_key:
                best, best_key = threshold, key
    return best


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.kind} {rule.at}")
@pytest.mark.parametrize("decimals", [6, 1, 0])
def test_the_choice_is_that_of_a_search(rule: Rule, decimals: int) -> None:
    for seed in range(10):
        scores, targets = one(seed, decimals=decimals)
        found = choose_threshold(known(scores, targets), rule)
        assert found.value == by_search(scores, targets, rule)
        assert found.rule == rule and (found.reason is None) == (found.value is not None)


def test_what_was_asked_for_is_reached_and_not_overshot() -> None:
    scores, targets = one(3, num=400, decimals=6)
    for share in (0.05, 0.5, 0.7, 0.9, 0.95, 1.0):
        recall = choose_threshold(known(scores, targets), Rule("recall", share)).value
        assert count_cells(known(scores, targets), recall).rates()["recall"] >= share
        higher = float(np.nextafter(np.float32(recall), np.float32(np.inf)))
        assert count_cells(known(scores, targets), higher).rates()["recall"] < share
        specificity = choose_threshold(known(scores, targets), Rule("specificity", share)).value
        assert count_cells(known(scores, targets), specificity).rates()["specificity"] >= share
        lower = scores[scores < np.float32(specificity)].max()
        assert count_cells(known(scores, targets), float(lower)).rates()["specificity"] < share


def test_of_equally_good_thresholds_the_one_that_misses_fewest() -> None:
    """Recall + specificity - 1 is one half at 4 and at 2; F1 is 2/3 at 4 and at 2 (1 / 2 + 1 and 2 / 4 + 2)."""
    targets = np.uint8([1, 0, 1, 0])
    scores = np.float32([4, 3, 2, 1])
    assert choose_threshold(known(scores, targets), Rule("youden")).value == 2
    scores, targets = np.float32([6, 5, 4, 3]), np.uint8([1, 0, 0, 1])
    assert count_cells(known(scores, targets), 6).rates()["f1"] == count_cells(known(scores, targets), 3).rates()["f1"]
    assert choose_threshold(known(scores, targets), Rule("max_f1")).value == 3


def test_a_specificity_that_ties_put_out_of_reach() -> None:
    scores, targets = np.float32([2, 2, 2, 1]), np.uint8([1, 0, 0, 0])
    found = choose_threshold(known(scores, targets), Rule("specificity", 0.5))
    assert found.value is None
    assert found.reason == "no threshold has specificity 0.5: 2 of 3 negatives share the highest score"
    assert choose_threshold(known(scores, targets), Rule("specificity", 0.33)).value == 2
    assert choose_threshold(known(scores, targets), Rule("recall", 1.0)).value == 2


def test_all_scores_equal_call_everyone() -> None:
    scores, targets = np.zeros(5, dtype=np.float32), np.uint8([1, 0, 0, 0, 1])
    for rule in (Rule("youden"), Rule("max_f1"), Rule("recall", 0.9)):
        assert choose_threshold(known(scores, targets), rule).value == 0
    assert choose_threshold(known(scores, targets), Rule("specificity", 0.1)).value is None


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.kind)
def test_an_absent_class_leaves_nothing_to_choose(rule: Rule) -> None:
    scores = np.float32([1, 2, 3])
    assert choose_threshold(known(scores, np.uint8([0, 0, 0])), rule).reason == "no positives among 3 known labels"
    assert choose_threshold(known(scores, np.uint8([1, 1, 1])), rule).reason == "no negatives among 3 known labels"
    assert choose_threshold(known(scores[:0], np.uint8([])), rule).reason == "no known labels"


def test_the_curve_is_sklearns() -> None:
    from sklearn.metrics import precision_recall_curve, roc_curve

    scores, targets = one(4, num=300)
    found = curve(known(scores, targets))
    false_rate, recall, thresholds = roc_curve(targets, scores, drop_intermediate=False)
    np.testing.assert_allclose(found.false_positive_T / found.num_negative, false_rate[1:], rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.true_positive_T / found.num_positive, recall[1:], rtol=0, atol=1e-12)
    np.testing.assert_array_equal(found.threshold_T, thresholds[1:].astype(np.float32))
    precision, _, _ = precision_recall_curve(targets, scores)
    ours = found.true_positive_T / (found.true_positive_T + found.false_positive_T)
    np.testing.assert_allclose(ours[::-1], precision[:-1], rtol=0, atol=1e-12)


def test_rates_are_sklearns() -> None:
    from sklearn import metrics

    logits, targets, mask, patients = cohort(5)
    held = scored(logits, targets, mask, patients)
    thresholds = [0.5, -0.25, 1.0, 0.0]
    found = rate_estimates(held, thresholds)
    for column, threshold in enumerate(thresholds):
        keep = np.flatnonzero(mask[:, column])

        def expected(rows: NDArray[np.int64], column: int = column, threshold: float = threshold) -> dict[str, float]:
            true, called = targets[rows, column], logits[rows, column] >= np.float32(threshold)
            return {
                "recall": metrics.recall_score(true, called),
                "precision": metrics.precision_score(true, called),
                "specificity": metrics.recall_score(true, called, pos_label=0),
                "npv": metrics.precision_score(true, called, pos_label=0),
                "accuracy": metrics.accuracy_score(true, called),
                "f1": metrics.f1_score(true, called),
            }

        point = expected(keep)
        assert tuple(found[column]) == RATES
        for name in RATES:
            assert found[column][name].value == pytest.approx(point[name], rel=0, abs=1e-12)
            assert found[column][name].low < point[name] < found[column][name].high


def test_a_rate_of_1_has_a_lower_bound_and_one_of_few_patients_no_interval() -> None:
    scores, targets = np.float32([1.0] * 12 + [-1.0] * 30), np.uint8([1] * 12 + [0] * 30)
    for patients, low in ((12, 0.6), (9, None)):
        ids = np.arange(42)
        ids[:12] %= patients
        found = estimates(Cohort(scores[:, None], targets[:, None], np.ones((42, 1), np.uint8), ids), [0.0])[0]
        assert found["recall"].value == 1 and found["specificity"].low > 0.8
        if low is None:
            assert found["recall"].low is None and found["recall"].reason == "of 9 patients: an interval needs 10"
        else:
            assert low < found["recall"].low < 0.9 and found["recall"].high == 1


def test_higher_thresholds_never_raise_recall_nor_lower_specificity() -> None:
    scores, targets = one(7, num=300)
    rates = [count_cells(known(scores, targets), threshold).rates() for threshold in np.linspace(-3, 3, 50)]
    recall, specificity = ([rate[name] for rate in rates] for name in ("recall", "specificity"))
    assert recall == sorted(recall, reverse=True) and recall[0] > recall[-1]
    assert specificity == sorted(specificity)


def test_a_score_at_the_threshold_is_positive_and_thresholds_are_float32() -> None:
    scores, targets = np.float32([0.7, 0.3]), np.uint8([1, 0])
    assert count_cells(known(scores, targets), 0.7) == Confusion(1, 0, 0, 1)  # float32(0.7) is below 0.7
    assert count_cells(known(scores, targets), 0.3) == Confusion(1, 1, 0, 0)


def test_undefined_rates_are_none_with_a_reason() -> None:
    nobody = Confusion(0, 0, 0, 4)
    assert nobody.rates() == {
        "recall": None, "precision": None, "specificity": 1.0, "npv": 1.0, "accuracy": 1.0, "f1": None
    }  # fmt: skip
    assert nobody.undefined_rate("precision") == "nobody is called positive"
    assert nobody.undefined_rate("recall") == "there are no positives"
    assert nobody.undefined_rate("npv") is None
    everybody = Confusion(2, 0, 0, 0)
    assert everybody.undefined_rate("npv") == "nobody is called negative"
    assert everybody.undefined_rate("specificity") == "there are no negatives"
    assert set(Confusion(0, 0, 0, 0).rates().values()) == {None}


def estimates(data: Cohort, thresholds: list[float | None]) -> list[dict[str, Estimate]]:
    held = scored(*data)
    return rate_estimates(held, thresholds)


def test_edges_of_the_intervals() -> None:
    data = cohort(8)
    data.mask_NC[:, 1] = 0
    data.targets_NC[:, 2] = 0
    found = estimates(data, [None, 0.0, 0.0, 99.0])
    assert {one.reason for one in found[0].values()} == {"there is no threshold"}
    assert found[1]["accuracy"].reason == "no known labels"
    assert found[2]["recall"].reason == "there are no positives" and found[2]["accuracy"].low is not None
    assert found[3]["precision"].reason == "nobody is called positive" and found[3]["recall"].value == 0
    alone = estimates(data._replace(patient_id=data.patient_id * 0), [0.0] * 4)
    assert alone[0]["recall"].value is not None and alone[0]["recall"].low is None
    empty = estimates(Cohort(*(part[:0] for part in data)), [0.0, 0.0, 0.0, None])
    assert empty[0]["f1"].value is None
    data.mask_NC[4], data.logits_NC[4] = 1, np.nan
    assert estimates(data, [0.0] * 4)[0]["recall"].value is None
    assert choose_threshold(known(data.logits_NC[:, 0], data.targets_NC[:, 0]), Rule("youden")).value is None


def test_bad_arguments_are_refused() -> None:
    data = cohort(9)
    with pytest.raises(ValueError, match="3 thresholds for 4 findings"):
        estimates(data, [0.0] * 3)
    for bad in (np.nan, np.inf, 1e300):
        with pytest.raises(ValueError, match="finite float32"):
            count_cells(known(data.logits_NC[:, 0], data.targets_NC[:, 0]), bad)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("best",), "no threshold rule is called 'best': use youden"),
        (("youden", 0.5), "youden takes no figure"),
        (("recall",), "recall needs a figure"),
        (("specificity", 95), "up to 1, got 95"),
        (("probability",), "probability needs a figure"),
        (("recall", float("nan")), "got nan"),
    ],
)
def test_bad_rules_are_refused(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Rule(*arguments)  # type: ignore[arg-type]
