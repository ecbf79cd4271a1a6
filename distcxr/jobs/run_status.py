"""`distcxr status`: how far runs are, from the files in their run folders; from SLURM what becomes of their jobs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distcxr.jobs.runs_json import read_listing
from distcxr.runfolder import filenames
from distcxr.runfolder.contents import SPLITS, read_environment, read_recipe
from distcxr.runfolder.history import best_auroc, newest_step
from distcxr.runfolder.lock import is_claimed_elsewhere

FINISHED, NOT_STARTED = "finished", "not started"


@dataclass(frozen=True)
class RunStatus:
    """How far a run is.

    Attributes:
        state: running, finished, saved (asked to stop, resumed by the same command), failed, stopped, not started, or
            its job's state in SLURM.
        total_steps: if nothing ends it early; None where it is not known.
        best_auroc: highest macro AUROC of validation so far.
        eta_s: seconds of training left at the newest speed, validation left out.
        changed_s: seconds since it last wrote figures; None if it never has.
    """

    folder: Path
    state: str
    step: int
    total_steps: int | None
    best_auroc: float | None
    img_per_s: float | None
    eta_s: float | None
    changed_s: float | None

    def in_words(self) -> str:
        """State and step, `timeout at step 40 of 100`; of a run that has failed also the reason in its log."""
        if self.state == NOT_STARTED:
            return self.state
        text = f"{self.state} at step {self.step}" + ("" if self.total_steps is None else f" of {self.total_steps}")
        return f"{text}{_error(self.folder)}" if self.state == "failed" else text


def run_folders(places: Sequence[Path]) -> list[Path]:
    """Run folders at or below `places`, the one that was written to last at the end; those that an array or a sweep
    is yet to make come first.

    Raises:
        ValueError: a place that is not there.
    """
    found: set[Path] = set()
    for place in places:
        if not place.is_dir():
            raise ValueError(f"{place} is not a folder: name run folders, or folders that hold some")
        found |= _below(place)
    return sorted(found, key=_changed)


def _below(place: Path) -> set[Path]:
    """A run folder holds no others, so none of its many files is looked at."""
    found = set()
    for folder, inner, files in os.walk(place):
        if filenames.ENVIRONMENT in files and (Path(folder) / filenames.RECIPE).exists():
            found.add(Path(folder))
            inner.clear()
        elif filenames.LISTING in files:
            found |= {run.folder for run in read_listing(Path(folder))}
    return found


def read_status(folder: Path, jobs: Mapping[str, str]) -> RunStatus:
    """How far the run of a folder is; what can't be read is left out.

    Args:
        jobs: from `job_states`.
    """
    environment = _read_or_nothing(read_environment, folder / filenames.ENVIRONMENT)
    recipe = _read_or_nothing(read_recipe, folder / filenames.RECIPE)
    newest = newest_step(folder)
    step = int(newest["step"]) if newest else 0
    total = _count(environment.get("total_steps"))
    img_per_s = float(newest["img_per_s"]) if newest else None
    train, scores = (recipe.get(key) for key in ("train", "eval"))
    batch = _count(train.get("global_batch_size")) if isinstance(train, dict) else None
    asked = scores.get("splits") if isinstance(scores, dict) else None
    splits = [split for split in asked if split in SPLITS] if isinstance(asked, list) else []
    # Early stopping ends a run before its last step, so scores that are newer than the last step tell.
    scored = all(_written(folder / filenames.metrics(split)) >= _changed(folder) for split in splits)
    done = (scored if splits else total is not None and step >= total) and not (folder / filenames.RESUME).exists()
    state = _state(folder, jobs.get(str(environment.get("slurm_job"))), done)
    eta_s = None
    if state == "running" and total is not None and batch and img_per_s:
        eta_s = max(0, total - step) * batch / img_per_s
    return RunStatus(
        folder=folder, state=state, step=step, total_steps=total, best_auroc=best_auroc(folder),
        img_per_s=img_per_s, eta_s=eta_s, changed_s=time.time() - _changed(folder) if _changed(folder) else None,
    )  # fmt: skip


def _count(value: object) -> int | None:
    return value if isinstance(value, int) else None


def _state(folder: Path, job: str | None, done: bool) -> str:
    if not (folder / filenames.ENVIRONMENT).exists():
        return NOT_STARTED
    if is_claimed_elsewhere(folder):
        return "running"
    if done:
        return FINISHED
    if job is not None and job != "COMPLETED":
        return job.lower()
    if (folder / filenames.RESUME).exists():
        return "saved"
    return "failed" if (folder / filenames.FAILED).exists() else "stopped"


def _error(folder: Path) -> str:
    """`: ` and the first error that the newest launch has logged; empty where there is none."""
    try:
        log = (folder / filenames.LOG).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    found = re.search(r"^\S+ error: (.*)", log[max(0, log.rfind(" run folder ")) :], re.MULTILINE)
    return f": {found[1]}" if found else ""


def slurm_jobs(folders: Sequence[Path]) -> list[str]:
    """Numbers of the SLURM jobs that the runs were last started by."""
    jobs = [_read_or_nothing(read_environment, folder / filenames.ENVIRONMENT).get("slurm_job") for folder in folders]
    return sorted({str(job) for job in jobs if job})


def job_states(jobs: Sequence[str]) -> dict[str, str]:
    """States of jobs by their numbers in SLURM: from its accounting where it has one, else from its short memory.

    Empty where SLURM is not here or does not answer.
    """
    if not jobs or shutil.which("scontrol") is None:
        return {}
    printed = _ask("sacct", "-X", "-n", "-P", "-o", "JobIDRaw,State", "-j", ",".join(jobs))
    states = dict(line.split("|", 1) for line in printed.splitlines() if "|" in line)
    for job in jobs:
        if job not in states and (found := re.search(r"\bJobState=(\w+)", _ask("scontrol", "-o", "show", "job", job))):
            states[job] = found.group(1)
    return {job: state.split()[0] for job, state in states.items()}  # "CANCELLED by 0"


def _ask(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def _read_or_nothing(read: Callable[[Path], dict[str, Any]], path: Path) -> dict[str, Any]:
    """What a reader of `runfolder.contents` gives; nothing where it can't: a run may be writing, or of another kind."""
    try:
        return read(path)
    except ValueError:
        return {}


def _changed(folder: Path) -> float:
    """Time of the newest step."""
    return max(_written(folder / filenames.STEPS), _written(folder / filenames.ENVIRONMENT))


def _written(path: Path) -> float:
    return path.stat().st_mtime if path.exists() else 0.0
