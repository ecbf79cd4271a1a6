"""The terminal: a live bar or lines of a log while a run trains, and tables, laid out by rich as plain text."""

from __future__ import annotations

import io
import logging
import re
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

logger = logging.getLogger(__name__)

LOG_WIDTH = 71
"""Columns of a table in a log: 80 less the time of day that the terminal's log puts before it."""
_UNBOUNDED = 10_000
_BAR_WIDTH = 12
_FIXED = len("epoch 99  / 0:00:00 ") + 3  # what stands beside bar, steps and figures
_LEAST_FIRST = ("memory", "lr", "wait", "speed", "loss")
"""Figures in the order in which a narrow terminal goes without them."""


class Progress:
    """Shows steps done and the newest figures."""

    def __init__(self, console: Console, *, total_steps: int, done_steps: int) -> None:
        self._total, self._first, self._started_s = total_steps, done_steps, time.monotonic()
        self._bar: Bar | None = None
        self._room = console.width - _BAR_WIDTH - 2 * len(str(total_steps)) - _FIXED
        if console.is_terminal:
            columns = (
                TextColumn("{task.description}"), BarColumn(_BAR_WIDTH), MofNCompleteColumn(), TimeElapsedColumn(),
                TextColumn("{task.fields[figures]}"),
            )  # fmt: skip
            self._bar = Bar(*columns, console=console)
            self._task = self._bar.add_task("training", total=total_steps, completed=done_steps, figures="")
            self._bar.start()

    def advance(self, step: int) -> None:
        """Move the bar; costs nothing in a log."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step)

    def show(self, step: int, epoch: int, figures: Mapping[str, float]) -> None:
        """The newest figures: `loss`, `lr`, `img_per_s`, `data_wait_pct`, `memory_mb`."""
        left_s = (time.monotonic() - self._started_s) / max(1, step - self._first) * (self._total - step)
        texts = {
            "loss": f"loss {figures['loss']:.4f}", "lr": f"lr {figures['lr']:.2e}",
            "speed": f"{figures['img_per_s']:.0f} img/s", "wait": f"data wait {figures['data_wait_pct']:.0f} %",
            "memory": f"{figures['memory_mb']:.0f} MB", "left": f"ETA {clock(left_s)}",
        }  # fmt: skip
        if self._bar is not None:
            for name in _LEAST_FIRST:
                if len("  ".join(texts.values())) > self._room:
                    del texts[name]
            text = "  ".join(texts.values())
            self._bar.update(self._task, completed=step, description=f"epoch {epoch}", figures=text)
        else:  # `newest_figures` reads it
            logger.info(f"epoch {epoch}  step {step}/{self._total}  {'  '.join(texts.values())}")

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._bar is not None:
            self._bar.stop()


class Figures(NamedTuple):
    """How far a run is, and the figures of its line as they were written."""

    step: int
    total_steps: int
    text: str


def newest_figures(log: str) -> Figures | None:
    """The last line of `Progress` in the text of a run's log, parsed; None where there is none."""
    lines = re.findall(r"epoch \d+  step (\d+)/(\d+)  (.*)", log)
    return Figures(int(lines[-1][0]), int(lines[-1][1]), lines[-1][2]) if lines else None


def clock(seconds: float) -> str:
    """`1:02:03` or `2:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def table_text(rows: Sequence[Sequence[str]], width: int | None = LOG_WIDTH, num_text: int = 1) -> str:
    """Rows of cells as aligned lines, the first row the titles; without colours, boxes and blanks at the ends of lines.

    The first `num_text` columns and those without a title are text: to the left, and folded where the table would
    be too wide. The others are figures: to the right, and whole.

    Args:
        width: most columns of the terminal; None for as many as it takes.
    """
    titles, *body = rows
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for number, title in enumerate(titles):
        is_text = number < num_text or not title
        table.add_column(
            Text(title), justify="left" if is_text else "right", no_wrap=not is_text, overflow="fold",
        )  # fmt: skip
    for row in body:
        table.add_row(*map(Text, row))
    # As Text objects, finding names are not read as markup; without a colour system, files get no escape codes.
    text = io.StringIO()
    Console(file=text, width=width or _UNBOUNDED, color_system=None, legacy_windows=False).print(table)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())
