"""What a rank that waits in vain leaves behind: its entry in the run folder's `stalled.txt`, a message, an exit code.

A process that is stopped can't show its stacks; one that holds Python's lock can, by a signal.
"""

from __future__ import annotations

import faulthandler
import logging
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from distcxr import processes
from distcxr.error_file import write_error_file
from distcxr.runfolder import filenames
from distcxr.runfolder.rank_files import RankFile
from distcxr.stall.missing import Missing, place, sentence, state_of

logger = logging.getLogger(__name__)

STACKS_SIGNAL = signal.SIGUSR2
"""Has a rank write its stacks, from C, even where a call that does not return holds Python's lock."""

_STACKS_WITHIN_S = 2.0
_AWAITED = ("distcxr.process_group", "torch.distributed")
_DEBUGGERS = ("pdb", "bdb", "pydevd")


@dataclass
class Account:
    """Where a rank leaves what it knows when the run has stalled.

    Attributes:
        run_folder: None until it is chosen: then the entry goes to the terminal.
        flight_record: called with a file to write; False where there is none.
    """

    rank: int
    world_size: int
    host: str
    run_folder: Path | None = None
    flight_record: Callable[[Path], bool] = lambda _: False

    def leave(self, mine: RankFile, missing: list[Missing], limit_s: float, *, speaks: bool) -> str:
        """Write the entry and the message for the launcher; log it where this rank `speaks` for all.

        Returns:
            The message.
        """
        text = sentence(missing, mine, self.world_size, limit_s)
        where = "" if self.run_folder is None else f"; {self.run_folder / filenames.STALLED} has every rank's stacks"
        message = f"{text}{where}. The same command resumes from the newest checkpoint"
        write_error_file(message)
        entry = self._entry(mine, missing, text, speaks)
        try:
            self._keep(entry)
        except OSError:  # a disk, or it may open no more files: that may be the reason of the stall
            sys.stderr.write(entry)
        if speaks:
            logger.error(f"error: {message}", extra={"is_in_error_file": True})
        return message

    def _keep(self, entry: str) -> None:
        if self.run_folder is None:
            sys.stderr.write(entry)
            return
        self.mark()
        descriptor = os.open(self.run_folder / filenames.STALLED, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.write(descriptor, entry.encode())  # whole, between those of the others
        os.close(descriptor)

    def mark(self) -> None:
        """Have slurm/train.sbatch start the run again."""
        if self.run_folder is not None:
            (self.run_folder / filenames.STALLED_MARK).touch()

    def _entry(self, mine: RankFile, missing: list[Missing], text: str, speaks: bool) -> str:
        parts = [f"{mine.written}  rank {self.rank}, process {mine.pid} on {self.host}, {place(mine)}: {text}"]
        workers = [f"{child.pid} {processes.state(child.pid or 0)}" for child in multiprocessing.active_children()]
        parts += [f"worker processes: {', '.join(workers)}"] if workers else []
        if self.run_folder is not None:
            record = self.run_folder / filenames.RANKS / filenames.flight_record(self.rank)
            with suppress(OSError, RuntimeError):
                parts += [f"NCCL's flight recorder: {record}"] if self.flight_record(record) else []
        parts += [f"stacks of rank {self.rank}", _own_stacks()]
        if speaks and self.run_folder is not None:
            for one in missing:
                if one.is_gone and one.file is not None and one.file.host == self.host:
                    parts += [f"stacks of rank {one.rank}", _stacks_of(one.file, self.run_folder / filenames.RANKS)]
        return "\n".join(parts) + "\n\n"


def write_stacks_when_asked(folder: Path, rank: int) -> None:
    """Have STACKS_SIGNAL write this process's stacks into a file of `folder`."""
    descriptor = os.open(folder / filenames.stacks(rank), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    faulthandler.register(STACKS_SIGNAL, file=descriptor, all_threads=True)


def _own_stacks() -> str:
    try:
        with tempfile.TemporaryFile("w+") as file:
            faulthandler.dump_traceback(file, all_threads=True)
            file.seek(0)
            return file.read().rstrip()
    except OSError:  # it may open no more files
        frames = sys._current_frames().items()
        return "\n".join(f"Thread {ident}:\n{''.join(traceback.format_stack(frame))}" for ident, frame in frames)


def _stacks_of(file: RankFile, folder: Path) -> str:
    state = state_of(file)
    if state.startswith(("gone", "stopped", "zombie", "tracing")):
        return f"none: process {file.pid} is {state}"
    path = folder / filenames.stacks(file.rank)
    try:
        os.kill(file.pid, STACKS_SIGNAL)
        deadline = time.monotonic() + _STACKS_WITHIN_S
        while not path.stat().st_size and time.monotonic() < deadline:
            time.sleep(0.05)
        return path.read_text(errors="replace").rstrip() or f"none: process {file.pid} does not answer"
    except OSError as error:
        return f"none: {error}"


def waits_for_ranks(frames: Iterable[FrameType]) -> bool:
    """Whether the main thread is in a call that waits for other ranks. Gradients are exchanged where Python does not
    see it."""
    return any(_module(frame).startswith(_AWAITED) for frame in frames)


def is_debugged(frames: Iterable[FrameType]) -> bool:
    """Whether somebody looks at the main thread in a debugger, and takes the time it takes."""
    return any(_module(frame).startswith(_DEBUGGERS) for frame in frames)


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))
