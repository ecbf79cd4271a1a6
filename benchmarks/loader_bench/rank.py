"""One process of a case: it opens a loader, then measures a window on each request.

Time is that of the clock; work is the CPU time of this process and all its children, so workers count wherever they
run; memory is what the process tree holds for itself, without files that are only mapped (libraries, a cache).
"""

from __future__ import annotations

import os
import time
import traceback
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any, NamedTuple

from loader_bench.cases import Task

BARRIER_TIMEOUT_S = 300.0
_USING_TORCH = ("torch", "dali", "dali pack", "gpu", "gpu filters", "cache", "cache reader", "cache device")
"""Cases in which torch brings the pixels to the GPU, where there is one."""


class Window(NamedTuple):
    """What one rank did in one window."""

    images: int
    seconds: float
    cpu_seconds: float
    memory_mb: float


def serve(task: Task, pipe: Connection, barrier: Barrier) -> None:
    """Send the memory of the process that has its libraries; then answer `("open",)` with the seconds to the first
    batch and `("window", discard, batches)` with a `Window`.

    An exception is sent back as its traceback and ends the process; so does the other end's silence.
    """
    batches: Any = None
    try:
        from loader_bench import candidates  # here, so that its imports are part of what may fail

        candidates.prepare(task)
        pipe.send(_memory_mb(os.getpid()))
        while True:
            command = pipe.recv()
            if command[0] == "open":
                barrier.wait(BARRIER_TIMEOUT_S)
                started = time.perf_counter()
                batches = candidates.open_case(task)
                next(batches)
                _finish_gpu(task)
                pipe.send(time.perf_counter() - started)
            else:
                pipe.send(_window(task, batches, barrier, *command[1:]))
    except (EOFError, KeyboardInterrupt):
        pass
    except BaseException:
        barrier.abort()  # the other ranks of the case wait for this one
        pipe.send(traceback.format_exc())
    finally:
        if batches is not None:
            batches.close()


def _window(task: Task, batches: Any, barrier: Barrier, discard: int, num_batches: int) -> Window:
    for _ in range(discard):  # made while others were measured: they would come for nothing
        next(batches)
    _finish_gpu(task)
    barrier.wait(BARRIER_TIMEOUT_S)
    tree = _tree()
    cpu = sum(map(_cpu_seconds, tree))
    started = time.perf_counter()
    images = sum(next(batches) for _ in range(num_batches))
    _finish_gpu(task)
    seconds = time.perf_counter() - started
    cpu = sum(map(_cpu_seconds, tree)) - cpu
    return Window(images, seconds, cpu, sum(map(_memory_mb, tree)))


def _finish_gpu(task: Task) -> None:
    if task.gpu is not None and task.loader in _USING_TORCH:
        import torch

        torch.cuda.synchronize(task.gpu)


def _tree() -> list[int]:
    """This process and its children's children; loaders start theirs with the first batch and keep them."""
    import psutil

    return [os.getpid(), *(child.pid for child in psutil.Process().children(recursive=True))]


def _cpu_seconds(pid: int) -> float:
    """CPU time of a process, all threads, to the nanosecond: /proc counts in steps of 10 ms, a window lasts 200."""
    return time.clock_gettime((~pid << 3) | 2)  # Linux's clock of another process, as clock_getcpuclockid makes it


def _memory_mb(pid: int) -> float:
    """Memory a process has to itself, and its share of what it shares with its kin."""
    kept = ("Pss_Anon:", "Pss_Shmem:")
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(kept)) / 1024
