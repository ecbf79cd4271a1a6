"""`distcxr submit`: recipes checked, then handed to SLURM with slurm/train.sbatch.

one run    train ──► test, ends with the report
an array   train each ──► test each that ended well ──► compare all of them
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from distcxr.data.order import BatchPlan
from distcxr.jobs.grid import Planned, folder_of, plan
from distcxr.recipe import load_recipe
from distcxr.recipe.shipped import shipped
from distcxr.runfolder import filenames
from distcxr.runfolder.whole import write_whole

SLURM = shipped("slurm")
_SITE_VARIABLE = "DISTCXR_SITE"
_SITE = Path("slurm/site.env")  # where train.sbatch looks without the variable


@dataclass(frozen=True)
class Resources:
    """What a job asks SLURM for.

    Attributes:
        gpus: of each node; 0 trains on CPUs.
        more: other flags of sbatch, as they are.
    """

    nodes: int = 1
    gpus: int = 1
    cpus: int | None = None
    time: str | None = None
    partition: str | None = None
    more: tuple[str, ...] = ()

    def flags(self) -> list[str]:
        """Flags of sbatch."""
        asked = {
            "nodes": self.nodes, "gpus-per-node": self.gpus or None, "cpus-per-task": self.cpus, "time": self.time,
            "partition": self.partition,
        }  # fmt: skip
        return [*(f"--{name}={value}" for name, value in asked.items() if value is not None), *self.more]


@dataclass(frozen=True)
class Submission:
    """A job, or an array of them.

    Attributes:
        runs: one, or the tasks of an array.
        folder: where the logs go; of an array also the run folders and the list of its runs.
        at_once: most tasks of an array at a time.
    """

    runs: tuple[Planned, ...]
    folder: Path
    resources: Resources
    is_array: bool = False
    at_once: int | None = None

    @property
    def log(self) -> Path:
        """The log, with SLURM's letters for the job's number."""
        return self.folder / (filenames.SLURM_ARRAY_LOG if self.is_array else filenames.SLURM_LOG)

    def command(self, after: str | None = None, test: bool = False) -> list[str]:
        """What is run to submit it.

        Args:
            after: job that must have ended well before; of an array, each task waits for its own.
            test: test the runs' best weights instead of training.
        """
        name = self.runs[0].recipe_path.stem
        flags = [f"--job-name={name}{'-test' if test else ''}", f"--output={self.log}", *self.resources.flags()]
        if after is not None:
            flags += _waits("aftercorr" if self.is_array else "afterok", after)
        words = _words(self.runs[0], test)
        if self.is_array:
            limit = f"%{self.at_once}" if self.at_once else ""
            flags.append(f"--array=1-{len(self.runs)}{limit}")
            words = [f"@{self.list_file(test)}"]
        return ["sbatch", "--parsable", *flags, str(SLURM / "train.sbatch"), *words]

    def comparison(self, after: str) -> list[str]:
        """What is run to submit the comparison of an array's runs, when job `after` has ended, well or not.

        It asks for what the job before got: a partition may refuse a job that asks for less, one without GPUs say.
        """
        flags = [f"--job-name={self.runs[0].recipe_path.stem}-report", f"--output={self.folder / filenames.SLURM_LOG}"]
        flags += [*self.resources.flags(), *_waits("afterany", after)]
        return ["sbatch", "--parsable", *flags, str(SLURM / "report.sbatch"), str(self.folder)]

    def list_file(self, test: bool) -> Path:
        """The file with a line for each task."""
        return self.folder / (filenames.TEST_TASKS if test else filenames.TASKS)

    def write_list(self, test: bool) -> None:
        """Write it."""
        lines = [shlex.join(_words(run, test)) for run in self.runs]
        write_whole(self.list_file(test), "".join(f"{line}\n" for line in lines))


def _waits(condition: str, job: str) -> list[str]:
    return [f"--dependency={condition}:{job}", "--kill-on-invalid-dep=yes"]


def _words(run: Planned, test: bool) -> list[str]:
    words = [str(run.recipe_path), *run.overrides]
    return [*words, "--test", str(run.folder)] if test else words


def plan_submission(
    recipe_path: Path, overrides: Sequence[str], grid: Sequence[str], resources: Resources, at_once: int | None
) -> Submission:
    """The job of a recipe, or with a `grid` the array of its runs, each with a folder of its own.

    Raises:
        ValueError: a recipe, key or value that can't be used, or a batch that the ranks can't share.
    """
    if resources.nodes < 1 or resources.gpus < 0:
        raise ValueError(f"--nodes {resources.nodes} --gpus {resources.gpus}: at least 1 node with 0 GPUs or more")
    if at_once is not None and (at_once < 1 or not grid):
        raise ValueError(f"--at-once {at_once}: how many runs of an --array at a time, at least 1")
    if grid:
        folder, words = folder_of([recipe_path], [*overrides, *grid])
        runs = tuple(plan([recipe_path], words, folder))
    else:
        recipe = load_recipe(recipe_path, overrides)
        folder = filenames.RUNS / recipe_path.stem
        runs = (Planned(recipe_path.stem, recipe_path, tuple(overrides), {}, recipe),)
    for run in runs:
        total, ranks = run.recipe.train.global_batch_size, resources.nodes * max(1, resources.gpus)
        BatchPlan(  # raises an error for what does not fit
            global_batch_size=total, world_size=ranks, rank=0,
            per_device_batch_size=run.recipe.train.per_device_batch_size or max(1, total // ranks),
        )  # fmt: skip
    return Submission(runs, folder, resources, bool(grid), at_once)


def submit(submission: Submission, after: str | None = None, test: bool = False) -> str:
    """Hand it to SLURM.

    Returns:
        The number of the job, or of the array.

    Raises:
        ValueError: SLURM is not here, or refuses; in its own words.
    """
    _need_sbatch()
    submission.folder.mkdir(parents=True, exist_ok=True)
    if submission.is_array:
        submission.write_list(test)
    return _number(_sbatch(submission.command(after, test)))


def submit_comparison(submission: Submission, after: str) -> str:
    """Have an array's runs compared after job `after`; the number of the job, and ValueError as `submit`."""
    return _number(_sbatch(submission.comparison(after)))


def _number(printed: str) -> str:
    return printed.split(";")[0].strip()  # "123;cluster" where there are several


def expected_start(submission: Submission) -> str:
    """When the job would start by SLURM's estimate, without submitting it; raises ValueError as `submit`."""
    command = submission.command()
    return _sbatch([command[0], "--test-only", *command[2:]])


def _need_sbatch() -> None:
    if shutil.which("sbatch") is None:
        raise ValueError("there is no sbatch on this machine: submit from a login node of the cluster")


def _sbatch(command: Sequence[str]) -> str:
    _need_sbatch()
    environ = dict(os.environ)
    # The job's `python` is this one unless the site's settings say otherwise.
    environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environ.get('PATH', '')}"
    if not _SITE.exists():
        environ.setdefault(_SITE_VARIABLE, str(SLURM / "site.env"))
    done = subprocess.run(command, env=environ, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"sbatch refuses: {(done.stderr or done.stdout).strip()}\nafter: {shlex.join(command)}")
    return done.stdout + done.stderr


def with_folder(submission: Submission, job: str) -> Submission:
    """The submission with the run folder that its job will use; an array's runs know theirs from the start."""
    (run,) = submission.runs
    folder = run.recipe.output or submission.folder / filenames.slurm_folder(job)
    output = () if run.recipe.output else (f"output={json.dumps(str(folder))}",)
    recipe = run.recipe.model_copy(update={"output": folder})
    return replace(submission, runs=(replace(run, recipe=recipe, overrides=(*run.overrides, *output)),))
