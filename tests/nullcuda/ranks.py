"""A world in which this process is the only rank that exists, and every other does what this one does.

NCCL's part of it is in driver/nccl.cpp. Here is the launcher's store, through which ranks find and wait for each
other: what one rank adds, all add; so nothing that counts arrivals waits. Objects that rank 0 would decide and send are
decided by this rank itself.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

from accelerate.state import AcceleratorState
from torch import distributed as dist

T = TypeVar("T")

_ID_BYTES = 128  # of NCCL's unique id


class _EveryRankDoesTheSame(dist.Store):
    """The launcher's store, of one process."""

    def __init__(self, world_size: int) -> None:
        super().__init__()
        self._values = dist.HashStore()
        self._world_size = world_size

    def set(self, key: str, value: str | bytes) -> None:
        self._values.set(key, value)

    def get(self, key: str) -> bytes:
        """What rank 0 alone sets is NCCL's id, which nobody reads here."""
        return self._values.get(key) if self._values.check([key]) else bytes(_ID_BYTES)

    def add(self, key: str, number: int) -> int:
        return self._values.add(key, number * self._world_size)

    def check(self, keys: list[str]) -> bool:
        return self._values.check(keys)

    def wait(self, keys: list[str], timeout: timedelta | None = None) -> None:
        """Everybody is there."""

    def set_timeout(self, timeout: timedelta) -> None:
        """Nothing is waited for."""

    def delete_key(self, key: str) -> bool:
        return self._values.delete_key(key)


def pretend(rank: int, world_size: int, local_rank: int | None = None) -> None:
    """Be `rank` of `world_size` ranks of one machine from the next `start_runtime` on.

    Args:
        local_rank: None is `rank`.
    """
    from distcxr.runtime import Runtime

    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_WORLD_SIZE=str(world_size),
        LOCAL_RANK=str(rank if local_rank is None else local_rank),
    )  # fmt: skip
    dist.init_process_group = functools.partial(
        dist.init_process_group, store=_EveryRankDoesTheSame(world_size), rank=rank, world_size=world_size
    )
    dist.distributed_c10d.init_process_group = dist.init_process_group
    Runtime.decided_by_main = _decided_here  # type: ignore[method-assign,assignment]
    AcceleratorState._reset_state(reset_partial_state=True)  # of a world that this process was alone in


def _decided_here(_: object, decide: Callable[[], T]) -> T:
    return decide()
