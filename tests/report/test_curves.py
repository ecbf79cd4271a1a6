"""Curves: their areas, and that a thinned one looks the same."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from cohort import auprc, auroc, cohort, known
from numpy.typing import NDArray

from distcxr.metrics.threshold import curve
from distcxr.report.curves import VISIBLE, curves, precision_recall, roc, thinned


def scores(num: int = 3000, decimals: int = 3) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    held = cohort(seed=1, num=num, patients=num // 3, findings=1, decimals=decimals)
    return held.logits_NC[:, 0], held.targets_NC[:, 0]


def area(points_T2: NDArray[np.float64]) -> float:
    return float(np.trapezoid(points_T2[:, 1], points_T2[:, 0]))


@pytest.mark.parametrize("decimals", [1, 6], ids=["ties", "no-ties"])
def test_the_areas_below_the_whole_curves_are_the_figures(decimals: int) -> None:
    logits, targets = scores(decimals=decimals)
    found = curve(known(logits, targets))
    assert area(roc(found)) == pytest.approx(auroc(logits, targets), abs=1e-12)
    assert area(precision_recall(found)) == pytest.approx(auprc(logits, targets), abs=1e-12)


def distance(point: NDArray[np.float64], line_T2: NDArray[np.float64]) -> float:
    """From a point to a polyline, segment by segment."""
    best = np.inf
    for start, end in pairwise(line_T2):
        along = end - start
        share = np.clip((point - start) @ along / max(along @ along, 1e-30), 0, 1)
        best = min(best, float(np.hypot(*(point - start - share * along))))
    return best


def test_the_point_of_every_threshold_lies_on_the_curve() -> None:
    found = curve(known(*scores(num=300)))
    positive, negative = found.true_positive_T, found.false_positive_T
    line = precision_recall(found)
    for tp, fp in zip(positive[positive > 0], negative[positive > 0], strict=True):
        assert distance(np.array([tp / found.num_positive, tp / (tp + fp)]), line) < 1e-12


@pytest.mark.parametrize("points_of", [roc, precision_recall])
def test_thinning_moves_nothing_that_can_be_seen(points_of: object) -> None:
    whole = points_of(curve(known(*scores())))  # type: ignore[operator]
    few = thinned(whole)
    assert len(few) < len(whole) / 4
    assert (few[0] == whole[0]).all() and (few[-1] == whole[-1]).all()
    assert max(distance(point, few) for point in whole[::7]) <= VISIBLE


def test_a_finer_tolerance_keeps_more() -> None:
    whole = roc(curve(known(*scores())))
    assert len(thinned(whole, 1e-2)) < len(thinned(whole, 1e-3)) < len(thinned(whole, 1e-4))
    assert len(thinned(whole, -1.0)) == len(whole)


def test_a_curve_that_comes_back_to_its_start_keeps_its_peak() -> None:
    there_and_back = np.array([[0.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    assert thinned(there_and_back).tolist() == there_and_back.tolist()


def test_an_absent_class_has_no_curves() -> None:
    logits, targets = scores()
    assert curves(known(logits, np.zeros_like(targets))) is None
    assert curves(known(logits, np.ones_like(targets))) is None
    assert curves(known(logits[:0], targets[:0])) is None
    found = curves(known(logits, targets))
    assert found and found["roc"][0] == [0, 0] and found["roc"][-1] == [1, 1] and found["pr"][-1][0] == 1
