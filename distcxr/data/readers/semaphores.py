"""Names of multiprocessing's semaphores, which outlive a process that is killed.

A worker finds its queues' semaphores by their names in /dev/shm, once, when it starts. Without a name a semaphore lives
as long as a process that has opened it, so names are removed as soon as all workers have started: what is killed from
then on leaves nothing behind. What was killed in the seconds before that has left names, which a later start removes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import process, synchronize, util
from pathlib import Path
from typing import Any

_SHM = Path("/dev/shm")
_PREFIX = "/distcxr"
_ABANDONED_S = 3600.0
"""Age of names that nobody needs: all workers of a loader start within minutes. The process that made one would say so,
too, but not where containers share /dev/shm and not their processes."""


class SemaphoreNames:
    """Those of what `made` has seen made."""

    def __init__(self) -> None:
        self._removals: list[Any] = []

    @contextmanager
    def made(self) -> Iterator[None]:
        """Remember the semaphores that are made within the block."""
        _remove_abandoned()
        before, config = set(_removals()), _process_config()
        usual, config["semprefix"] = config["semprefix"], _PREFIX
        try:
            yield
        finally:
            config["semprefix"] = usual
        self._removals += [removal for key, removal in _removals().items() if key not in before]

    @property
    def names(self) -> list[str]:
        """Names that were not removed yet, such as `/distcxr-x1y2z3`."""
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


def _process_config() -> dict[str, Any]:
    config: dict[str, Any] = process.current_process()._config  # type: ignore[attr-defined]
    return config


def _remove_abandoned() -> None:
    for path in _SHM.glob(f"sem.{_PREFIX[1:]}-*"):
        with suppress(OSError):  # gone meanwhile, or another user's
            if time.time() - path.stat().st_mtime > _ABANDONED_S:
                path.unlink()
