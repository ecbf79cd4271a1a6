"""Starts the processes of one run on this machine, and ends with one sentence where they fail."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Sequence

from distcxr.failure import SHOWN_BY_LAUNCHER

# Signals that end a rank from outside. The launcher ends the others by SIGTERM, and those that lost a peer fail first.
_NOT_THE_LAUNCHERS = {-signal.SIGKILL, -signal.SIGSEGV, -signal.SIGBUS, -signal.SIGABRT}


def train_on(processes: int, command: Sequence[str]) -> int:
    """Run `launch.py COMMAND`: in this process, or in several through Accelerate's launcher.

    Args:
        processes: ranks, on this machine alone.
        command: recipe, overrides, `--test` and checkpoints.

    Returns:
        The exit code of the rank that failed first, 1 where a signal ended it, or 0. The reason is then the last line
        on stderr.
    """
    if processes == 1:
        from distcxr.launch import main as train

        sys.argv = ["launch.py", *command]
        return train()
    os.environ[SHOWN_BY_LAUNCHER] = "1"
    from accelerate.commands.launch import main as launch
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # the same failure in other words
    # On a CPU, too: Accelerate's --cpu would start one process, whatever the number. With port 0 no two runs meet.
    sys.argv = [
        "accelerate", "--multi_gpu", "--num_processes", str(processes), "--num_machines", "1",
        "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0",
        "--module", "distcxr.launch", *command,
    ]  # fmt: skip
    try:
        launch()
    except ChildFailedError as error:
        killed = [(rank, failure) for rank, failure in error.failures.items() if failure.exitcode in _NOT_THE_LAUNCHERS]
        rank, failure = killed[0] if killed else error.get_first_failure()
        if isinstance(failure.message, dict):
            return _end(failure.exitcode, f"error: {failure.message['message']}")
        return _end(max(1, failure.exitcode), f"error: {_unexplained(rank, failure.exitcode)}")
    except SignalException as stopped:
        name = signal.Signals(stopped.sigval).name
        return _end(128 + stopped.sigval, f"stopped by {name}; the same command resumes what was saved")
    return 0


def _unexplained(rank: int, code: int) -> str:
    """What ended a rank that could not give its reason."""
    if code >= 0:
        return f"rank {rank} ended with exit code {code}; its reason is above"
    name = signal.Signals(-code).name
    hint = ": the machine may have run out of memory" if name == "SIGKILL" else ""
    return f"rank {rank} was ended by {name}{hint}. The same command resumes from the last checkpoint"


def _end(code: int, line: str) -> int:
    sys.stderr.write(f"{line}\n")
    return code
