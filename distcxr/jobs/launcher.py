"""Starts the ranks of a run: one in this process, several as processes of their own.

    launch ──► store's socket, error files ──► ranks ──► one fails: the others are ended ──► one line, its exit code

It does what Accelerate's launcher does on one machine without restarts, and does not import torch for it, which took
seconds in which no rank had started. A failure ends with one line on the terminal, the message of the rank that failed
first, and with that rank's exit code; `accelerate launch` ends with a traceback of its own and exit code 1.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from distcxr.error_file import FILE_VARIABLE, REPORTED_VARIABLE
from distcxr.exit_codes import ENVIRONMENT, LOST_RANK, STALLED, USER
from distcxr.interrupt import end_by_interrupt
from distcxr.jobs.slots import usable_cores, visible_gpus, whole_machine
from distcxr.processes import LAUNCHER_VARIABLE, STORE_VARIABLE, state

Process = subprocess.Popen[bytes]

_CPU_PROCESSES = 2
_ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_FAREWELL_S = 30.0
_LOOK_EVERY_S = 0.05
_LAST_S = 120.0  # for ranks that are left when one has ended well, which it does once all of them are done


class Failure(NamedTuple):
    """A rank that did not end well."""

    rank: int
    code: int  # minus the signal that ended it
    message: str  # of its error file; empty where it has left none
    at_s: float  # when it wrote that, seconds since 1970


def num_processes(asked: int | None) -> int:
    """Ranks to start: `asked`, else one per GPU, else two on a CPU that has two cores or more.

    Raises:
        ValueError: fewer than one process, or more than there are GPUs.
    """
    gpus = visible_gpus()
    if asked is None and not gpus:
        return min(_CPU_PROCESSES, len(usable_cores()))
    return whole_machine(asked, gpus)[0].processes


def launch(words: Sequence[str], processes: int) -> int:
    """Run the command `words` of `launch.py` in `processes` ranks of this machine.

    SIGTERM is handed on to the ranks, which then have 30 s. So is Ctrl-C, and they have all the time that they need:
    this process then waits for them, and ends by SIGINT as they do without a launcher.

    Returns:
        The exit code: 0, that of the rank that failed first, or 128 plus the signal that ended the launcher.
    """
    if processes == 1:
        from distcxr.launch import main

        return main(words)
    ranks: list[Process] = []
    interrupts: list[int] = []
    ended_by: list[int] = []

    def hand_on(number: int, _: FrameType | None) -> None:
        interrupts.append(number)
        for rank in ranks:
            rank.send_signal(number)

    signal.signal(signal.SIGINT, hand_on)
    for ending in _ENDING:
        if signal.getsignal(ending) is not signal.SIG_IGN:  # nohup's, of SIGHUP: the run outlives the terminal
            signal.signal(ending, lambda number, _: ended_by.append(number))
    with tempfile.TemporaryDirectory(prefix="distcxr-ranks-") as place, socket.create_server(("127.0.0.1", 0)) as store:
        files = [Path(place) / str(rank) / "error.json" for rank in range(processes)]
        try:
            for rank, file in enumerate(files):
                file.parent.mkdir()
                ranks.append(_start(words, rank, processes, store, file))
            left: Sequence[int] = range(processes)
            done_s: float | None = None
            while left and not ended_by and not any(rank.poll() for rank in ranks):
                time.sleep(_LOOK_EVERY_S)
                left = [number for number, rank in enumerate(ranks) if rank.poll() is None]
                if len(left) < processes and done_s is None:
                    done_s = time.monotonic()
                if done_s is not None and left and time.monotonic() > done_s + _LAST_S:
                    return _give_up(ranks, left)
        finally:
            _end(ranks, ended_by[0] if ended_by else signal.SIGTERM)
        failures = [_failure(number, ranks[number].returncode, file) for number, file in enumerate(files)]
    failures = [failure for failure in failures if failure.code]
    if ended_by:
        return 128 + ended_by[0]
    if interrupts and not any(failure.message for failure in failures):
        end_by_interrupt()
    if not failures:
        return 0
    code, message = first_failure(failures)
    sys.stderr.write(f"error: {message}\n")
    return code


def _start(words: Sequence[str], rank: int, processes: int, store: socket.socket, error_file: Path) -> Process:
    """Start a rank, in a session of its own: it is ended together with its workers.

    Rank 0 inherits the socket of the store through which ranks find each other, so nobody can take its port meanwhile.
    """
    environment = {
        "OMP_NUM_THREADS": "1", "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",  # as torchrun sets them
    } | os.environ  # fmt: skip
    environment |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.getsockname()[1]), FILE_VARIABLE: str(error_file),
        REPORTED_VARIABLE: "1", LAUNCHER_VARIABLE: str(os.getpid()), STORE_VARIABLE: str(store.fileno()),
    }  # fmt: skip
    handed_on = [store.fileno()] if rank == 0 else []
    command = [sys.executable, "-m", "distcxr.launch", *words]
    return subprocess.Popen(command, env=environment, pass_fds=handed_on, start_new_session=True)


def _end(ranks: Sequence[Process], number: int) -> None:
    """Signal the ranks that are left and their workers, and kill what is still there after 30 s."""
    _signal_sessions(ranks, number)
    deadline = time.monotonic() + _FAREWELL_S
    while any(rank.poll() is None for rank in ranks) and time.monotonic() < deadline:
        time.sleep(_LOOK_EVERY_S)
    _signal_sessions(ranks, signal.SIGKILL)
    for rank in ranks:
        rank.wait()


def _give_up(ranks: Sequence[Process], left: Sequence[int]) -> int:
    """Kill ranks that do not end though the run has: one that is stopped has nobody else left to notice it."""
    for number in left:
        pid = ranks[number].pid
        sys.stderr.write(
            f"warning: rank {number} (process {pid}, {state(pid) or 'gone'}) has not ended {_LAST_S:g} s after the run "
            "had; it is killed, and nothing is lost\n"
        )
    _signal_sessions([ranks[number] for number in left], signal.SIGKILL)
    return 0


def _signal_sessions(ranks: Sequence[Process], number: int) -> None:
    for rank in ranks:
        if rank.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(rank.pid, number)


def _failure(rank: int, code: int, error_file: Path) -> Failure:
    try:
        message = json.loads(error_file.read_text(encoding="utf-8"))["message"]
        return Failure(rank, code, message["message"], float(message["extraInfo"]["timestamp"]))
    except (OSError, ValueError, KeyError, TypeError):  # it left none, or died as it wrote
        return Failure(rank, code, "", time.time())


def first_failure(failures: Sequence[Failure]) -> tuple[int, str]:
    """Exit code and message of the rank that failed first.

    A user's mistake comes before the failures of others, then a disk's failure, a rank that has named one that stalled,
    and a signal that is not the launcher's own SIGTERM: ranks that lose their peer fail in the same second.
    """
    by_time = sorted(failures, key=lambda failure: failure.at_s)
    causes = [one for code in (USER, ENVIRONMENT, STALLED) for one in failures if one.code == code]
    causes += [one for one in failures if one.code < 0 and one.code != -signal.SIGTERM]
    causes += [one for one in by_time if one.code not in (LOST_RANK, -signal.SIGTERM)]
    rank, code, message, _ = (causes or by_time)[0]
    if code in (USER, ENVIRONMENT, STALLED):
        return code, message
    if code < 0:
        name = signal.Signals(-code).name
        return 128 - code, f"rank {rank} was ended by {name}" + (", out of memory perhaps" if name == "SIGKILL" else "")
    return code, f"rank {rank} failed with exit code {code}: {message or 'what it wrote above has the reason'}"
