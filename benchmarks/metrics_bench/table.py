"""Times several ways to one figure in turns, and makes tables of the results."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass
class Row:
    """One way to one figure: median seconds, and how many times as fast as the first way listed."""

    figure: str
    way: str
    samples: int
    wall_s: float | None
    cpu_s: float | None = None
    ratio: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Claim:
    """A promise, its bar and what was measured; None is not kept."""

    what: str
    sign: str
    bar: float
    measured: float | None

    @property
    def holds(self) -> bool:
        if self.measured is None:
            return False
        return self.measured >= self.bar if self.sign == "≥" else self.measured <= self.bar


def take_turns(
    figure: str,
    samples: int,
    ways: dict[str, Callable[[], object]],
    windows: int,
    scale: dict[str, float] | None = None,
) -> list[Row]:
    """Median wall and CPU seconds of each way; the ratio is the median over windows, to the first way."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for window in range(windows + 1):  # the first warms up, and is dropped
        for name, way in ways.items():
            wall, cpu = time.perf_counter(), time.process_time()
            way()
            used = time.perf_counter() - wall, time.process_time() - cpu
            if window:
                factor = (scale or {}).get(name, 1.0)
                seconds[name].append((used[0] * factor, used[1] * factor))
    first = seconds[next(iter(ways))]
    return [
        Row(
            figure,
            name,
            samples,
            statistics.median(wall for wall, _ in used),
            statistics.median(cpu for _, cpu in used),
            statistics.median(base[0] / own[0] for base, own in zip(first, used, strict=True)),
        )
        for name, used in seconds.items()
    ]


def table(rows: Sequence[Row]) -> str:
    """Markdown, a line per row."""
    lines = ["| figure | way | samples | s | CPU s | ratio | |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        cells = [
            row.figure,
            row.way,
            f"{row.samples:,}",
            _cell(row.wall_s),
            _cell(row.cpu_s),
            _cell(row.ratio),
            row.note,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def claims_table(found: Sequence[Claim]) -> str:
    """Markdown, a line per promise."""
    lines = ["| promise | bar | measured | |", "|---|---|---|---|"]
    for claim in found:
        verdict = "not measured" if claim.measured is None else "holds" if claim.holds else "FAILS"
        lines.append(f"| {claim.what} | {claim.sign} {claim.bar:g} | {_cell(claim.measured)} | {verdict} |")
    return "\n".join(lines)


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}" if value < 1000 else f"{value:,.0f}"
