"""The progress bar of verbs that work on many images."""

from __future__ import annotations


class Bar:
    """A progress bar with img/s and the time left; nothing where stderr is no terminal."""

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
