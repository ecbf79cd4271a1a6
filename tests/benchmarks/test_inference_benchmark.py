"""The simulation of tests and intervals, each part once, and its bounds."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def inference() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "inference.py"
    spec = importlib.util.spec_from_file_location("inference", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_images_of_a_patient_fool_the_test_by_image_alone(inference: ModuleType) -> None:
    row = inference.comparison_errors(0.8, 50, 10, 4)
    assert 35 <= row["positive patients"] <= 65
    assert row["by image"] > 0.1 > row["p_delong"] and row["any p_delong_holm"] <= 0.25
    assert all(0 <= row[name] <= 0.2 for name in ("p", "p, average precision", "p, recall", "any p_holm"))


def test_intervals_of_right_probabilities_cover_them(inference: ModuleType) -> None:
    row = inference.calibration_coverage(0.05, 50, 5, 3)
    assert all(row[name] > 0.8 for name in ("slope", "intercept", "observed / expected", "Brier skill"))


def test_a_threshold_of_few_positives_misses_the_recall_asked_for(inference: ModuleType) -> None:
    few, many = (inference.threshold_choice(positives, 2) for positives in (2, 200))
    assert few["a tenth is below"] < 0.6 < 0.8 < many["a tenth is below"]
    assert few["covers the recall asked for"] < 0.5 and few["too narrow by a factor of"] > 3


def test_bounds_name_what_breaks_them(inference: ModuleType) -> None:
    row = {"AUROC": 0.8, "positive patients": 50.0, "images": 3.0, "p_delong": 0.2, "p": None}
    good = row | {"p_delong": 0.05, "any p_delong_holm": 0.2}
    assert list(inference.broken_bounds({"comparisons": [row, good]})) == [
        "comparisons, AUROC 0.8, positive patients 50, images 3: p_delong is 0.200, not 0 to 0.08",
        "comparisons: any p_delong_holm is 0.200 on average, not up to 0.07",
    ]
    assert inference.table([row]).splitlines()[-1] == "| 0.8 | 50 | 3 | 0.2 | - |"
