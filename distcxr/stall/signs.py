"""What the main thread leaves for the thread that watches it: plain attributes, no call of the system, no lock."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

_FIRST_UPDATES = 3  # compile, try algorithms and record graphs: not the speed of the others

# In order, within what is done for one update.
_START, _DATA, _STEP, _VALIDATION, _CHECKPOINT, _STAGE, _END = range(7)


class Signs:
    """Where the main thread is.

    Attributes:
        doing, step, phase: what it does, of which update. Ranks are in step: one that is behind holds up the others.
        is_host_work: whether it may be long without a tick: then CPU time and bytes count as progress.
        ticks: grows with every bit of progress.
        slowest_s: the longest update so far, without waiting for data, the first ones left out.
    """

    def __init__(self) -> None:
        self.doing, self.step, self.phase = "start-up", 0, _START
        self.is_host_work = True
        self.ticks = 0
        self.slowest_s = 0.0
        self._began_s: float | None = None
        self._updates = 0
        self._done: set[str] = set()

    def data(self, step: int) -> None:
        """The batches of an update are waited for."""
        if self._began_s is not None and self._updates > _FIRST_UPDATES:
            self.slowest_s = max(self.slowest_s, time.monotonic() - self._began_s)
        self._began_s, self.is_host_work = None, self._updates == 0
        self._are("waiting for the images of step", step, _DATA)

    def update(self, step: int) -> None:
        """An update begins."""
        self._began_s, self._updates = time.monotonic(), self._updates + 1
        self.is_host_work = self._updates <= _FIRST_UPDATES
        self._are("step", step, _STEP)

    def tick(self) -> None:
        """A part of something longer is done: a batch of a validation."""
        self.ticks += 1

    def validation(self, step: int) -> AbstractContextManager[None]:
        """Meanwhile the update's weights are evaluated."""
        return self._during("validation of step", step, _VALIDATION)

    def checkpoint(self, step: int) -> AbstractContextManager[None]:
        """Meanwhile rank 0 writes."""
        return self._during("checkpoint of step", step, _CHECKPOINT, host_work=True)

    def stage(self, step: int) -> AbstractContextManager[None]:
        """Meanwhile the next stage is entered; its updates and its validation are first ones again."""
        self._updates = 0
        self._done.clear()
        return self._during("stage after step", step, _STAGE, host_work=True)

    def ending(self, step: int) -> None:
        """From here on splits are scored, and rank 0 makes figures and files and closes services on the network."""
        self._began_s, self.is_host_work = None, True
        self._are("end after step", step, _END)

    @contextmanager
    def _during(self, doing: str, step: int, phase: int, *, host_work: bool = False) -> Iterator[None]:
        """Something that is no update, after which the main thread is where it was; the first time it may compile."""
        before = self.doing, self.step, self.phase
        was_host_work, self.is_host_work = self.is_host_work, host_work or doing not in self._done
        self._began_s = None
        self._are(doing, step, phase)
        try:
            yield
            self._done.add(doing)
        finally:
            self.is_host_work = was_host_work
            self._are(*before)

    def _are(self, doing: str, step: int, phase: int) -> None:
        self.doing, self.step, self.phase = doing, step, phase
        self.ticks += 1


SIGNS = Signs()
"""Of this process, which has one main thread."""
