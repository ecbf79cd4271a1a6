"""A small chart of one score among validation's, as SVG; colours are the style sheet's."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from distcxr.report.charts import line, text

_WIDTH, _UP, _DOWN, _LABELS = 300, 26, 18, 14
_SIDE = 12
_BINS = 36
_TICKS = (0.0001, 0.001, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 0.8, 0.9, 0.95, 0.99, 0.999, 0.9999)
_ROOM = 34  # between the middles of two labels
_MOST = 12.0
"""Log odds beyond which all scores look alike."""

Probs = NDArray[np.float64]


def strip(negatives_N: Probs, positives_N: Probs, threshold: float | None, probability: float | None) -> str:
    """Validation's negatives above a line and its positives below, each as high as its fullest bin.

    The axis is in log odds, as rare findings have all their probabilities near 0. Without scores, threshold and
    probability alone are drawn.
    """
    marks = [value for value in (threshold, probability) if value is not None and np.isfinite(value)]
    every = _log_odds(np.concatenate([negatives_N, positives_N, np.array(marks or [0.5])]))
    low, high = float(every.min()), float(every.max())
    if high - low < 1.0:
        low, high = low - 0.5, high + 0.5

    def across(value: float) -> float:
        return _SIDE + (_WIDTH - 2 * _SIDE) * (float(_log_odds(np.array([value]))[0]) - low) / (high - low)

    drawn, bottom = [], _UP + _DOWN
    wide = (_WIDTH - 2 * _SIDE) / _BINS
    for probs_N, style, room in ((negatives_N, "negatives", -_UP), (positives_N, "positives", _DOWN)):
        counts, _ = np.histogram(_log_odds(probs_N), bins=_BINS, range=(low, high))
        for number in np.flatnonzero(counts).tolist():
            tall = max(1.5, (abs(room) - 2) * counts[number] / counts.max())
            top = _UP - tall if room < 0 else _UP
            drawn.append(
                f'<rect class="{style}" x="{_SIDE + number * wide:.1f}" y="{top:.1f}" width="{wide - 0.6:.1f}" '
                f'height="{tall:.1f}"/>'
            )
    drawn.append(line("base", _SIDE / 2, _UP, _WIDTH - _SIDE / 2, _UP))
    last = -float(_ROOM)
    for tick in _TICKS:
        x = across(tick)
        if _ROOM / 2 <= x <= _WIDTH - _ROOM / 2 and x - last >= _ROOM:
            drawn += [line("tick", x, bottom, x, bottom + 3), text(x, bottom + _LABELS, f"{tick:g}", "tick", "middle")]
            last = x
    if threshold is not None and np.isfinite(threshold):
        drawn.append(line("threshold", across(threshold), 0, across(threshold), bottom))
    if probability is not None and np.isfinite(probability):
        x = across(probability)
        drawn.append(line("here", x, 0, x, bottom))
        drawn.append(f'<path class="here" d="M{x - 5:.1f} 0h10l-5 7z"/>')
    return f'<svg class="strip" viewBox="0 0 {_WIDTH} {bottom + _LABELS + 3}" aria-hidden="true">{"".join(drawn)}</svg>'


def _log_odds(probs_N: Probs) -> Probs:
    with np.errstate(divide="ignore"):
        odds_N: Probs = np.log(probs_N) - np.log1p(-probs_N)
    return np.clip(odds_N, -_MOST, _MOST)
