"""What the kernel knows of a process: its state, work so far and parent. Linux's /proc; elsewhere little or nothing.

end_with_launcher() ──► the kernel ends this process with its launcher
"""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LAUNCHER_VARIABLE = "DISTCXR_LAUNCHER"
"""In the environment of ranks: the process id of the launcher that started them, where that is `distcxr train`."""

STORE_VARIABLE = "DISTCXR_STORE"
"""In the environment of the ranks of `distcxr train`: rank 0's file descriptor on which their store listens."""

_PROC = Path("/proc")
_SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of <sys/prctl.h>
_CHILDREN_DEEP = 3  # launcher of a compiler pool, its workers, their compilers


@contextmanager
def collector_paused() -> Iterator[None]:
    """Look for no garbage within the block: imports make a million objects that stay, and Python would go through them
    again and again, a sixth of the time that torch and timm take to import."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def set_before_torch() -> None:
    """Set what PyTorch's libraries read once, when they are loaded, unless the user has."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # else ranks that outlive rank 0 print stacks of its store
    if "OMP_WAIT_POLICY" not in os.environ:
        # A thread that waits for the others of its step spins for so many turns, then sleeps. By default they are
        # 300,000: two runs on the same two cores then get .29 of what one gets alone, with 1,000 .68; that costs a run
        # alone 5 %, measured on the quickstart's network.
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def end_with_launcher() -> None:
    """Have the kernel end this process when its launcher dies; end it here if that has happened already.

    Otherwise the ranks of a killed launcher would keep writing into the run folder beside the run that replaces them.
    Called before torch is imported: that takes seconds, in which a launcher is killed, too. Accelerate's launcher of a
    single process dies of a signal without passing it on, so that process gets SIGTERM and can save itself. Several
    ranks can't save once they have lost each other, and get SIGKILL.
    """
    named = ("TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION", LAUNCHER_VARIABLE)
    if not any(name in os.environ for name in named) or sys.platform != "linux":
        return
    alone = os.environ.get("WORLD_SIZE", "1") == "1"
    end_with_parent(signal.SIGTERM if alone else signal.SIGKILL)
    if _has_lost_launcher():
        sys.stderr.write("error: the launcher of this rank has died, and so it ends\n")
        os._exit(1)


def end_with_parent(number: signal.Signals) -> None:
    """Have the kernel send this process a signal when the thread that started it ends; Linux alone."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, int(number))


def _has_lost_launcher() -> bool:
    """Whether the launcher died before this process could ask for a signal.

    `distcxr train` names itself. Any other launcher is a Python process: with process 1 as a parent that is not one,
    this is an orphan.
    """
    parent, named = os.getppid(), os.environ.get(LAUNCHER_VARIABLE)
    if named is not None:
        return parent != int(named)
    return parent == 1 and "python" not in _command(1)


def _command(pid: int) -> str:
    """File name of the program that a process runs; `python` where it can't be read, so that nothing ends for it."""
    words = command_of(pid)
    return Path(words[0]).name if words else "python"


def command_of(pid: int) -> list[str]:
    """Words of the command that a process runs; none where they can't be read."""
    try:
        return [os.fsdecode(word) for word in (_PROC / str(pid) / "cmdline").read_bytes().split(b"\0") if word]
    except OSError:
        return []


def state(pid: int) -> str | None:
    """`running`, `stopped` and so on, as the kernel calls it; None where there is no such process, or no /proc."""
    with suppress(OSError):
        for line in (_PROC / str(pid) / "status").read_text().splitlines():
            if line.startswith("State:"):
                letter, _, name = line.split(":", 1)[1].strip().partition(" ")
                return f"{name.strip('()')} ({letter})"
    return None


def started_at(pid: int) -> int | None:
    """When a process started, in clock ticks since the machine did: tells it from a later one with its number."""
    fields = _stat(pid)
    return int(fields[19]) if fields else None


def work_done() -> tuple[float, int]:
    """CPU seconds of this process and of what it has started, and the bytes that it has read and written."""
    transferred = 0
    with suppress(OSError, ValueError):
        lines = (_PROC / "self" / "io").read_text().splitlines()
        transferred = sum(int(line.split(":")[1]) for line in lines if line.startswith(("rchar", "wchar")))
    return sum(os.times()[:4]) + _cpu_of_children(os.getpid(), _CHILDREN_DEEP), transferred


def kill_children(pid: int | None = None) -> None:
    """End what this process has started, and what that has: a worker that is stopped would outlive it."""
    for child in _children(pid or os.getpid()):
        kill_children(child)
        with suppress(OSError):
            os.kill(child, signal.SIGKILL)


def _cpu_of_children(pid: int, deep: int) -> float:
    total = 0.0
    for child in _children(pid):
        total += sum(map(int, _stat(child)[11:15])) / os.sysconf("SC_CLK_TCK")
        total += _cpu_of_children(child, deep - 1) if deep > 1 else 0.0
    return total


def _children(pid: int) -> list[int]:
    """Processes that a process has started; none where it has ended, or this one may open no more files."""
    found: list[int] = []
    with suppress(OSError):
        for tasks in (_PROC / str(pid) / "task").glob("*/children"):
            with suppress(OSError):
                found += map(int, tasks.read_text().split())
    return found


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the state on; empty where there is no such process."""
    with suppress(OSError):
        return (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    return []
