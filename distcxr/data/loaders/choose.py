"""Which reader a process uses, with how many workers or threads, and why."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch

from distcxr.data.loader import PixelReader
from distcxr.data.loaders.torch import TorchReader

logger = logging.getLogger(__name__)

_CGROUP = Path("/sys/fs/cgroup")


def thread_budget(world_on_node: int, environ: Mapping[str, str] = os.environ) -> int:
    """Cores that one rank may keep busy, at least 1.

    The smallest of three: the CPUs this process is bound to, the CPUs SLURM gave its task, and the CPU time that the
    container's cgroup allows; each shared by the ranks it has to serve. Where SLURM starts one task per rank, the
    first two are the rank's own; where it starts one task per node and that starts the ranks, or without SLURM, the
    ranks share them. The cgroup's limit is always shared.

    Args:
        world_on_node: ranks on this machine (LOCAL_WORLD_SIZE).
        environ: where SLURM_CPUS_PER_TASK and SLURM_STEP_TASKS_PER_NODE or SLURM_TASKS_PER_NODE are looked up.
    """
    assert world_on_node >= 1
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    sharing = world_on_node
    if "SLURM_CPUS_PER_TASK" in environ:
        bound = min(bound, int(environ["SLURM_CPUS_PER_TASK"]))
        tasks = environ.get("SLURM_STEP_TASKS_PER_NODE", environ.get("SLURM_TASKS_PER_NODE", "1"))
        first = re.match(r"\d+", tasks)  # "4(x2),1": four tasks on each of two nodes, then one
        sharing = max(1, world_on_node // int(first.group() if first else 1))
    budgets = [bound // sharing]
    allowed = _cgroup_cpus()
    if allowed is not None:
        budgets.append(int(allowed / world_on_node))
    return max(1, min(budgets))


def choose_reader(
    loader: Literal["auto", "torch", "dali"],
    *,
    image_size: int,
    max_batch_size: int,
    num_workers: int | None,
    prefetch: int,
    device: torch.device,
    local_world_size: int,
) -> PixelReader:
    """The reader of one rank, with its reason in the log.

    `auto` takes DALI when it is installed and a GPU trains: threads instead of processes, the resize off the CPU and
    the pixels already on the GPU. On a CPU it takes torch: an X-ray costs 12.5 ms of a core against DALI's 11.8, and
    15.7 in the first epoch, when DALI's files are checked (medians on a busy machine, 1024 px to 224).

    Args:
        num_workers: worker processes (torch) or threads (DALI) of this rank; None takes `thread_budget`, except that
            torch decodes in the training process when a rank without a GPU has one core: there a worker adds a process
            and no speed.
        prefetch: batches read ahead, by each worker (torch) or in all (DALI).

    Raises:
        ValueError: `dali` is asked for and is not installed or can't use the GPU.
    """
    budget = thread_budget(local_world_size)
    on_gpu = device.type == "cuda"
    reason = "as asked"
    if loader == "auto":
        reason = "a GPU trains and DALI is installed" if on_gpu else "without a GPU, DALI decodes no faster"
    if loader == "dali" or (loader == "auto" and on_gpu):
        device_id = (torch.cuda.current_device() if device.index is None else device.index) if on_gpu else None
        try:
            num_threads = budget if num_workers is None else max(1, num_workers)
            reader = _dali(image_size, max_batch_size, num_threads, prefetch, device_id)
        except (ImportError, OSError, RuntimeError) as error:  # not there, a library of its own missing, or no driver
            if loader == "dali":
                raise ValueError(
                    f"data.loader=dali: DALI does not work here ({error}); install it with `pip install "
                    "nvidia-dali-cuda130` (CUDA 13) or `pip install nvidia-dali-cuda120` (CUDA 12), or use "
                    "data.loader=torch"
                ) from error
            reason = f"DALI does not work here: {error}"
        else:
            logger.info("loader dali (%s): %s", reason, reader.where)
            return reader
    if num_workers is None:
        num_workers = budget if on_gpu or budget > 1 else 0
    reader = TorchReader(image_size, num_workers=num_workers, prefetch=prefetch, pin_memory=on_gpu)
    logger.info("loader torch (%s): %s", reason, reader.where)
    return reader


def _dali(image_size: int, max_batch_size: int, num_threads: int, prefetch: int, device_id: int | None) -> PixelReader:
    from distcxr.data.loaders.dali import DaliReader

    return DaliReader(
        image_size, max_batch_size=max_batch_size, num_threads=num_threads, device_id=device_id, prefetch=prefetch
    )


def _cgroup_cpus(root: Path = _CGROUP, membership: Path = Path("/proc/self/cgroup")) -> float | None:
    """CPUs worth of time that the process's cgroups allow (v2 `cpu.max`, v1 `cpu.cfs_quota_us`); None = no limit."""
    groups = [line.split(":", 2) for line in membership.read_text().splitlines()] if membership.is_file() else []
    limits = []
    for _, controllers, path in (group for group in groups if len(group) == 3):
        top = root if controllers == "" else root / controllers
        if controllers != "" and "cpu" not in controllers.split(","):
            continue
        own = top / path.strip("/")
        for folder in [own, *own.parents]:
            if not folder.is_relative_to(root):
                break
            limits += _limit(folder)
    return min(limits, default=None)


def _limit(folder: Path) -> list[float]:
    try:
        if (folder / "cpu.max").is_file():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text()
            period = (folder / "cpu.cfs_period_us").read_text()
        return [int(quota) / int(period)] if quota != "max" and int(quota) > 0 else []
    except (OSError, ValueError):
        return []
