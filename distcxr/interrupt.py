"""Ctrl-C: the first saves a run that trains, the second ends it; before there is anything to save the first ends it.

    Ctrl-C ──► handler: a note for the ranks' next agreement ──► checkpoint ──► the process ends by SIGINT itself

A process that ended by the signal, and not with a code of its own, also ends a shell's loop over several recipes.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

_REPEATED_S = 2.0
"""Seconds in which a second SIGINT is the same key press: a terminal signals ranks, and so does their launcher."""


def without_traceback() -> None:
    """Have Ctrl-C end this process at once and silently, as it ends programs that are not in Python."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def interrupt_noted(note: Callable[[], None]) -> Iterator[None]:
    """Call `note` at the first Ctrl-C, end the process at the second. Main thread only."""
    first_s: float | None = None

    def handler(number: int, frame: FrameType | None) -> None:
        nonlocal first_s
        if first_s is None:
            first_s = time.monotonic()
            note()
            _write("Ctrl-C: saving after this step; press it again to quit without")
        elif time.monotonic() - first_s > _REPEATED_S:
            _write("Ctrl-C again: not saved; the same command resumes from the newest checkpoint")
            end_by_interrupt()

    before = signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def end_by_interrupt() -> NoReturn:
    """End this process as SIGINT does: without clean-up, which could wait for ranks that are gone."""
    without_traceback()
    os.kill(os.getpid(), signal.SIGINT)
    os._exit(128 + signal.SIGINT)  # where the signal is blocked


def _write(message: str) -> None:
    """To the terminal, from one rank: without a lock, because a handler may run in the middle of a log line."""
    if os.environ.get("RANK", "0") == "0":
        os.write(2, f"\n{message}\n".encode())
