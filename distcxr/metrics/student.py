"""Student's t without SciPy: two-sided p-values, and the quantile of an interval."""

from __future__ import annotations

import math
from statistics import NormalDist

_TINY = 1e-300


def two_sided_p(t: float, df: float) -> float:
    """The probability of a t at least as far from 0, of `df` > 0 degrees of freedom; a relative error below 1e-9."""
    if math.isinf(t):
        return 0.0
    return _incomplete_beta(df / (df + t * t), t * t / (df + t * t), df / 2, 0.5)


def quantile(level: float, df: float) -> float:
    """The t beyond which lie (1 - level) / 2 on either side; 0 < level < 1. Newton from the normal's, which is nearer
    to 0: the p-value falls ever more slowly, so no step goes too far."""
    t = NormalDist().inv_cdf((1 + level) / 2)
    height = math.exp(math.lgamma((df + 1) / 2) - math.lgamma(df / 2)) / math.sqrt(df * math.pi)
    for _ in range(100):
        step = (two_sided_p(t, df) - (1 - level)) / (2 * height * (1 + t * t / df) ** (-(df + 1) / 2))
        t += step
        if abs(step) < 1e-10 * t:
            break
    return t


def _incomplete_beta(x: float, rest: float, a: float, b: float) -> float:
    """Regularised, by Lentz's continued fraction; `rest` is 1 - x, given so that neither loses digits."""
    if x <= 0 or rest <= 0:
        return 0.0 if x <= 0 else 1.0
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log(rest))
    if x < (a + 1) / (a + b + 2):
        return front * _fraction(x, a, b) / a
    return 1 - front * _fraction(rest, b, a) / b


def _fraction(x: float, a: float, b: float) -> float:
    c, d = 1.0, 1 / _away(1 - (a + b) * x / (a + 1))
    value = d
    for m in range(1, 1000):
        for step in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d, c = 1 / _away(1 + step * d), _away(1 + step / c)
            value *= c * d
        if abs(c * d - 1) < 1e-14:
            break
    return value


def _away(number: float) -> float:
    return number if abs(number) > _TINY else _TINY
