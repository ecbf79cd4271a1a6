"""What verbs that take a while have in common: how many threads, what was made, how far they are."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import TaskID

    from distcxr.data.store.store_building import Built

_SHOWN = 5
_LOG_EVERY_S = 30.0


def num_workers(asked: int | None) -> int:
    """Threads to build with; ValueError for fewer than one."""
    from distcxr.data.readers.budget import thread_budget

    workers = thread_budget(1) if asked is None else asked
    if workers < 1:
        raise ValueError(f"--workers {workers}: at least 1 thread is needed")
    return workers


def report_made(built: Built, num_made: int, how: str, seconds: float, workers: int) -> None:
    """How many images were made, and why those."""
    if not num_made and not built.num_resumed:
        print(f"nothing to do: every image was checked in {seconds:.1f} s")
        return
    reasons = {
        "changed": built.num_changed, "damaged": built.num_damaged, "new": built.num_new,
        "kept from an earlier build": built.num_resumed,
    }  # fmt: skip
    detail = "".join(f", {num:,} {word}" for word, num in reasons.items() if num)
    print(f"{images(num_made)} {how} in {seconds:.1f} s with {workers} threads{detail}")


def report_unreadable(built: Built, listed_in: Path) -> None:
    """The first images that can't be read, and where all of them are listed."""
    if not built.unreadable:
        return
    print(f"{images(len(built.unreadable))} can't be read; in training each is named and counts for nothing:")
    for path, reason in list(built.unreadable.items())[:_SHOWN]:
        print(f"  {path}: {reason}")
    if len(built.unreadable) > _SHOWN:
        print(f"  and {len(built.unreadable) - _SHOWN:,} more, in {listed_in}")


def images(num: int) -> str:
    """`1 image`, `1,024 images`."""
    return f"{num:,} image{'s' * (num != 1)}"


class Bar:
    """Progress on stderr: on a terminal a bar with the speed and the time left; elsewhere a line of each half a minute,
    so that a log shows that something happens, and nothing of what takes less."""

    def __enter__(self) -> Bar:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._begun: dict[str, tuple[float, int]] = {}
        self._tasks: dict[str, TaskID] = {}
        self._logged_s = time.monotonic()
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"), TimeRemainingColumn(), console=Console(stderr=True),
        )  # fmt: skip
        if self._bar.console.is_terminal:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar.console.is_terminal:
            self._bar.stop()

    def show(self, what: str, done: int, total: int, figures: str | None = None) -> None:
        """`what` is at `done` of `total`; `figures` stand in place of images per second."""
        from distcxr.tracking.terminal import clock

        now_s = time.monotonic()
        begun_s, begun = self._begun.setdefault(what, (now_s, done))
        per_s = (done - begun) / (now_s - begun_s) if now_s > begun_s else 0.0
        if figures is None:
            figures = f"{per_s:,.0f} img/s" if per_s else ""
        if self._bar.console.is_terminal:
            if what not in self._tasks:
                self._tasks[what] = self._bar.add_task(what, figures="")
            self._bar.update(self._tasks[what], completed=done, total=total, figures=figures)
        elif now_s - self._logged_s >= _LOG_EVERY_S:
            self._logged_s = now_s
            at, left = time.strftime("%H:%M:%S"), f"  ETA {clock((total - done) / per_s)}" if per_s else ""
            print(f"{at} {what} {done:,}/{total:,}  {figures}{left}", file=sys.stderr, flush=True)
