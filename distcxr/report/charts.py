"""Small drawings in SVG. Colours come from the page's style sheet, so that one drawing suits light, dark and paper."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import NamedTuple

_PANEL = 200
_LEFT, _RIGHT, _TOP, _BOTTOM = 40, 6, 6, 30
_TIME_W, _TIME_H = 480, 230
_BAR_W, _BAR_H = 150, 18


class Line(NamedTuple):
    """A polyline of (x, y) in data units; `style` is a class of the style sheet; a name puts it into the legend."""

    points: Sequence[Sequence[float]]
    style: str
    name: str = ""


class Dot(NamedTuple):
    """A point of (x, y) in data units, its radius in pixels."""

    x: float
    y: float
    radius: float
    style: str


def interval_bar(value: float, low: float | None, high: float | None, start: float, end: float, style: str = "") -> str:
    """A value on its interval, on a track from `start` to `end`; what lies beyond is cut."""

    def at(figure: float) -> float:
        return 5 + (_BAR_W - 10) * min(1.0, max(0.0, (figure - start) / (end - start)))

    middle = _BAR_H // 2
    drawn = [f'<line class="track" x1="5" x2="{_BAR_W - 5}" y1="{middle}" y2="{middle}"/>']
    if low is not None and high is not None:
        width = max(1.0, at(high) - at(low))
        drawn.append(
            f'<rect class="span {style}" x="{_short(at(low))}" width="{_short(width)}" y="{middle - 4}" height="8"/>'
        )
    drawn.append(f'<rect class="value {style}" x="{_short(at(value) - 1)}" width="2" y="{middle - 6}" height="12"/>')
    return _svg(_BAR_W, _BAR_H, drawn, "bar")


def panel(
    lines: Sequence[Line], dots: Sequence[Dot], x_label: str, y_label: str, *, end: float = 1.0, title: str = ""
) -> str:
    """A square chart from 0 to `end` both ways."""
    inner_w, inner_h = _PANEL - _LEFT - _RIGHT, _PANEL - _TOP - _BOTTOM

    def place(x: float, y: float) -> tuple[float, float]:
        return _LEFT + inner_w * x / end, _TOP + inner_h * (1 - y / end)

    drawn = []
    for tick in (0.0, end / 2, end):
        (x, y), label = place(tick, tick), f"{tick:g}"
        drawn.append(f'<line class="grid" x1="{_LEFT}" x2="{_PANEL - _RIGHT}" y1="{_short(y)}" y2="{_short(y)}"/>')
        drawn.append(f'<line class="grid" x1="{_short(x)}" x2="{_short(x)}" y1="{_TOP}" y2="{_PANEL - _BOTTOM}"/>')
        drawn.append(_words(_LEFT - 4, y + 3.5, label, "end"))
        anchor = "start" if tick == 0 else "end" if tick == end else "middle"
        drawn.append(_words(x, _PANEL - _BOTTOM + 12, label, anchor))
    drawn.append(_words(_LEFT + inner_w / 2, _PANEL - 4, x_label, "middle", "axis"))
    middle = _TOP + inner_h / 2
    drawn.append(_words(9, middle, y_label, "middle", "axis", f' transform="rotate(-90 9 {middle:g})"'))
    drawn += [_polyline([place(x, y) for x, y in line.points], line.style) for line in lines if line.points]
    for dot in dots:
        x, y = place(dot.x, dot.y)
        circle = f'cx="{_short(x)}" cy="{_short(y)}" r="{_short(dot.radius)}"'
        drawn.append(f'<circle class="{dot.style}" {circle}/>')
    return _svg(_PANEL, _PANEL, drawn, "panel", title)


def over_time(
    lines: Sequence[Line], x_label: str, dots: Sequence[Dot] = (), marks: Sequence[tuple[float, str]] = (), *,
    from_zero: bool = False, title: str = "",
) -> str:  # fmt: skip
    """Curves over steps or epochs; the y axis spans the values, from 0 on request.

    Args:
        marks: where a part of training begins, in rising order, and its name: upright lines. Where there is little
            room the name's last word stands for it.
    """
    points = [point for line in lines for point in line.points] + [(dot.x, dot.y) for dot in dots]
    x_ticks = _ticks(min(point[0] for point in points), max(point[0] for point in points), 6)
    lowest = 0.0 if from_zero else min(point[1] for point in points)
    y_ticks = _ticks(lowest, max(point[1] for point in points), 5)
    labels = [_tick_label(tick, y_ticks) for tick in y_ticks]
    left = 12 + 7 * max(map(len, labels))
    x_first, x_last = min(point[0] for point in points), max(point[0] for point in points)
    y_first, y_last = y_ticks[0], y_ticks[-1]
    inner_w, inner_h = _TIME_W - left - 14, _TIME_H - 26 - 36

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_first) / (x_last - x_first or 1)
        return left + inner_w * across, 26 + inner_h * (1 - (y - y_first) / (y_last - y_first or 1))

    drawn = []
    for tick, label in zip(y_ticks, labels, strict=True):
        y = place(x_first, tick)[1]
        drawn.append(f'<line class="grid" x1="{left}" x2="{_TIME_W - 14}" y1="{_short(y)}" y2="{_short(y)}"/>')
        drawn.append(_words(left - 6, y + 4, label, "end"))
    for tick in x_ticks:
        if x_first <= tick <= x_last and tick == int(tick):
            drawn.append(_words(place(tick, y_first)[0], _TIME_H - 20, f"{tick:,g}", "middle"))
    drawn.append(_words(left + inner_w / 2, _TIME_H - 4, x_label, "middle", "axis"))
    begins = [min(max(place(x, y_first)[0], left), _TIME_W - 14) for x, _ in marks]
    for x, following, (_, name) in zip(begins, [*begins[1:], float(_TIME_W)], marks, strict=False):
        drawn.append(f'<line class="mark" x1="{_short(x)}" x2="{_short(x)}" y1="26" y2="{26 + inner_h}"/>')
        short = name if following - x > 7 * len(name) + 6 else name.rpartition(" ")[2]  # or it would run into the next
        drawn.append(_words(x + 4, 37, short, "start"))
    drawn += [_polyline([place(x, y) for x, y in line.points], line.style) for line in lines if line.points]
    for dot in dots:
        x, y = place(dot.x, dot.y)
        drawn.append(f'<circle class="{dot.style}" cx="{_short(x)}" cy="{_short(y)}" r="{_short(dot.radius)}"/>')
    across = float(left)
    for line in lines:
        if line.name:
            drawn.append(
                f'<line class="{line.style}" x1="{_short(across)}" x2="{_short(across + 18)}" y1="11" y2="11"/>'
            )
            drawn.append(_words(across + 23, 15, line.name, "start"))
            across += 44 + 7 * len(line.name)
    return _svg(_TIME_W, _TIME_H, drawn, "time", title)


def nice_end(largest: float) -> float:
    """The end of an axis from 0 that holds `largest`, up to 1: 0.1, 0.2, 0.4, 0.6 or 1."""
    return next(end for end in (0.1, 0.2, 0.4, 0.6, 1.0) if largest <= end or end == 1.0)


def span_of(values: Iterable[float | None], step: float = 0.05) -> tuple[float, float]:
    """Where an axis starts and ends that holds the values, both multiples of `step` within 0 to 1."""
    known = [value for value in values if value is not None]
    start = max(0.0, math.floor(min(known, default=0.5) / step) * step)
    end = min(1.0, math.ceil(max(known, default=1.0) / step) * step)
    return round(start, 9), round(max(end, start + step), 9)


def _ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers around low to high, evenly spaced."""
    if high <= low:
        high = low + (abs(low) or 1.0)
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def _tick_label(tick: float, ticks: Sequence[float]) -> str:
    """With as many decimals as the axis needs; powers of ten where these would be too many."""
    step = ticks[1] - ticks[0]
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    if decimals <= 3:
        return f"{tick:,.{decimals}f}"
    return "0" if tick == 0 else f"{tick:.1e}".replace("e-0", "e-").replace(".0e", "e")


def _polyline(points: Sequence[tuple[float, float]], style: str) -> str:
    path = " ".join(f"{_short(x)},{_short(y)}" for x, y in points)
    return f'<polyline class="{style}" points="{path}"/>'


def _words(x: float, y: float, text: str, anchor: str, style: str = "tick", more: str = "") -> str:
    place = f'x="{_short(x)}" y="{_short(y)}" text-anchor="{anchor}"'
    return f'<text class="{style}" {place}{more}>{escape(text)}</text>'


def _short(number: float) -> str:
    """A tenth of a pixel is finer than any screen shows, and a third of the bytes."""
    return f"{number:.1f}".removesuffix(".0")


def _svg(width: int, height: int, drawn: Sequence[str], style: str, title: str = "") -> str:
    named = f' role="img" aria-label="{escape(title)}"' if title else ' aria-hidden="true"'
    return f'<svg class="{style}" viewBox="0 0 {width} {height}"{named}>{"".join(drawn)}</svg>'
