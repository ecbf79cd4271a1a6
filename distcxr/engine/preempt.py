"""Leaving before the end because somebody asks: a time limit that draws near, preemption, an administrator.

    SIGUSR1, SIGTERM or Ctrl-C to any rank, or a file STOP in the run folder
        ──► all ranks agree, between two updates or two batches of a validation
        ──► checkpoint ──► file RESUME ──► exit code 0

Nothing is saved in the signal's handler, which may run in the middle of anything. A validation that is left is made
anew by the run that resumes. So are the scores at the end, where there is nothing to save: the ranks just leave.
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

from distcxr.interrupt import end_by_interrupt, interrupt_noted
from distcxr.runfolder.filenames import RESUME, STOP
from distcxr.runtime import Runtime

logger = logging.getLogger(__name__)

STOP_VARIABLE = "DISTCXR_STOP"
"""Path of the STOP file in the environment: whoever sets it has removed an old one, so the run must not."""
SIGNALS = (signal.SIGUSR1, signal.SIGTERM)

_CHECK_EVERY_S = 3.0
_MOST_POINTS = 64  # between two checks: what is fast now may be slow soon
_LOOK_EVERY_S = 0.5

_received: list[str] = []
"""Names of the signals that came: a process has one set of handlers."""


class Preempted(Exception):
    """The run was asked to stop; everything is saved.

    Attributes:
        by_interrupt: it was asked by Ctrl-C.
    """

    def __init__(self) -> None:
        super().__init__()
        self.by_interrupt = signal.SIGINT.name in _received


class Interrupted(Exception):
    """The run was asked to stop while it validated; raised on every rank. Nothing is saved yet."""


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


@contextmanager
def savable() -> Iterator[None]:
    """Have Ctrl-C noted, too: from here on there is something to save. Main thread only."""
    with interrupt_noted(lambda: _received.append(signal.SIGINT.name)):
        yield


def _note(number: int, _: FrameType | None) -> None:
    _received.append(signal.Signals(number).name)


class StopRequest:
    """Whether this run was asked to stop; the same answer on every rank at the same point.

    The ranks add up what each has seen at every so many of these points, about every 3 seconds as rank 0 measures
    them: one all-reduce of two numbers, and the only wait for the device besides the log's. One rank of every node
    looks for the file: the nodes of a cluster do not see a new file at the same time.
    """

    def __init__(self, folder: Path, runtime: Runtime) -> None:
        """Forget what an earlier launch was asked and did."""
        self._folder, self._runtime = folder, runtime
        self._file = Path(os.environ.get(STOP_VARIABLE) or folder / STOP)
        self._passed, self._every = 0, 1  # points since the last check, and from one check to the next
        self._checked_s = time.monotonic()
        if runtime.is_main:
            (folder / RESUME).unlink(missing_ok=True)
            if STOP_VARIABLE not in os.environ:
                self._file.unlink(missing_ok=True)

    def agreed(self) -> bool:
        """Whether to stop here. Every rank must ask at the same points: before every update, and in a validation
        before every batch that all of them have.
        """
        self._passed += 1
        if self._passed < self._every:
            return False
        asked = bool(_received) or (self._runtime.local_rank == 0 and self._seen())
        every = self._proposed() if self._runtime.is_main else 0
        mine = torch.tensor([float(asked), float(every)], device=self._runtime.device)
        num_asked, self._every = (round(number) for number in self._runtime.sum_over_ranks(mine).tolist())
        self._passed, self._checked_s = 0, time.monotonic()
        return bool(num_asked)

    def _seen(self) -> bool:
        return self._file.exists()

    def _proposed(self) -> int:
        """Points to the next check, by the speed since the last one; at most twice as many as then."""
        elapsed_s = max(time.monotonic() - self._checked_s, 1e-3)
        fitting = int(_CHECK_EVERY_S * self._passed / elapsed_s)
        return max(1, min(fitting, 2 * self._every, _MOST_POINTS))

    def log_saved(self) -> None:
        """Leave the mark that this run is saved and can resume; on one rank, after the others have arrived."""
        (self._folder / RESUME).touch()
        logger.info(f"asked to stop ({self._reason()}): saved; the same command resumes from here")

    def _reason(self) -> str:
        if _received:
            return "Ctrl-C" if _received[0] == signal.SIGINT.name else _received[0]
        return self._file.name if self._seen() else "on another rank"

    @contextmanager
    def leaving_at_once(self) -> Iterator[None]:
        """End this process as soon as it is asked to: for what is made again when the run resumes.

        SIGTERM does not count as being asked: a launcher sends it when another rank has failed, and a failure must not
        look like something to resume. It ends the process, as it usually does.
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
            asked = self._seen() or any(name != signal.SIGTERM.name for name in _received)
            if asked:
                (self._folder / RESUME).touch()
            if asked or _received:
                if self._runtime.is_main:
                    logger.info(f"asked to stop ({self._reason()}) while scoring; the same command scores anew")
                logging.shutdown()
                sys.stderr.flush()
                # Not by an exception: the main thread may be in a collective that the other ranks have left.
                if signal.SIGINT.name in _received and self._runtime.world_size == 1:
                    end_by_interrupt()
                os._exit(0 if asked else 128 + signal.SIGTERM)
