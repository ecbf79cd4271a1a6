"""The terminal while a run trains: a live bar on a terminal, lines in a log file."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Mapping
from typing import NamedTuple

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

logger = logging.getLogger(__name__)


class Progress:
    """Shows steps done and the newest figures."""

    def __init__(self, console: Console, *, total_steps: int, done_steps: int) -> None:
        self._total, self._first, self._started_s = total_steps, done_steps, time.monotonic()
        self._bar: Bar | None = None
        if console.is_terminal:
            columns = (
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
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
        text = (
            f"loss {figures['loss']:.4f}  lr {figures['lr']:.2e}  {figures['img_per_s']:.0f} img/s  "
            f"data wait {figures['data_wait_pct']:.0f} %  {figures['memory_mb']:.0f} MB  ETA {clock(left_s)}"
        )
        if self._bar is not None:
            self._bar.update(self._task, completed=step, description=f"epoch {epoch}", figures=text)
        else:
            logger.info(f"epoch {epoch}  step {step}/{self._total}  {text}")  # `newest_figures` reads it

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
