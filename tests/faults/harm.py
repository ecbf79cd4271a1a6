"""What is done to a job: signals at random moments, and system calls that fail or are its last."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from faults.case import Case
from faults.job import descendants

Codes = list[int | None]
ON_RANKS = ("fsync", "rename", "renameat2", "unlink", "unlinkat", "mkdir", "rmdir", "ftruncate")
"""System calls of which one fails or kills a rank: with those of a checkpoint, tables, pictures and TensorBoard."""


def signalled(case: Case, number: signal.Signals, latest: float = 1.0) -> Codes:
    job = case.start()
    case.moment(latest)
    send(case.random.choice(job.pids()), number)
    return job.wait(case.patience_s())


def worker_signalled(case: Case, number: signal.Signals) -> Codes:
    """A process that decodes; the run takes longer, as each rank starts one.

    Not multiprocessing's resource tracker: nobody waits for it, and a stopped one is its launcher's to kill.
    """
    job = case.start("data.num_workers=1")
    deadline, rank = time.monotonic() + case.patience_s(), case.random.choice(job.pids())
    while not (workers := _workers(rank)) and os.path.exists(f"/proc/{rank}") and time.monotonic() < deadline:
        time.sleep(0.05)
    case.moment()
    if workers := _workers(rank) or workers:
        send(case.random.choice(workers), number)
    return job.wait(case.patience_s())


def _workers(rank: int) -> list[int]:
    return [pid for pid in descendants(rank) if b"resource_tracker" not in _command(pid)]


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # it has ended
        return b""


def at_system_call(case: Case, injected: str, calls: Sequence[str] = ON_RANKS, most: int = 40) -> Codes:
    """Rank 0 is traced from soon after its start; one of its first `most` calls of a kind is its last, or fails."""
    call, number = case.random.choice(calls), case.random.randint(1, most)
    job = case.start()
    with subprocess.Popen(
        ["strace", "-f", "-qq", "-o", "/dev/null", "-p", str(job.pids()[0]), "-e", f"trace={call}",
         "-e", f"inject={call}:{injected}:when={number}"],
        stderr=subprocess.DEVNULL,
    ) as tracer:  # fmt: skip
        codes = job.wait(case.patience_s())
        tracer.terminate()
    return codes


def send(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:  # it has ended already
        return
