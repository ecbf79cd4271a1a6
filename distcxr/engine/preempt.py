"""Leaving before the end because somebody asks: a time limit that draws near, preemption, an administrator.

    SIGUSR1 or SIGTERM to any rank, or a file STOP in the run folder
        ──► all ranks agree at an update boundary ──► checkpoint ──► file RESUME ──► exit code 0

Nothing is saved in the signal's handler, which may run in the middle of anything. While the splits are scored there is
nothing to save: the ranks just leave, and the scores are made by the run that goes on.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import torch

from distcxr.engine.claim import RESUME, STOP
from distcxr.runtime import Runtime

logger = logging.getLogger(__name__)

STOP_VARIABLE = "DISTCXR_STOP"
"""Path of the STOP file in the environment: whoever sets it has removed an old one, so the run must not."""
SIGNALS = (signal.SIGUSR1, signal.SIGTERM)

_CHECK_EVERY_S = 3.0
_MOST_STEPS = 64  # between two checks: what is fast now may be slow soon
_LOOK_EVERY_S = 0.5

_received: list[str] = []
"""Names of the signals that came: a process has one set of handlers."""


class Preempted(Exception):
    """The run was asked to stop; everything is saved."""


@contextmanager
def signals_noted() -> Iterator[None]:
    """Have SIGUSR1 and SIGTERM noted instead of ending the process. Main thread only."""
    _received.clear()
    before = {number: signal.signal(number, _note) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _received.clear()


def _note(number: int, _: FrameType | None) -> None:
    _received.append(signal.Signals(number).name)


class StopRequest:
    """Whether this run was asked to stop; the same answer on every rank at the same step.

    The ranks add up what each has seen every few steps, about every 3 seconds as rank 0 measures them: one all-reduce
    of two numbers, and the only wait for the device besides the log's. One rank of every node looks for the file: the
    nodes of a cluster do not see a new file at the same time.
    """

    def __init__(self, folder: Path, runtime: Runtime, step: int) -> None:
        """Forget what an earlier launch was asked and did.

        Args:
            step: updates done.
        """
        self._folder, self._runtime = folder, runtime
        self._file = Path(os.environ.get(STOP_VARIABLE) or folder / STOP)
        self._next_step = self._last_step = step
        self._every, self._checked_s = 1, time.monotonic()
        if runtime.is_main:
            (folder / RESUME).unlink(missing_ok=True)
            if STOP_VARIABLE not in os.environ:
                self._file.unlink(missing_ok=True)

    def agreed(self, step: int) -> bool:
        """Whether to stop here. Every rank must ask at every update boundary.

        Args:
            step: updates done.
        """
        if step < self._next_step:
            return False
        asked = bool(_received) or (self._runtime.local_rank == 0 and self._seen())
        every = self._proposed(step) if self._runtime.is_main else 0
        said = torch.tensor([float(asked), float(every)], device=self._runtime.device)
        num_asked, self._every = (round(number) for number in self._runtime.sum_over_ranks(said).tolist())
        self._last_step, self._next_step, self._checked_s = step, step + self._every, time.monotonic()
        return bool(num_asked)

    def _seen(self) -> bool:
        return self._file.exists()

    def _proposed(self, step: int) -> int:
        """Steps to the next check, by the speed since the last one; at most twice as many as then."""
        elapsed_s = max(time.monotonic() - self._checked_s, 1e-3)
        fitting = int(_CHECK_EVERY_S * (step - self._last_step) / elapsed_s)
        return max(1, min(fitting, 2 * self._every, _MOST_STEPS))

    def say_saved(self) -> None:
        """Leave the mark that this run is saved and can go on; on one rank, after the others have arrived."""
        (self._folder / RESUME).touch()
        logger.info(f"asked to stop ({self._reason()}): saved; the same command goes on from here")

    def _reason(self) -> str:
        return _received[0] if _received else self._file.name if self._seen() else "on another rank"

    @contextmanager
    def leaving_at_once(self) -> Iterator[None]:
        """End this process as soon as it is asked to: for what is made again when the run goes on.

        SIGTERM does not count as being asked: a launcher sends it when another rank has failed, and a failure must not
        look like something to go on with. It ends the process, as it usually does.
        """
        done = threading.Event()
        watch = threading.Thread(target=self._watch, args=(done,), daemon=True)
        watch.start()
        try:
            yield
        finally:
            done.set()
            watch.join()

    def _watch(self, done: threading.Event) -> None:
        while not done.wait(_LOOK_EVERY_S):
            asked = signal.SIGUSR1.name in _received or self._seen()
            if asked:
                (self._folder / RESUME).touch()
            if asked or _received:
                if self._runtime.is_main:
                    logger.info(f"asked to stop ({self._reason()}) while scoring; the same command scores anew")
                logging.shutdown()
                sys.stderr.flush()
                # Not by an exception: the main thread may be in a collective that the other ranks have left.
                os._exit(0 if asked else 128 + signal.SIGTERM)
