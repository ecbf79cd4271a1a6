"""The picture of a comparison: a row per run, its intervals, its stages and its findings."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from distcxr.report.blocks import readable
from distcxr.report.charts import circle, line, span_of, text

_ROW, _HEAD = 26, 46
_LETTER = 7.2  # of a bold label; a generous guess, because fonts differ
_LONGEST_LABEL = 44
_DOTS_W = 420
_CELL_W = 52
_GAP = 34
_STYLE = """
svg { --paper: #fdfdfc; --ink: #1c2024; --soft: #5d666f; --rule: #dfe1de; --blue: #1f5fa8; --orange: #b8560f;
  background: var(--paper); font: 12px system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
@media (prefers-color-scheme: dark) {
  svg { --paper: #14171a; --ink: #e6e8e9; --soft: #9aa4ad; --rule: #323940; --blue: #74b0f4; --orange: #f0a05a; }
}
"""
_COMMON = """
.charts:has(.sweep) { display: block; overflow-x: auto; }
.sweep .label { font-size: 12px; fill: var(--ink); } .sweep .label.bold { font-weight: 700; }
.sweep .note { font-size: 11px; fill: var(--soft); }
.sweep .grid { stroke: var(--rule); stroke-width: 1; }
.sweep .val { stroke: var(--orange); fill: var(--orange); } .sweep .test { stroke: var(--blue); fill: var(--blue); }
.sweep .interval { stroke-width: 3; stroke-opacity: .4; } .sweep .cell { fill: var(--blue); }
"""


def picture(values: dict[str, Any], *, alone: bool) -> str:
    """An SVG drawing of what `compare.compare` returned.

    Args:
        alone: whether it is a file of its own, which brings its colours; a page has them.
    """
    runs = [(number, run) for number, run in enumerate(values["runs"], start=1) if run["metrics"]]
    labels = [_cut(f"{number} {run['name']}") for number, run in runs]
    left = 14 + _LETTER * max(map(len, labels), default=10)
    drawn: list[str] = []
    width, y = left + _DOTS_W, 0.0
    if runs:
        drawn += _intervals(runs, labels, values["splits"], values["best"], left)
        notes = [len(run["not_comparable"]) + 16 for _, run in runs if run["not_comparable"]]
        width += 6 * max(notes, default=0)
        y = _HEAD + _ROW * len(runs) + _GAP
        stages = max((run["stages"] for _, run in runs), key=len)
        if stages:
            staged = [(label, run) for label, (_, run) in zip(labels, runs, strict=True) if run["stages"]]
            table = [[stage["val_auroc"] for stage in run["stages"]] for _, run in staged]
            names = [f"{stage['stage']} {stage['name']}" if stage["name"] != str(stage["stage"]) else stage["name"]
                     for stage in stages]  # fmt: skip
            title = "best validation AUROC within each stage"
            part, right, y = _matrix(title, [label for label, _ in staged], names, table, left, y)
            drawn, width = drawn + part, max(width, right)
        split = values["splits"][-1]
        names = [readable(name) for name in values["findings"]]
        table = [
            [
                run["metrics"].get(split, {}).get("findings", {}).get(name, {}).get("auroc")
                for name in values["findings"]
            ]
            for _, run in runs
        ]
        part, right, y = _matrix(f"AUROC of each finding, {split}", labels, names, table, left, y)
        drawn, width = drawn + part, max(width, right)
    else:
        drawn, y = [text(14, 30, "no run has results", "note")], 50.0
    size = f'width="{width + 14:.0f}" height="{y:.0f}" viewBox="0 0 {width + 14:.0f} {y:.0f}"'
    style = f"<style>{_STYLE if alone else ''}{_COMMON}</style>"
    named = f' role="img" aria-label="{escape(f"results of {len(runs)} runs")}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" class="sweep" {size}{named}>{style}{"".join(drawn)}</svg>'


def _intervals(
    runs: Sequence[tuple[int, dict[str, Any]]], labels: Sequence[str], splits: Sequence[str], best: str | None,
    left: float,
) -> list[str]:  # fmt: skip
    """Dots on their intervals, one of each split in a run's row."""
    keys = ("auroc", "auroc_low", "auroc_high")
    areas = [run["metrics"].get(split, {}).get("macro", {}) for _, run in runs for split in splits]
    start, end = span_of((area.get(key) for area in areas for key in keys), step=0.02)
    bottom = _HEAD + _ROW * len(runs)

    def at(value: float) -> float:
        return left + 10 + (_DOTS_W - 20) * (value - start) / (end - start)

    drawn = []
    step = next(step for step in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5) if (end - start) / step <= 8.5)
    ticks = [tick * step for tick in range(round(start / step), round(end / step) + 1) if start <= tick * step + 1e-9]
    for tick in ticks:
        if tick <= end + 1e-9:
            drawn.append(line("grid", at(tick), _HEAD - 8, at(tick), bottom))
            drawn.append(text(at(tick), _HEAD - 13, f"{tick:.2f}", "note", "middle"))
    across = left + 10
    drawn.append(text(14, 16, "macro AUROC", "label bold"))
    for split in splits:
        drawn += [circle(split, across, 12, 4), text(across + 9, 16, split, "note")]
        across += 60
    for position, ((_, run), label) in enumerate(zip(runs, labels, strict=True)):
        middle = _HEAD + _ROW * (position + 0.5)
        bold = " bold" if run["name"] == best else ""
        drawn.append(text(14, middle + 4, label, f"label{bold}"))
        for number, split in enumerate(splits):
            area = run["metrics"].get(split, {}).get("macro", {})
            if area.get("auroc") is None:
                continue
            y = middle + (number - (len(splits) - 1) / 2) * 9
            if area["auroc_low"] is not None:
                drawn.append(line(f"interval {split}", at(area["auroc_low"]), y, at(area["auroc_high"]), y))
            drawn.append(circle(split, at(area["auroc"]), y, 3.5))
        if run["not_comparable"]:
            drawn.append(text(left + _DOTS_W + 6, middle + 4, f"not comparable: {run['not_comparable']}", "note"))
    return drawn


def _matrix(
    title: str, labels: Sequence[str], columns: Sequence[str], table: Sequence[Sequence[float | None]], left: float,
    top: float,
) -> tuple[list[str], float, float]:  # fmt: skip
    """A cell per run and column, darker for more; the best of a column in bold. Also its right and bottom end."""
    slant = 14 + 0.62 * _LETTER * max(map(len, columns))
    drawn = [text(14, top + 4, title, "label bold")]
    body = top + 16 + slant
    known = [value for row in table for value in row if value is not None]
    low, high = span_of(known)
    for position, name in enumerate(columns):
        x = left + _CELL_W * (position + 0.5)
        drawn.append(text(x, body - 6, name, "note", turn=-38))
    for position, (label, row) in enumerate(zip(labels, table, strict=True)):
        y = body + _ROW * position
        drawn.append(text(14, y + 17, label, "label"))
        for column, value in enumerate(row):
            x = left + _CELL_W * column
            if value is None:
                drawn.append(text(x + _CELL_W / 2, y + 17, "–", "note", "middle"))
                continue
            others = [found for other in table for found in other[column : column + 1] if found is not None]
            is_best = len(others) > 1 and value == max(others)
            shade = 0.06 + 0.44 * (value - low) / (high - low)
            cell = f'x="{x + 1:.1f}" y="{y + 1:.1f}" width="{_CELL_W - 2}" height="{_ROW - 2}"'
            drawn.append(f'<rect class="cell" {cell} fill-opacity="{shade:.2f}"/>')
            style = "label bold" if is_best else "label"
            drawn.append(text(x + _CELL_W / 2, y + 17, f"{value:.3f}".removeprefix("0"), style, "middle"))
    bottom = body + _ROW * len(labels)
    end = left + _CELL_W * len(columns) + 0.8 * _LETTER * max(map(len, columns)) - _CELL_W / 2
    return drawn, max(end, left + _CELL_W * len(columns)), bottom + _GAP


def _cut(label: str) -> str:
    return label if len(label) <= _LONGEST_LABEL else f"{label[: _LONGEST_LABEL - 1]}…"
