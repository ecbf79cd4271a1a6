"""`distcxr sweep RECIPE... [key=a,b ...]`: a grid of runs, and one table of their results."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from distcxr.cluster.slots import Slot
    from distcxr.cluster.sweep import Job, State

_SAY_EVERY_S = 60.0
_MARKS: dict[State, str] = {
    "waiting": "·", "running": "▸", "finished": "✓", "finished before": "✓", "failed": "✗",
}  # fmt: skip


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb to the command line."""
    parser = verbs.add_parser(
        "sweep",
        help="run a grid of recipes and values, and compare the results",
        description="Runs every recipe with every combination of the values, each in a folder of its own, and ends "
        "with one table and picture of the results. The same command goes on where it was stopped: finished runs are "
        "not run again. A run that fails is named, the others go on.",
    )
    parser.add_argument(
        "words", nargs="+", metavar="RECIPE | key=a,b",
        help="YAML files or names of recipes, and keys with one value or several: optim.lr=1e-4,3e-4 seed=0,1,2",
    )  # fmt: skip
    parser.add_argument(
        "--parallel", nargs="?", type=_count, const=0, default=None, metavar="N",
        help="N runs at once (default: one per GPU), with one GPU and a share of the cores each",
    )  # fmt: skip
    parser.add_argument("--processes", type=int, metavar="N", help="processes of each run (default: one per GPU)")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="default: runs/sweeps/<recipe>-<hash>")
    parser.add_argument("--dry-run", action="store_true", help="check everything, show the runs and stop")
    parser.set_defaults(run=run, overrides=[])


def _count(word: str) -> int:
    if not word.isascii() or not word.isdigit() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"{word!r} is no number of runs: write --parallel last, or --parallel=2")
    return int(word)


def run(args: argparse.Namespace) -> int:
    """Run the grid; 1 if a run failed. A ValueError goes to the caller before anything was started."""
    from rich.console import Console

    from distcxr.cluster.check import check_runs
    from distcxr.cluster.grid import default_folder, plan
    from distcxr.cluster.listing import write_listing
    from distcxr.cluster.sweep import Job, Sweep, is_finished
    from distcxr.report.compare import Entry, write_comparison
    from distcxr.runfolder import filenames
    from distcxr.runfolder.lock import claim

    words = [*args.words, *args.overrides]
    recipes = [Path(word) for word in words if "=" not in word or Path(word).is_file()]
    assignments = [word for word in words if Path(word) not in recipes]
    if not recipes:
        raise ValueError("name at least one recipe, for example recipes/densenet121.yaml")
    folder = args.output or default_folder(recipes, assignments)
    planned = plan(recipes, assignments, folder)
    slots = _slots(args)
    num_parameters = check_runs(planned)
    print(f"{folder}: {len(planned)} runs, {_how(slots)}")
    if args.dry_run:
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
        print(f"stopped, and all runs with it; the same command goes on with {folder}", file=sys.stderr)
        return 130
    entries = [
        Entry(
            name=job.planned.name, recipe=job.planned.recipe_path.stem, values=job.planned.values,
            folder=job.planned.folder, num_parameters=num_parameters[job.planned.name],
            reason=None if job.is_done else job.reason,
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


def _slots(args: argparse.Namespace) -> list[Slot]:
    from distcxr.cluster.slots import shared_machine, usable_cores, visible_gpus, whole_machine

    if args.parallel is None:
        return whole_machine(args.processes, visible_gpus())
    if args.processes is not None:
        raise ValueError("--parallel gives each run one process: leave out --processes")
    return shared_machine(args.parallel or None, visible_gpus(), usable_cores())


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
        self._said: dict[str, tuple[State, float]] = {}

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
            self._say(job)

    def _say(self, job: Job) -> None:
        now, name = time.monotonic(), job.planned.name
        state, said_s = self._said.get(name, ("waiting", now))
        if job.state == state and not (job.state == "running" and now - said_s > _SAY_EVERY_S):
            return
        self._said[name] = (job.state, now)
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
