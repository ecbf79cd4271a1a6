"""Names of multiprocessing's semaphores, which outlive a process that is killed.

A worker finds its queues' semaphores by their names in /dev/shm, once, when it starts. Without a name a semaphore lives
as long as a process that has opened it, so names are removed as soon as all workers have started: what is killed from
then on leaves nothing behind.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import synchronize, util
from typing import Any


class SemaphoreNames:
    """Those of what `made` has seen made."""

    def __init__(self) -> None:
        self._removals: list[Any] = []

    @contextmanager
    def made(self) -> Iterator[None]:
        """Remember the semaphores that are made within the block."""
        before = set(_removals())
        yield
        self._removals += [removal for key, removal in _removals().items() if key not in before]

    @property
    def names(self) -> list[str]:
        """Names that were not removed yet, such as `/mp-x1y2z3`."""
        return [removal._args[0] for removal in self._removals if removal.still_active()]

    def remove(self) -> None:
        """Remove them; nobody can open these semaphores any more. multiprocessing's resource tracker knows of it."""
        for removal in self._removals:
            removal()  # what it would do when the semaphore is no longer used
        self._removals = []


def _removals() -> dict[Any, Any]:
    registry: dict[Any, Any] = util._finalizer_registry  # type: ignore[attr-defined]
    cleanup = synchronize.SemLock._cleanup  # type: ignore[attr-defined]
    return {key: finalizer for key, finalizer in registry.items() if finalizer._callback is cleanup}
