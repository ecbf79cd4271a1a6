"""Pointing, IoU and coverage, by hand and against plain loops."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import numpy as np
import pytest
from numpy.typing import NDArray

from distcxr.explain.localisation import (
    MapScore,
    patient_interval,
    region,
    score_map,
    summarise,
    table_rows,
    whole_pixels,
)


def heat(*rows: tuple[float, ...]) -> NDArray[np.float32]:
    return np.array(rows, dtype=np.float32)


def corners(*boxes: tuple[float, float, float, float]) -> NDArray[np.float64]:
    return np.array(boxes, dtype=np.float64)


def test_figures_by_hand() -> None:
    picture = heat((0.0, 0.2, 0.0, 0.0), (0.0, 1.0, 0.5, 0.0), (0.0, 0.3, 0.0, 0.0))
    score = score_map(picture, corners((1, 1, 3, 3)))  # 1.0 0.5 / 0.3 0.0
    assert score.pointing == 1 and not score.is_empty
    assert score.iou == pytest.approx(2 / 4), "1.0 and 0.5 are hot, both in the box of 4"
    assert score.coverage == pytest.approx(1.8 / 2.0)
    assert score.box_share == score.pointing_chance == pytest.approx(4 / 12)
    assert score_map(picture, corners((1, 1, 3, 3)), threshold=0.51).iou == pytest.approx(1 / 4)
    assert score_map(picture, corners((1, 1, 3, 3)), threshold=0.25).iou == pytest.approx(3 / 4)
    missed = score_map(picture, corners((2, 0, 4, 3)))
    assert missed.pointing == 0 and missed.iou == pytest.approx(1 / 7) and missed.coverage == pytest.approx(0.25)


def test_the_unit_of_a_map_does_not_count() -> None:
    picture = np.random.default_rng(0).random((9, 7), dtype=np.float32)
    box = corners((1, 2, 5, 8))
    assert score_map(picture * 64, box) == score_map(picture, box)


def test_a_perfect_map_and_a_flat_one() -> None:
    box = corners((3, 2, 8, 9))
    inside = region(whole_pixels(box, 12, 10), 12, 10)
    perfect = score_map(inside.astype(np.float32), box)
    assert (perfect.pointing, perfect.iou, perfect.coverage) == (1, 1, 1)
    flat = score_map(np.full((12, 10), 0.3, np.float32), box)
    assert flat.box_share == pytest.approx(35 / 120)
    for figure in (flat.pointing, flat.iou, flat.coverage):
        assert figure == pytest.approx(flat.box_share), "a map that is the same everywhere scores as chance does"


def test_equal_maxima_share_the_hit() -> None:
    picture = np.zeros((4, 4), np.float32)
    picture[0, 0] = picture[0, 1] = picture[3, 3] = 2.0
    assert score_map(picture, corners((0, 0, 1, 1))).pointing == pytest.approx(1 / 3)
    picture[3, 3] = np.nextafter(np.float32(2), np.float32(1))
    assert score_map(picture, corners((3, 3, 4, 4))).pointing == pytest.approx(1 / 3), "equal but for rounding"
    picture[3, 3] = 1.999
    assert score_map(picture, corners((3, 3, 4, 4))).pointing == 0


def test_an_empty_map_points_nowhere() -> None:
    score = score_map(np.zeros((4, 4), np.float32), corners((0, 0, 2, 4)))
    assert score == MapScore(0, 0, 0, 0.5, 0.5, True)


def test_boxes_are_a_union() -> None:
    picture = np.ones((10, 10), np.float32)
    overlapping = corners((0, 0, 6, 6), (4, 4, 10, 10))
    score = score_map(picture, overlapping)
    assert score.box_share == score.coverage == score.iou == pytest.approx((36 + 36 - 4) / 100)
    assert score_map(picture, np.repeat(overlapping, 3, axis=0)) == score
    picture[0, 0], picture[9, 9] = 3, 3
    assert score_map(picture, overlapping).pointing == 1, "one maximum in each box"


@pytest.mark.parametrize("tolerance_px", [0.0, 1.0, 1.5, 3.0])
def test_tolerance_is_a_distance_from_the_boxes(tolerance_px: float) -> None:
    """Against a loop over all pixels of the box."""
    boxes = corners((3, 4, 5, 6), (11, 2, 12, 9))
    inside = np.argwhere(region(whole_pixels(boxes, 14, 16), 14, 16))
    hits = 0
    for y in range(14):
        for x in range(16):
            picture = np.zeros((14, 16), np.float32)
            picture[y, x] = 1
            near = min(math.dist((y, x), place) for place in inside.tolist()) <= tolerance_px
            score = score_map(picture, boxes, tolerance_px=tolerance_px)
            assert score.pointing == near
            assert score.coverage == ([y, x] in inside.tolist()), "the tolerance is the pointing game's alone"
            hits += near
    assert score.pointing_chance == pytest.approx(hits / (14 * 16))
    assert score.box_share == pytest.approx(len(inside) / (14 * 16))


def test_a_pixel_is_in_the_box_that_holds_its_centre() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        low = rng.uniform(0, 9, 2)
        x0, y0, x1, y1 = *low, *(low + rng.uniform(1.01, 8, 2))
        inside = region(whole_pixels(corners((x0, y0, x1, y1)), 12, 11), 12, 11)
        expected = [[x0 <= x + 0.5 < x1 and y0 <= y + 0.5 < y1 for x in range(11)] for y in range(12)]
        assert inside.tolist() == expected


def test_no_box_vanishes_on_a_small_map() -> None:
    assert whole_pixels(corners((2.6, 3.1, 2.9, 3.3)), 8, 8).tolist() == [[2, 3, 3, 4]]
    assert whole_pixels(corners((2.6, 1.0, 2.9, 3.0)), 8, 8).tolist() == [[2, 1, 3, 3]]
    assert whole_pixels(corners((7.7, 7.7, 8.0, 8.0)), 8, 8).tolist() == [[7, 7, 8, 8]]
    assert whole_pixels(corners((-5.0, 6.0, 3.0, 12.0)), 8, 8).tolist() == [[0, 6, 3, 8]], "cut at the border"


@pytest.mark.parametrize(
    ("picture", "boxes", "options", "message"),
    [
        (np.ones((4, 4)), corners((0, 0, 1, 1)), {"threshold": 0.0}, "threshold=0.0"),
        (np.ones((4, 4)), corners((0, 0, 1, 1)), {"threshold": 1.1}, "threshold=1.1"),
        (np.ones((4, 4)), corners((0, 0, 1, 1)), {"tolerance_px": -1.0}, "tolerance_px=-1.0"),
        (np.full((4, 4), np.nan), corners((0, 0, 1, 1)), {}, "finite numbers, 0 or above"),
        (-np.ones((4, 4)), corners((0, 0, 1, 1)), {}, "finite numbers, 0 or above"),
        (np.ones((1, 4, 4)), corners((0, 0, 1, 1)), {}, r"shape \(1, 4, 4\)"),
        (np.ones((4, 4)), np.empty((0, 4)), {}, "at least one box"),
        (np.ones((4, 4)), np.zeros(4), {}, "at least one box"),
        (np.ones((4, 4)), corners((4, 0, 6, 2)), {}, "no area on the map of 4 x 4"),
        (np.ones((4, 4)), corners((1, 1, 1, 3)), {}, "no area"),
    ],
)
def test_what_can_t_be_scored_is_named(
    picture: NDArray[np.float64], boxes: NDArray[np.float64], options: dict[str, float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        score_map(picture.astype(np.float32), boxes, **options)


def test_figures_by_finding() -> None:
    scores = [
        (1, 7, MapScore(1.0, 0.5, 0.6, 0.1, 0.1, False)),
        (1, 7, MapScore(0.5, 0.3, 0.2, 0.3, 0.2, False)),
        (0, 8, MapScore(0.0, 0.0, 0.0, 0.4, 0.4, True)),
    ]
    found = summarise(scores, ["Mass", "Nodule", "Hernia"])
    assert list(found) == ["Mass", "Nodule", "Hernia"]
    nodule = found["Nodule"]
    assert (nodule.num, nodule.num_patients, nodule.num_empty) == (2, 1, 0)
    assert nodule.reason == "fewer than 10 patients, too few for an interval"
    means = (nodule.pointing, nodule.iou, nodule.coverage, nodule.pointing_chance, nodule.box_share)
    assert means == pytest.approx((0.75, 0.4, 0.4, 0.2, 0.15))
    assert (found["Mass"].pointing, found["Mass"].num, found["Mass"].num_empty) == (0.0, 1, 1)
    assert json.loads(json.dumps(asdict(found["Hernia"]))) == {
        "pointing": None, "iou": None, "coverage": None, "pointing_chance": None, "box_share": None, "num": 0,
        "num_empty": 0, "num_patients": 0, "pointing_low": None, "pointing_high": None, "iou_low": None,
        "iou_high": None, "reason": "no image here has a box of Hernia",
    }  # fmt: skip
    titles, _, nodule_row, hernia_row = table_rows(found)
    assert nodule_row[:-1] == ("Nodule", "2", "1", "0", "0.750", "", "0.200", "0.400", "", "0.400", "0.150")
    assert hernia_row[-1] == "no image here has a box of Hernia" and "None" not in " ".join(hernia_row)
    assert titles[4:7] == ("pointing", "95 %", "(chance)")


@pytest.mark.parametrize("share", [0.5, 0.8])
def test_intervals_hold_where_images_of_a_patient_are_alike(share: float) -> None:
    """30 patients of 1 to 9 images each: .96 and .95, where images taken for independent ones give .67 and .72."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        patient_N = np.repeat(np.arange(30), rng.integers(1, 10, size=30))
        hit_N = rng.random(len(patient_N)) < rng.beta(share, 1 - share, size=30)[patient_N]
        low, high = patient_interval(hit_N.astype(float), patient_N) or (1.0, 0.0)
        held += low <= share <= high
    assert 0.93 <= held / 400 <= 0.97


def test_no_interval_has_width_zero_and_few_patients_have_none() -> None:
    patients, ones = np.repeat(np.arange(10), 20), np.ones(200)
    low, high = patient_interval(ones, patients) or (1.0, 0.0)
    assert high == 1 and 0.6 < low < 0.75, "ten patients that all hit are ten, not two hundred"
    assert patient_interval(0 * ones, patients) == pytest.approx((1 - high, 1 - low))
    low, high = patient_interval(0.3 * ones, patients) or (1.0, 0.0)
    assert low < 0.2 < 0.4 < high
    assert patient_interval(ones, patients // 2) is None
