"""ROC and precision-recall curves of a predictions file, thinned to what can be seen.

Shape suffixes: T points, 2 = (x, y), both in [0, 1]; K different recalls.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from distcxr.metrics.scored import Known
from distcxr.metrics.threshold import Curve, curve

VISIBLE = 1e-3
"""A thinned curve stays this near the whole one, in shares of the panel's side: a fifth of a pixel at 200 px."""


def roc(found: Curve) -> NDArray[np.float64]:
    """False positive rate and recall, [T, 2], from (0, 0) to (1, 1); the area below the polyline is the AUROC."""
    x_T = np.concatenate(([0], found.false_positive_T)) / found.num_negative
    y_T = np.concatenate(([0], found.true_positive_T)) / found.num_positive
    return np.stack((x_T, y_T), axis=1)


def precision_recall(found: Curve) -> NDArray[np.float64]:
    """Recall and precision, [T, 2], in steps; the area below is the average precision.

    At each recall the line goes down to its lowest precision, before the next positive: that adds no area, and the
    point of every threshold lies on the line.
    """
    recall_T = found.true_positive_T / found.num_positive
    precision_T = found.true_positive_T / (found.true_positive_T + found.false_positive_T)
    first_K = np.flatnonzero(np.diff(recall_T, prepend=0) > 0)
    last_K = np.concatenate((first_K[1:], [len(recall_T)])) - 1
    before_K = np.concatenate(([0.0], recall_T[first_K[:-1]]))
    x_K3 = np.stack((before_K, recall_T[first_K], recall_T[first_K]), axis=1)
    y_K3 = np.stack((precision_T[first_K], precision_T[first_K], precision_T[last_K]), axis=1)
    return np.stack((x_K3.ravel(), y_K3.ravel()), axis=1)


def thinned(points_T2: NDArray[np.float64], tolerance: float = VISIBLE) -> NDArray[np.float64]:
    """A polyline with fewer points, every left-out point within `tolerance` of it (Douglas and Peucker 1973).

    Ends stay. Distances are to the segment, so runs that go up and down at the same x keep their peaks.
    """
    keep_T = np.zeros(len(points_T2), dtype=np.bool_)
    keep_T[[0, -1]] = True
    waiting = [(0, len(points_T2) - 1)]
    while waiting:
        first, last = waiting.pop()
        if last - first < 2:
            continue
        distance = _to_segment(points_T2[first + 1 : last], points_T2[first], points_T2[last])
        farthest = int(np.argmax(distance))
        if distance[farthest] > tolerance:
            middle = first + 1 + farthest
            keep_T[middle] = True
            waiting += [(first, middle), (middle, last)]
    return points_T2[keep_T]


def curves(known: Known) -> dict[str, list[list[float]]] | None:
    """Thinned `roc` and `pr`, rounded to 1e-4; None where a class is absent or a logit is not finite."""
    if known.reason:
        return None
    found = curve(known)
    return {"roc": thinned(roc(found)).round(4).tolist(), "pr": thinned(precision_recall(found)).round(4).tolist()}


def _to_segment(
    points_T2: NDArray[np.float64], start_2: NDArray[np.float64], end_2: NDArray[np.float64]
) -> NDArray[np.float64]:
    along_2 = end_2 - start_2
    length = float(along_2 @ along_2)
    share_T = np.clip((points_T2 - start_2) @ along_2 / length, 0, 1) if length else np.zeros(len(points_T2))
    off_T2 = points_T2 - start_2 - share_T[:, None] * along_2
    return np.hypot(off_T2[:, 0], off_T2[:, 1])
