"""Starts the ranks of a run: one in this process, several through Accelerate's launcher.

With several ranks, a failure ends with one line on the terminal, the message of the rank that failed first, and with
that rank's exit code; `accelerate launch` ends with a traceback of its own and exit code 1.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from distcxr.error_file import REPORTED_VARIABLE
from distcxr.exit_codes import ENVIRONMENT, LOST_RANK, STALLED, USER
from distcxr.interrupt import end_by_interrupt
from distcxr.jobs.slots import usable_cores, visible_gpus, whole_machine
from distcxr.processes import LAUNCHER_VARIABLE

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

_CPU_PROCESSES = 2


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
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    args = launch_command_parser().parse_args(
        [
            "--multi_gpu", "--num_processes", str(processes), "--num_machines", "1", "--mixed_precision", "no",
            "--dynamo_backend", "no", "--main_process_port", "0", "--module", "distcxr.launch", *words,
        ]
    )  # fmt: skip
    os.environ |= {REPORTED_VARIABLE: "1", LAUNCHER_VARIABLE: str(os.getpid())}
    os.environ["PET_SIGNALS_TO_HANDLE"] = "SIGTERM,SIGHUP,SIGQUIT"  # without SIGINT, at which it would end the ranks
    interrupts: list[int] = []

    def hand_on(number: int, _: FrameType | None) -> None:
        interrupts.append(number)
        _signal_ranks(number)

    signal.signal(signal.SIGINT, hand_on)
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # it logs each rank that it ends
    try:
        launch_command(args)
    except ChildFailedError as error:
        if interrupts and not error.get_first_failure()[1].message:
            end_by_interrupt()
        code, message = first_failure(error)
        sys.stderr.write(f"error: {message}\n")
        return code
    except SignalException as error:
        return 128 + int(error.sigval)
    if interrupts:
        end_by_interrupt()
    return 0


def _signal_ranks(number: int) -> None:
    """Hand a signal on to the ranks: a terminal signals them, too, `kill` only this process."""
    for children in Path("/proc/self/task").glob("*/children"):
        for child in children.read_text().split():
            os.kill(int(child), number)


def first_failure(error: ChildFailedError) -> tuple[int, str]:
    """Exit code and message of the rank that failed first.

    A user's mistake comes before the failures of others, then a disk's failure, a rank that has named one that stalled,
    and a signal that is not the launcher's own SIGTERM: ranks that lose their peer fail in the same second.
    """
    failures = error.failures.items()
    causes = [one for code in (USER, ENVIRONMENT, STALLED) for one in failures if one[1].exitcode == code]
    causes += [one for one in failures if one[1].exitcode < 0 and one[1].exitcode != -signal.SIGTERM]
    causes += sorted((one for one in failures if one[1].exitcode not in (LOST_RANK, -signal.SIGTERM)), key=_time)
    rank, failure = causes[0] if causes else error.get_first_failure()
    message = failure.message["message"] if isinstance(failure.message, dict) else failure.message
    if failure.exitcode in (USER, ENVIRONMENT, STALLED):
        return failure.exitcode, message
    if failure.exitcode < 0:
        name = signal.Signals(-failure.exitcode).name
        return 128 - failure.exitcode, f"rank {rank} was ended by {name}" + (
            ", out of memory perhaps" if name == "SIGKILL" else ""
        )
    return failure.exitcode, f"rank {rank} failed with exit code {failure.exitcode}: {message}"


def _time(failed: tuple[int, ProcessFailure]) -> int:
    return failed[1].timestamp
