"""Threads that begin, or an error: `Thread.start` waits for ever for one that had no memory to begin with."""

from __future__ import annotations

import signal
import threading
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

_WITHIN_S = 30.0


def start_all(threads: Sequence[threading.Thread], within_s: float = _WITHIN_S) -> None:
    """Start threads from the main thread.

    A new thread's first lines are Python's own. Where they find no memory, the error goes to standard error and the
    waiting thread never hears of it (CPython 3.11 to 3.14); an alarm interrupts the wait.

    Raises:
        MemoryError: one has not begun after `within_s` seconds.
    """
    before = signal.signal(signal.SIGALRM, _give_up)
    signal.setitimer(signal.ITIMER_REAL, within_s)
    try:
        for thread in threads:
            thread.start()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _give_up(_: int, __: FrameType | None) -> NoReturn:
    raise MemoryError("a thread could not begin")
