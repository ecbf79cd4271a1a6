"""What a run of a sweep may use: all of the machine, or one GPU and its share of the cores."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Slot:
    """A place in which one run after the other has its turn.

    Attributes:
        processes: ranks of a run.
        gpu: what CUDA_VISIBLE_DEVICES names; None leaves it as it is.
        cores: the run is bound to these; None leaves it all of them.
    """

    processes: int
    gpu: str | None = None
    cores: tuple[int, ...] | None = None


def whole_machine(processes: int | None, gpus: list[str]) -> list[Slot]:
    """One slot with a process per GPU, or with `processes`; without GPUs one process.

    Raises:
        ValueError: fewer than one process, or more than there are GPUs.
    """
    if processes is not None and processes < 1:
        raise ValueError(f"--processes {processes}: at least one is needed")
    if processes is not None and gpus and processes > len(gpus):
        raise ValueError(f"--processes {processes}: there are {len(gpus)} GPUs, and each process needs its own")
    return [Slot(processes or len(gpus) or 1)]


def shared_machine(num: int | None, gpus: list[str], cores: list[int]) -> list[Slot]:
    """`num` slots (one per GPU by default) of one process, with one GPU each and disjoint shares of the cores.

    More runs than GPUs share them in turn, and more runs than cores share these.

    Raises:
        ValueError: fewer than one, or none named where there is no GPU.
    """
    if num is None and not gpus:
        raise ValueError("--parallel: there are no GPUs to count here; say how many runs at once, --parallel 2")
    num = len(gpus) if num is None else num
    if num < 1:
        raise ValueError(f"--parallel {num}: at least one run at once")
    return [
        Slot(
            processes=1,
            gpu=gpus[place % len(gpus)] if gpus else None,
            cores=tuple(_share(cores, place, num)),
        )
        for place in range(num)
    ]


def _share(cores: list[int], place: int, num: int) -> list[int]:
    """A contiguous part: neighbours are on one socket most often."""
    if num > len(cores):
        return [cores[place % len(cores)]]
    return cores[place * len(cores) // num : (place + 1) * len(cores) // num]


def visible_gpus() -> list[str]:
    """Names for CUDA_VISIBLE_DEVICES of the GPUs that this process sees; none where the launcher is set to do without.

    Counting them opens no context on them, and needs no torch, which takes seconds to load.
    """
    if os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("true", "1"):
        return []
    num = _num_gpus()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return [name.strip() for name in named.split(",")][:num] if named else [str(number) for number in range(num)]


def _num_gpus() -> int:
    """GPUs by NVIDIA's driver, which heeds CUDA_VISIBLE_DEVICES; 0 without it."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    num = ctypes.c_int(0)
    return num.value if driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(num)) == 0 else 0


def usable_cores() -> list[int]:
    """Cores that this process may run on."""
    return sorted(os.sched_getaffinity(0))
