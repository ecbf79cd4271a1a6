"""The curves of training as one picture, `curves.svg`: for slides, chats and folders looked at without a browser."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from distcxr.report.blocks import Chart
from distcxr.report.training_section import loss_charts
from distcxr.runfolder import filenames
from distcxr.runfolder.history import read_columns
from distcxr.runfolder.whole import write_whole

_W, _H, _HEAD, _MARGIN = 480, 230, 34, 16
# Colours as they are: few programs but browsers know a style sheet's variables.
_STYLE = """
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


def write_curves(run_folder: Path) -> Path | None:
    """Draw `curves.svg` of `steps.csv` and `history.csv`; None, and no picture, where they hold too little to draw.

    Raises:
        ValueError: one of the two is damaged; it is named.
    """
    charts = loss_charts(read_columns(run_folder / filenames.STEPS), read_columns(run_folder / filenames.HISTORY))
    if not charts:
        return None
    path = run_folder / filenames.CURVES
    write_whole(path, to_svg(charts))
    return path


def to_svg(charts: Sequence[Chart]) -> str:
    """Charts over time below each other, each with its title."""
    width, height = _W + 2 * _MARGIN, len(charts) * (_H + _HEAD) + _MARGIN
    drawn = [f'<rect width="{width}" height="{height}" fill="#fdfdfc"/>']
    for number, chart in enumerate(charts):
        top = number * (_H + _HEAD)
        caption = escape("".join(part.text for part in chart.caption))
        drawn.append(
            f'<text x="{_MARGIN}" y="{top + 24}"><tspan class="head">{escape(chart.title)}</tspan>'
            f'<tspan dx="10">{caption}</tspan></text>'
        )
        drawn.append(f'<svg x="{_MARGIN}" y="{top + _HEAD}" width="{_W}" height="{_H}">{chart.svg}</svg>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}"><style>{_STYLE}</style>{"".join(drawn)}</svg>\n'
    )
