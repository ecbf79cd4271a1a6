"""What the verbs that build something from all images of a recipe have in common: `cache` and `pack`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distcxr.data.store.store_building import Built

_SHOWN = 5


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
    """A progress bar with img/s and the time left; nothing where stderr is not a terminal."""

    def __enter__(self) -> Bar:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._tasks: dict[str, int] = {}
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"), TimeRemainingColumn(), console=Console(stderr=True),
        )  # fmt: skip
        if self._bar.console.is_terminal:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar.console.is_terminal:
            self._bar.stop()

    def show(self, what: str, done: int, total: int) -> None:
        from rich.progress import TaskID

        if what not in self._tasks:
            self._tasks[what] = self._bar.add_task(what, total=total, rate="")
        task = self._bar.tasks[self._bar.task_ids.index(TaskID(self._tasks[what]))]
        rate = f"{done / task.elapsed:,.0f} img/s" if task.elapsed else ""
        self._bar.update(task.id, completed=done, total=total, rate=rate)
