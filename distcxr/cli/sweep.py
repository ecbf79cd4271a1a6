"""`distcxr sweep RECIPE... [key=a,b ...]`: a grid of runs, and one table of their results."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from distcxr.cli.options import DryRun, Processes, complete_recipe, fill_in

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from distcxr.jobs.slots import Slot
    from distcxr.jobs.sweep_runner import Job, State

_LOG_EVERY_S = 60.0
_MARKS: dict[State, str] = {
    "waiting": "·", "running": "▸", "finished": "✓", "finished before": "✓", "failed": "✗",
}  # fmt: skip


_Words = Annotated[
    list[str],
    typer.Argument(
        metavar="RECIPE|key=a,b", show_default=False, autocompletion=complete_recipe,
        help="YAML files or names of recipes, and keys with one value or several: optim.lr=1e-4,3e-4 seed=0,1,2; "
        "'nih_*:data.root=/data/nih' for the recipes with such a name alone; output=FOLDER for all runs (default: "
        "runs/sweeps/<recipe>-<hash>)",
    ),
]  # fmt: skip
_Parallel = Annotated[
    str | None,
    typer.Option(
        metavar="[N]", show_default=False,
        help="N runs at once (without N: one per GPU), with one GPU and a share of the cores each",
    ),
]  # fmt: skip
_PER_GPU = "per-gpu"


class NumberMayBeLeftOut(TyperCommand):
    """The verb with a `--parallel` that takes a number or nothing."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Write out the value that is left out."""
        return super().parse_args(ctx, fill_in(args, "--parallel", _PER_GPU, str.isdigit))


def _count(word: str) -> int | None:
    if word == _PER_GPU:
        return None
    if not word.isascii() or not word.isdigit() or int(word) < 1:
        raise ValueError(f"--parallel {word}: give the number of runs at once, at least 1, or no number: one per GPU")
    return int(word)


def run(
    words: _Words,
    parallel: _Parallel = None,
    processes: Processes = None,
    dry_run: DryRun = False,
) -> int:
    """Run a grid of recipes and values, and compare the results.

    Runs every recipe with every combination of the values, each in a folder of its own, and ends with one table and
    picture of the results. The same command resumes where it was stopped: finished runs are not run again. A run that
    fails is named, the others continue.
    """
    from rich.console import Console

    from distcxr.jobs.check import check_runs
    from distcxr.jobs.grid import folder_of, plan
    from distcxr.jobs.runs_json import write_listing
    from distcxr.jobs.sweep_runner import Job, Sweep, is_finished
    from distcxr.report.compare import Entry, write_comparison
    from distcxr.runfolder import filenames
    from distcxr.runfolder.lock import claim

    recipes = [Path(word) for word in words if "=" not in word or Path(word).is_file()]
    assignments = [word for word in words if Path(word) not in recipes]
    if not recipes:
        raise ValueError("name at least one recipe, for example recipes/densenet121.yaml")
    folder, assignments = folder_of(recipes, assignments)
    planned = plan(recipes, assignments, folder)
    slots = _slots(parallel, processes)
    num_parameters = check_runs(planned)
    print(f"{folder}: {len(planned)} runs, {_how(slots)}")
    if dry_run:
        for one in planned:
            note = ", finished before" if is_finished(one) else f", after {one.after}" if one.after else ""
            print(f"  {one.name}: {num_parameters[one.name]:,} parameters{note}")
        return 0
    folder.mkdir(parents=True, exist_ok=True)
    claim(folder)
    write_listing(folder, planned, num_parameters)
    sweep = Sweep([Job(one) for one in planned], slots)
    console = Console(stderr=True)
    try:
        with _Screen(console) as screen:
            sweep.run(screen.show)
    except KeyboardInterrupt:
        print(f"stopped, and all runs with it; the same command resumes {folder}", file=sys.stderr)
        return 130
    entries = [
        Entry(
            name=job.planned.name, recipe=job.planned.recipe_path.stem, values=job.planned.values,
            folder=job.planned.folder, num_parameters=num_parameters[job.planned.name],
            reason=None if job.is_done else job.reason, seed=job.planned.recipe.seed,
            same_but_seed=job.planned.same_but_seed(),
        )
        for job in sweep.jobs
    ]  # fmt: skip
    print(write_comparison(folder, entries))
    failed = [job for job in sweep.jobs if job.state == "failed"]
    for job in failed:
        print(
            f"failed: {job.planned.name}: {job.reason} ({job.planned.folder / filenames.LAUNCH_LOG})", file=sys.stderr
        )
    print(f"{folder / filenames.SWEEP}, and the same as sweep.md, sweep.csv, sweep.json and sweep.svg")
    return 1 if failed else 0


def _slots(parallel: str | None, processes: int | None) -> list[Slot]:
    from distcxr.jobs.slots import shared_machine, usable_cores, visible_gpus, whole_machine

    if parallel is None:
        return whole_machine(processes, visible_gpus())
    if processes is not None:
        raise ValueError("--parallel gives each run one process: leave out --processes")
    return shared_machine(_count(parallel), visible_gpus(), usable_cores())


def _how(slots: Sequence[Slot]) -> str:
    if len(slots) == 1:
        return f"one after another, {slots[0].processes} {'process' if slots[0].processes == 1 else 'processes'} each"
    counts = sorted({len(slot.cores or ()) for slot in slots})
    cores = f"{' or '.join(map(str, counts))} {'core' if counts == [1] else 'cores'} each"
    gpus = [slot.gpu for slot in slots if slot.gpu is not None]
    shared = "" if len(set(gpus)) == len(gpus) else " (shared)"
    on = f"GPUs {', '.join(gpus)}{shared}, " if gpus else ""
    return f"{len(slots)} at once, {on}{cores}"


class _Screen:
    """A line per run: kept up to date on a terminal, elsewhere a line for what changed and one a minute."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._logged: dict[str, tuple[State, float]] = {}

    def __enter__(self) -> _Screen:
        from rich.live import Live

        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def show(self, jobs: Sequence[Job]) -> None:
        """The jobs as they are now."""
        if self._console.is_terminal:
            self._live.update(self._table(jobs), refresh=True)
        for job in jobs:
            self._log(job)

    def _log(self, job: Job) -> None:
        now, name = time.monotonic(), job.planned.name
        state, logged_s = self._logged.get(name, ("waiting", now))
        if job.state == state and not (job.state == "running" and now - logged_s > _LOG_EVERY_S):
            return
        self._logged[name] = (job.state, now)
        on_terminal = self._console.is_terminal
        if not on_terminal or job.state == "failed":  # what the live table drops is kept in the terminal's history
            figures = job.shown()
            line = f"{time.strftime('%H:%M:%S')} {name}: {job.state}" + (f", {figures}" if figures else "")
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _table(self, jobs: Sequence[Job]) -> Table:
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 1))
        num_lines = max(4, self._console.height - 4)
        shown: Callable[[Job], bool] = lambda job: len(jobs) <= num_lines or job.state == "running"  # noqa: E731
        for job in filter(shown, jobs):
            table.add_row(
                _MARKS[job.state], Text(job.planned.name, overflow="ellipsis", no_wrap=True),
                Text(job.shown() or job.state, overflow="ellipsis", no_wrap=True),
            )  # fmt: skip
        counts = {state: sum(job.state == state for job in jobs) for state in _MARKS}
        table.add_row("", Text(", ".join(f"{num} {state}" for state, num in counts.items() if num)), "")
        return table
