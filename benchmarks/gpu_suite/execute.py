"""Runs a command under a time limit; all processes that it started end with it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

GRACE_S = 5.0
"""Between the request to end and the kill: what a program needs to write what it has."""
MOST_OUTPUT = 1 << 20
"""Bytes of a command's output that are kept: the first quarter and the last three."""


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        code: exit status; None where it was stopped.
        seconds: how long it ran.
        output: stdout and stderr together, shortened in the middle.
    """

    code: int | None
    seconds: float
    output: str


def execute(
    command: Sequence[str], *, seconds: float, log: Path, environment: Mapping[str, str] | None = None,
    cwd: Path | None = None, stop_when: Callable[[], bool] = lambda: False, grace_s: float = GRACE_S,
) -> Ended:  # fmt: skip
    """Run a command, its output appended to `log` as it comes.

    After `seconds`, as soon as `stop_when` is true, or when this process has to end itself, the command's process
    group is asked to end and after `grace_s` killed; with 0 it is killed at once.
    """
    started = time.monotonic()
    with log.open("ab") as file:
        begin = file.tell()
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, cwd=cwd,
                env=None if environment is None else dict(environment), start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            file.write(f"{command[0]}: {error}\n".encode())
            return Ended(127, 0.0, f"{command[0]}: {error}\n")
        code: int | None = None
        try:
            while True:
                left = seconds - (time.monotonic() - started)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    code = process.wait(max(0.0, min(0.2, left)))
                    break
                if left <= 0 or stop_when():
                    break
        finally:
            end_group(process, grace_s)
    with log.open("r+b") as file:
        output = _kept(file, begin)
    return Ended(code, time.monotonic() - started, output)


def end_group(process: subprocess.Popen[bytes], grace_s: float) -> None:
    """Ask the process group that `process` leads to end, and kill what is left of it; also where it alone has ended."""
    if process.poll() is None and grace_s:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(grace_s)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def end_on_signal() -> None:
    """Have SIGTERM raise SystemExit, so that what is being executed ends, too, and results are collected."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))


def how_ended(code: int) -> str:
    """An exit status in words; none for 0."""
    if code < 0:
        return f"died of {signal.Signals(-code).name}"
    return f"ended with status {code}" if code else ""


def _kept(file: BinaryIO, begin: int) -> str:
    """The output from `begin` on; the file is shortened to what is kept of it."""
    file.seek(begin)
    output = file.read()
    if len(output) > MOST_OUTPUT:
        head, tail = output[: MOST_OUTPUT // 4], output[-MOST_OUTPUT * 3 // 4 :]
        cut = f"\n[... {len(output) - len(head) - len(tail):,} bytes left out ...]\n".encode()
        output = head + cut + tail
        file.seek(begin)
        file.truncate()
        file.write(output)
    return output.decode(errors="replace")
