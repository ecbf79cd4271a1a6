"""How many cores a rank may keep busy."""

from __future__ import annotations

import os
import re
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def thread_budget(world_on_node: int) -> int:
    """Cores that one of `world_on_node` ranks on this machine (LOCAL_WORLD_SIZE) may keep busy, at least 1.

    The smallest of three: the CPUs this process is bound to, the CPUs SLURM gave its task, and the CPU time that the
    container's cgroup allows; each shared by the ranks it has to serve. Where SLURM starts one task per rank, the
    first two are the rank's own; where it starts one task per node and that starts the ranks, or without SLURM, the
    ranks share them. The cgroup's limit is always shared.
    """
    assert world_on_node >= 1
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    sharing = world_on_node
    if "SLURM_CPUS_PER_TASK" in os.environ:
        bound = min(bound, int(os.environ["SLURM_CPUS_PER_TASK"]))
        tasks = os.environ.get("SLURM_STEP_TASKS_PER_NODE", os.environ.get("SLURM_TASKS_PER_NODE", "1"))
        first = re.match(r"\d+", tasks)  # "4(x2),1": four tasks on each of two nodes, then one
        sharing = max(1, world_on_node // int(first.group() if first else 1))
    budgets = [bound // sharing]
    allowed = _cgroup_cpus()
    if allowed is not None:
        budgets.append(int(allowed / world_on_node))
    return max(1, min(budgets))


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
