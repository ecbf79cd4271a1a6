"""Do heat maps lie where radiologists drew boxes? Pointing game, IoU and coverage; arrays only.

    pointing   is the map's maximum in a box (Zhang et al., "Excitation Backprop", ECCV 2016)
    IoU        overlap of the boxes and of the part above a share of the maximum, over their union
    coverage   share of the map's heat that lies in the boxes

Beside them stands the share of the image that the boxes cover: what a point at random hits, and the IoU and coverage
of a map without any contrast. A figure near it means that the map knows nothing.

Shapes: N images of a finding, P patients, H, W of the map, K boxes of one finding on one image, which count as one
region. Boxes are (x0, y0, x1, y1) in pixels, half-open.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

IOU_THRESHOLD = 0.5
MIN_PATIENTS = 10
"""No interval of fewer patients: how much they differ would itself be a guess."""
_LEVEL, _NORMAL = 0.95, 1.959964
INTERVALS = {
    "level": _LEVEL, "unit": "patient", "min_patients": MIN_PATIENTS,
    "method": "Wilson's score interval on the effective number of images: the number of independent ones that would "
    "give the variance found between patients; Student's t of one less than the patients",
}  # fmt: skip
"""How the intervals of pointing and IoU are made, for the JSON."""

_EQUAL = 1 - 1e-6
"""Share of the maximum that counts as it: enlarging a map leaves flat parts uneven in their last bits."""


class MapScore(NamedTuple):
    """One heat map against its boxes; everything in [0, 1].

    Attributes:
        pointing: share of the map's maxima that are in a box; 1 or 0 where there is one maximum.
        pointing_chance: share of all pixels that would be a hit; `box_share` where the tolerance is 0.
        box_share: share of the image that the boxes cover.
        is_empty: nothing in the map is above 0: it points nowhere, and its figures are 0.
    """

    pointing: float
    iou: float
    coverage: float
    pointing_chance: float
    box_share: float
    is_empty: bool


@dataclass(frozen=True)
class FindingLocalisation:
    """Means over the images that have a box of one finding, each image counting the same."""

    pointing: float | None
    iou: float | None
    coverage: float | None
    pointing_chance: float | None
    box_share: float | None
    num: int
    """Images with a box."""
    num_empty: int
    """Of these, images with an empty map."""
    num_patients: int
    pointing_low: float | None
    pointing_high: float | None
    iou_low: float | None
    iou_high: float | None
    reason: str | None
    """Why the figures, or else their intervals, are None; None where all are numbers."""


def score_map(
    heat_HW: NDArray[np.float32],
    boxes_K4: NDArray[np.float64],
    *,
    threshold: float = IOU_THRESHOLD,
    tolerance_px: float = 0.0,
) -> MapScore:
    """Hold one map against one finding's boxes.

    Equal maxima share the hit, so a map that is the same everywhere scores as a point at random does.

    Args:
        heat_HW: 0 or above, in any unit.
        boxes_K4: at least one, in pixels of the map.
        threshold: share of the maximum from which a pixel belongs to the IoU's region; chosen on test images it would
            flatter the result.
        tolerance_px: a maximum this near a box, from the pixel's centre to that of one in the box, is a hit, too.

    Raises ValueError: values that are negative or not finite, no boxes, or a threshold or tolerance out of range.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold={threshold}: give a share of the map's maximum, above 0 and at most 1")
    if not (tolerance_px >= 0 and np.isfinite(tolerance_px)):
        raise ValueError(f"tolerance_px={tolerance_px}: give a distance in pixels, 0 or more")
    if heat_HW.ndim != 2 or not heat_HW.size or not np.isfinite(heat_HW).all() or heat_HW.min() < 0:
        raise ValueError(f"heat_HW of shape {heat_HW.shape}: a map of finite numbers, 0 or above, is expected")
    height, width = heat_HW.shape
    pixels_K4 = whole_pixels(boxes_K4, height, width)
    inside = region(pixels_K4, height, width)
    target = inside if tolerance_px == 0 else _within(pixels_K4, height, width, tolerance_px)
    chance, share = float(target.mean()), float(inside.mean())
    peak = heat_HW.max()
    if peak == 0:
        return MapScore(0.0, 0.0, 0.0, chance, share, True)
    hot = heat_HW >= threshold * peak
    return MapScore(
        pointing=float(target[heat_HW >= peak * _EQUAL].mean()),
        iou=float(np.count_nonzero(hot & inside) / np.count_nonzero(hot | inside)),
        coverage=float(heat_HW[inside].sum(dtype=np.float64) / heat_HW.sum(dtype=np.float64)),
        pointing_chance=chance,
        box_share=share,
        is_empty=False,
    )


def summarise(scores: Iterable[tuple[int, int, MapScore]], findings: Sequence[str]) -> dict[str, FindingLocalisation]:
    """Figures by finding, all of `findings` in their order.

    Args:
        scores: (finding's column, patient, score) of every image that has a box of the finding.
    """
    rows: list[list[tuple[int, MapScore]]] = [[] for _ in findings]
    for column, patient, score in scores:
        rows[column].append((patient, score))
    return {name: _means(name, of_finding) for name, of_finding in zip(findings, rows, strict=True)}


def patient_interval(value_N: NDArray[np.float64], patient_N: NDArray[np.int64]) -> tuple[float, float] | None:
    """The 95 % interval of the mean of N values in [0, 1], as `INTERVALS` names it; never of width 0.

    Images of one patient are not independent, so the variance is the one between patients' sums. Where all values are
    equal there is none to see, and each patient counts as one independent image.

    Returns (low, high), or None with fewer than `MIN_PATIENTS` patients.
    """
    _, group_N = np.unique(patient_N, return_inverse=True)
    num_patients = int(group_N.max()) + 1 if len(group_N) else 0
    if num_patients < MIN_PATIENTS:
        return None
    mean = float(value_N.mean())
    sums_P = np.bincount(group_N, weights=value_N - mean)
    variance = float((sums_P**2).sum()) / len(value_N) ** 2 * num_patients / (num_patients - 1)
    spread = mean * (1 - mean)
    effective = spread / variance if variance > 1e-12 and spread > 0 else float(num_patients)
    z, df = _NORMAL, num_patients - 1
    t = z + (z**3 + z) / (4 * df) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * df**2)  # within .001 from 9 on
    share = t * t / effective
    centre = (mean + share / 2) / (1 + share)
    half = t * math.sqrt(spread / effective + share / (4 * effective)) / (1 + share)
    return max(0.0, centre - half), min(1.0, centre + half)


def table_rows(found: dict[str, FindingLocalisation]) -> list[tuple[str, ...]]:
    """A row for each finding below the titles, for a terminal; a reason stands in a column without a title."""
    titles = (
        "finding", "images", "patients", "empty", "pointing", "95 %", "(chance)", "IoU", "95 %", "coverage",
        "box share", "",
    )  # fmt: skip
    rows: list[tuple[str, ...]] = [titles]
    for name, one in found.items():
        pointing, chance, iou, coverage, share = (
            "" if value is None else f"{value:.3f}"
            for value in (one.pointing, one.pointing_chance, one.iou, one.coverage, one.box_share)
        )
        of_pointing, of_iou = (
            "" if low is None else f"{low:.3f}-{high:.3f}"
            for low, high in ((one.pointing_low, one.pointing_high), (one.iou_low, one.iou_high))
        )
        cells = (pointing, of_pointing, chance, iou, of_iou, coverage, share)
        rows.append((name, str(one.num), str(one.num_patients), str(one.num_empty), *cells, one.reason or ""))
    return rows


def whole_pixels(boxes_K4: NDArray[np.float64], height: int, width: int) -> NDArray[np.int64]:
    """Boxes as the pixels with their centres inside, cut at the border: int64 [K, 4], half-open.

    A box too small to hold a centre takes the pixel it lies in, so that no box vanishes on a small map.
    Raises ValueError: no boxes, a box of another shape, or one outside the map.
    """
    if boxes_K4.ndim != 2 or boxes_K4.shape[1] != 4 or not len(boxes_K4):
        raise ValueError(f"boxes_K4 of shape {boxes_K4.shape}: at least one box of x0, y0, x1, y1 is expected")
    size = np.array([width, height])
    low, high = boxes_K4[:, :2].clip(0, size), boxes_K4[:, 2:].clip(0, size)
    if not (low < high).all():
        raise ValueError(f"a box has no area on the map of {height} x {width} pixels: {boxes_K4.tolist()}")
    first, end = np.ceil(low - 0.5), np.ceil(high - 0.5)
    none = first >= end
    first[none] = np.floor((low + high)[none] / 2)
    end[none] = first[none] + 1
    return np.concatenate([first, end], axis=1).astype(np.int64)


def region(pixels_K4: NDArray[np.int64], height: int, width: int) -> NDArray[np.bool_]:
    """The union of boxes of whole pixels, bool [H, W]."""
    inside = np.zeros((height, width), dtype=np.bool_)
    for x0, y0, x1, y1 in pixels_K4.tolist():
        inside[y0:y1, x0:x1] = True
    return inside


def _within(pixels_K4: NDArray[np.int64], height: int, width: int, distance_px: float) -> NDArray[np.bool_]:
    """Pixels at most so far from one of the boxes' pixels, bool [H, W]."""
    near = np.zeros((height, width), dtype=np.bool_)
    rows, columns = np.arange(height), np.arange(width)
    for x0, y0, x1, y1 in pixels_K4.tolist():
        dx = np.maximum(np.maximum(x0 - columns, columns - (x1 - 1)), 0)
        dy = np.maximum(np.maximum(y0 - rows, rows - (y1 - 1)), 0)
        near |= dx**2 + dy[:, None] ** 2 <= distance_px**2
    return near


def _means(finding: str, rows: list[tuple[int, MapScore]]) -> FindingLocalisation:
    if not rows:
        reason = f"no image here has a box of {finding}"
        return FindingLocalisation(None, None, None, None, None, 0, 0, 0, None, None, None, None, reason)
    patient_N = np.array([patient for patient, _ in rows])
    score_NK = np.array([score for _, score in rows], dtype=np.float64)
    pointing, iou, coverage, chance, share = score_NK.mean(axis=0)[:5].tolist()
    num_empty, num_patients = sum(score.is_empty for _, score in rows), len(np.unique(patient_N))
    few = f"fewer than {MIN_PATIENTS} patients, too few for an interval"
    (pointing_low, pointing_high), (iou_low, iou_high) = (
        patient_interval(score_NK[:, column], patient_N) or (None, None) for column in (0, 1)
    )
    return FindingLocalisation(
        pointing, iou, coverage, chance, share, len(rows), num_empty, num_patients,
        pointing_low, pointing_high, iou_low, iou_high, few if num_patients < MIN_PATIENTS else None,
    )  # fmt: skip
