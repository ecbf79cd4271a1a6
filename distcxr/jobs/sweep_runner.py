"""`distcxr sweep`: the runs of a grid, one after another or several at once; finished ones are not run again."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from distcxr.exit_codes import STALLED
from distcxr.jobs.grid import Planned
from distcxr.jobs.slots import Slot
from distcxr.runfolder import filenames
from distcxr.runfolder.history import best_auroc
from distcxr.runfolder.whole import write_json
from distcxr.tracking.terminal import newest_figures

logger = logging.getLogger(__name__)

State = Literal["waiting", "running", "finished", "finished before", "failed"]
_POLL_S = 0.5
_GRACE_S = 20.0
_TAIL_BYTES = 1 << 16
_MOST_RESTARTS = 2  # of a run with a rank that makes no progress: that may be the machine's fault every time


@dataclass
class Job:
    """A run of the sweep and how far it is."""

    planned: Planned
    state: State = "waiting"
    reason: str = ""
    """Why it failed."""
    process: subprocess.Popen[bytes] | None = None
    slot: Slot | None = None
    log_from: int = 0
    """Where this start's part of the log begins."""
    started_s: float = 0.0
    restarts: int = 0

    @property
    def is_done(self) -> bool:
        """Whether there are results."""
        return self.state in ("finished", "finished before")

    def shown(self) -> str:
        """Its newest figures in a line."""
        if self.state in ("waiting", "failed"):
            return self.reason
        auroc = best_auroc(self.planned.folder)
        best = [] if auroc is None else [f"best val AUROC {auroc:.4f}"]
        if self.state != "running":
            return "".join(best)
        figures = newest_figures(_tail(self.planned.folder / filenames.LAUNCH_LOG, self.log_from))
        if figures is None:
            return "  ".join(["starting", *best])
        return "  ".join([f"step {figures.step}/{figures.total_steps}", *best, figures.text])


@dataclass
class Sweep:
    """All runs, and the slots in which they have their turns."""

    jobs: list[Job]
    slots: Sequence[Slot]
    free: list[Slot] = field(init=False)

    def __post_init__(self) -> None:
        self.free = list(self.slots)

    def run(self, show: Callable[[Sequence[Job]], None]) -> None:
        """Run what is not finished; every job then has results or the reason for having none.

        Args:
            show: called twice a second, and when the last has ended.

        Whatever ends this function early, Ctrl-C for example, ends all runs that it started.
        """
        for job in self.jobs:
            if is_finished(job.planned):
                job.state = "finished before"
        try:
            while self._step():
                show(self.jobs)
                time.sleep(_POLL_S)
        finally:
            end([job.process for job in self.jobs if job.process is not None])
        show(self.jobs)

    def _step(self) -> bool:
        """Look after the running, start what can be started; False when there is nothing left to wait for."""
        for job in self.jobs:
            if job.process is not None and job.process.poll() is not None:
                self._collect(job, job.process.returncode)
        for job in self.jobs:
            if job.state == "waiting" and self.free and self._is_ready(job):
                start(job, self.free.pop(0))
        return any(job.state in ("waiting", "running") for job in self.jobs)

    def _is_ready(self, job: Job) -> bool:
        """Whether the run that it starts from has ended; one that failed fails this one, too."""
        if job.planned.after is None:
            return True
        before = next(other for other in self.jobs if other.planned.name == job.planned.after)
        if before.state == "failed":
            job.state, job.reason = "failed", f"not started: it begins with the weights of {before.planned.name}"
        return before.is_done

    def _collect(self, job: Job, code: int) -> None:
        assert job.slot is not None
        self.free.append(job.slot)
        job.process = None
        if code == 0 and (job.planned.folder / filenames.RESUME).exists():
            job.state, job.reason = "failed", "asked to stop, and saved: the same sweep resumes it"
        elif code == 0:
            job.state = "finished"
            write_json(job.planned.folder / filenames.FINISHED, {"recipe": job.planned.identity()})
        elif code == STALLED and job.restarts < _MOST_RESTARTS:
            job.state, job.restarts = "waiting", job.restarts + 1
            reason = _why(_tail(job.planned.folder / filenames.LAUNCH_LOG, job.log_from), code)
            logger.warning(f"{job.planned.name} is started again, {job.restarts} of {_MOST_RESTARTS} times: {reason}")
        else:
            job.state, job.reason = "failed", _why(_tail(job.planned.folder / filenames.LAUNCH_LOG, job.log_from), code)


def is_finished(planned: Planned) -> bool:
    """Whether a sweep has seen this run end well, with this very recipe."""
    try:
        return bool(json.loads((planned.folder / filenames.FINISHED).read_text())["recipe"] == planned.identity())
    except (OSError, ValueError, KeyError, TypeError):
        return False


def command(planned: Planned, slot: Slot) -> list[str]:
    """What starts a run."""
    cores = "all" if slot.cores is None else ",".join(map(str, slot.cores))
    return [
        sys.executable, "-m", "distcxr.jobs.child", str(os.getpid()), str(slot.processes), cores,
        str(planned.recipe_path), *planned.overrides,
    ]  # fmt: skip


def start(job: Job, slot: Slot) -> None:
    """Start a run in a slot; its output is appended to `launch.log` in its folder."""
    folder = job.planned.folder
    folder.mkdir(parents=True, exist_ok=True)
    environ = os.environ | ({} if slot.gpu is None else {"CUDA_VISIBLE_DEVICES": slot.gpu})
    if slot.cores is not None:
        environ |= {"OMP_NUM_THREADS": str(len(slot.cores))}
    with (folder / filenames.LAUNCH_LOG).open("ab") as log:
        job.log_from = log.tell()
        job.process = subprocess.Popen(
            command(job.planned, slot), env=environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True,  # Ctrl-C is the sweep's to handle
        )  # fmt: skip
    job.state, job.slot, job.started_s = "running", slot, time.monotonic()


def end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ask the processes and all they started to end, for which they save themselves, and make them after a while."""
    if num := sum(process.poll() is None for process in processes):
        logger.warning(f"ending {num} {'run' if num == 1 else 'runs'}, which save themselves first")
    for kind, patience_s in ((signal.SIGTERM, _GRACE_S), (signal.SIGKILL, _GRACE_S)):
        deadline = time.monotonic() + patience_s
        for process in processes:
            if process.poll() is None:
                os.killpg(process.pid, kind)
        for process in processes:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                continue


def _tail(path: Path, start: int) -> str:
    """The end of a log from `start` on, up to 64 KB."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(start, size - _TAIL_BYTES))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def _why(log: str, code: int) -> str:
    """The reason in a log: its first error, or how the process ended."""
    errors = [line.split("error: ", 1)[1] for line in log.splitlines() if "error: " in line]
    if errors:
        return errors[0]
    if code < 0:
        name = signal.Signals(-code).name
        return f"ended by {name}" + (", out of memory perhaps" if name == "SIGKILL" else "")
    last = next((line for line in reversed(log.splitlines()) if line.strip()), "")
    return f"exit code {code}" + (f": {last.strip()}" if last else "")
