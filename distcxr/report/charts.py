"""Small drawings in SVG. Colours come from the page's style sheet, so that one drawing suits light, dark and paper."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from html import escape
from typing import NamedTuple

from distcxr.report.blocks import Cell, Chart, Content, KeyPath, words

AREA = ("auroc", "auroc_low", "auroc_high")

_PANEL = 200
_LEFT, _RIGHT, _TOP, _BOTTOM = 40, 6, 6, 30
_TIME_W, _TIME_H = 480, 230
_BAR_W, _BAR_H = 150, 18
_HEAD, _MARGIN = 34, 16
# Of a file. Colours as they are: few programs but browsers know a style sheet's variables.
_FILE_STYLE = """
text { font-family: system-ui, sans-serif; font-size: 12px; fill: #5d666f; }
.head { font-size: 14px; font-weight: 600; fill: #1c2024; }
.grid { stroke: #dfe1de; }
.mark { stroke: #5d666f; stroke-dasharray: 4 3; }
.curve { fill: none; stroke: #1f5fa8; stroke-width: 1.75; stroke-linejoin: round; }
.curve.thin { stroke-width: 1.25; }
.curve.other { stroke: #b8560f; }
.dot { fill: #1f5fa8; }
.dot.other { fill: #b8560f; }
.ring { fill: none; stroke: #b8560f; stroke-width: 1.5; }
"""


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


def interval_bar(content: Content, path: KeyPath, axis: tuple[float, float], style: str = "") -> Cell:
    """An AUROC on its interval, on a track along an axis; what lies beyond is cut. Empty without an AUROC."""
    value, low, high = (content.get(*path, key) for key in AREA)
    if value is None:
        return words("")
    start, end = axis

    def at(figure: float) -> float:
        return 5 + (_BAR_W - 10) * min(1.0, max(0.0, (figure - start) / (end - start)))

    middle = _BAR_H // 2
    drawn = [line("track", 5, middle, _BAR_W - 5, middle)]
    if low is not None and high is not None:
        width = max(1.0, at(high) - at(low))
        drawn.append(
            f'<rect class="span {style}" x="{_short(at(low))}" width="{_short(width)}" y="{middle - 4}" height="8"/>'
        )
    drawn.append(f'<rect class="value {style}" x="{_short(at(value) - 1)}" width="2" y="{middle - 6}" height="12"/>')
    return Cell((), svg=_svg(_BAR_W, _BAR_H, drawn, "bar"))


def panel(
    lines: Sequence[Line], dots: Sequence[Dot], x_label: str, y_label: str, *, end: float = 1.0, title: str = ""
) -> str:
    """A square chart from 0 to `end` both ways."""
    inner_w, inner_h = _PANEL - _LEFT - _RIGHT, _PANEL - _TOP - _BOTTOM

    def place(x: float, y: float) -> tuple[float, float]:
        return _LEFT + inner_w * x / end, _TOP + inner_h * (1 - y / end)

    drawn = []
    for tick, anchor in ((0.0, "start"), (end / 2, "middle"), (end, "end")):
        (x, y), label = place(tick, tick), f"{tick:g}"
        drawn.append(line("grid", _LEFT, y, _PANEL - _RIGHT, y))
        drawn.append(line("grid", x, _TOP, x, _PANEL - _BOTTOM))
        drawn.append(text(_LEFT - 4, y + 3.5, label, "tick", "end"))
        drawn.append(text(x, _PANEL - _BOTTOM + 12, label, "tick", anchor))
    drawn.append(text(_LEFT + inner_w / 2, _PANEL - 4, x_label, "axis", "middle"))
    drawn.append(text(9, _TOP + inner_h / 2, y_label, "axis", "middle", turn=-90))
    drawn += _curves(lines, dots, place)
    return _svg(_PANEL, _PANEL, drawn, "panel", title)


def over_time(
    lines: Sequence[Line], x_label: str, dots: Sequence[Dot] = (), marks: Sequence[tuple[float, str]] = (), *,
    from_zero: bool = False, log_x: bool = False, title: str = "",
) -> str:  # fmt: skip
    """Curves over steps or epochs; the y axis spans the values, from 0 on request.

    Args:
        log_x: x are powers of ten, and the axis names the numbers.
        marks: where a part of training begins, in rising order, and its name: upright lines. Where there is little
            room the name's last word stands for it.
    """
    points = [point for curve in lines for point in curve.points] + [(dot.x, dot.y) for dot in dots]
    x_first, x_last = min(point[0] for point in points), max(point[0] for point in points)
    lowest = 0.0 if from_zero else min(point[1] for point in points)
    y_ticks = _ticks(lowest, max(point[1] for point in points), 5)
    labels = [_tick_label(tick, y_ticks) for tick in y_ticks]
    left, right, top = 12 + 7 * max(map(len, labels)), _TIME_W - 14, 26
    y_first, y_last = y_ticks[0], y_ticks[-1]
    inner_w, inner_h = right - left, _TIME_H - top - 36

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_first) / (x_last - x_first or 1)
        return left + inner_w * across, top + inner_h * (1 - (y - y_first) / (y_last - y_first or 1))

    drawn = []
    for tick, label in zip(y_ticks, labels, strict=True):
        y = place(x_first, tick)[1]
        drawn += [line("grid", left, y, right, y), text(left - 6, y + 4, label, "tick", "end")]
    for tick in _ticks(x_first, x_last, 6):
        if x_first <= tick <= x_last and tick == int(tick):
            label = f"1e{tick:g}" if log_x else f"{tick:,g}"
            drawn.append(text(place(tick, y_first)[0], _TIME_H - 20, label, "tick", "middle"))
    drawn.append(text(left + inner_w / 2, _TIME_H - 4, x_label, "axis", "middle"))
    begins = [min(max(place(x, y_first)[0], left), right) for x, _ in marks]
    for x, following, (_, name) in zip(begins, [*begins[1:], float(_TIME_W)], marks, strict=False):
        short = name if following - x > 7 * len(name) + 6 else name.rpartition(" ")[2]  # or it would run into the next
        drawn += [line("mark", x, top, x, top + inner_h), text(x + 4, top + 11, short, "tick")]
    drawn += _curves(lines, dots, place)
    across = left
    for curve in lines:
        if curve.name:
            drawn += [line(curve.style, across, 11, across + 18, 11), text(across + 23, 15, curve.name, "tick")]
            across += 44 + 7 * len(curve.name)
    return _svg(_TIME_W, _TIME_H, drawn, "time", title)


def chart_file(charts: Sequence[Chart]) -> str:
    """Charts over time below each other as an SVG file, each with its title."""
    width, height = _TIME_W + 2 * _MARGIN, len(charts) * (_TIME_H + _HEAD) + _MARGIN
    drawn = [f'<rect width="{width}" height="{height}" fill="#fdfdfc"/>']
    for number, chart in enumerate(charts):
        top = number * (_TIME_H + _HEAD)
        caption = escape("".join(part.text for part in chart.caption))
        drawn.append(
            f'<text x="{_MARGIN}" y="{top + 24}"><tspan class="head">{escape(chart.title)}</tspan>'
            f'<tspan dx="10">{caption}</tspan></text>'
        )
        drawn.append(f'<svg x="{_MARGIN}" y="{top + _HEAD}" width="{_TIME_W}" height="{_TIME_H}">{chart.svg}</svg>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}"><style>{_FILE_STYLE}</style>{"".join(drawn)}</svg>\n'
    )


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


def line(style: str, x1: float, y1: float, x2: float, y2: float) -> str:
    """A straight line, in pixels."""
    return f'<line class="{style}" x1="{_short(x1)}" x2="{_short(x2)}" y1="{_short(y1)}" y2="{_short(y2)}"/>'


def circle(style: str, x: float, y: float, radius: float) -> str:
    """A circle, in pixels."""
    return f'<circle class="{style}" cx="{_short(x)}" cy="{_short(y)}" r="{_short(radius)}"/>'


def text(x: float, y: float, content: str, style: str, anchor: str = "start", turn: int = 0) -> str:
    """A line of text that starts, ends or has its middle at a point; turned around it by some degrees."""
    turned = f' transform="rotate({turn} {_short(x)} {_short(y)})"' if turn else ""
    place = f'x="{_short(x)}" y="{_short(y)}" text-anchor="{anchor}"{turned}'
    return f'<text class="{style}" {place}>{escape(content)}</text>'


def _curves(
    lines: Sequence[Line], dots: Sequence[Dot], place: Callable[[float, float], tuple[float, float]]
) -> list[str]:
    """Polylines, and dots above them, where `place` has their data units in pixels."""
    drawn = []
    for curve in lines:
        if curve.points:
            path = " ".join(",".join(map(_short, place(x, y))) for x, y in curve.points)
            drawn.append(f'<polyline class="{curve.style}" points="{path}"/>')
    return drawn + [circle(dot.style, *place(dot.x, dot.y), dot.radius) for dot in dots]


def _short(number: float) -> str:
    """A tenth of a pixel is finer than any screen shows, and a third of the bytes."""
    return f"{number:.1f}".removesuffix(".0")


def _svg(width: int, height: int, drawn: Sequence[str], style: str, title: str = "") -> str:
    named = f' role="img" aria-label="{escape(title)}"' if title else ' aria-hidden="true"'
    return f'<svg class="{style}" viewBox="0 0 {width} {height}"{named}>{"".join(drawn)}</svg>'
