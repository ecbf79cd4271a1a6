"""`distcxr report FOLDER`: a run's report page, or the comparison of an array's or a sweep's runs, made again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_Folder = Annotated[
    Path,
    typer.Argument(metavar="FOLDER", show_default=False, help="for example runs/densenet121/TIME, or runs/sweeps/NAME"),
]


def run(folder: _Folder) -> int:
    """Make a run's report again, or compare the runs of a sweep.

    Writes report.html (one page that needs no network), report.md and report.json into a run folder, from the files
    that are in it. A run makes them itself when it ends. Of the folder of an array or a sweep it makes sweep.html, .md,
    .csv, .json and .svg, with all runs that have ended beside each other.
    """
    from distcxr.report.page import write_report
    from distcxr.runfolder import filenames

    if (folder / filenames.LISTING).exists():
        _compare(folder)
        print(f"{folder / filenames.SWEEP}, and the same as sweep.md, sweep.csv, sweep.json and sweep.svg")
    else:
        print(f"{write_report(folder)}, and the same as report.md and report.json")
    return 0


def _compare(folder: Path) -> None:
    from distcxr.jobs.run_status import FINISHED, job_states, read_status, slurm_jobs
    from distcxr.jobs.runs_json import read_listing
    from distcxr.report.compare import Entry, write_comparison

    listed = read_listing(folder)
    jobs = job_states(slurm_jobs([one.folder for one in listed]))
    entries = []
    for one in listed:
        status = read_status(one.folder, jobs)
        reason = None if status.state == FINISHED else status.in_words()
        entries.append(
            Entry(
                one.name, one.recipe, one.values, one.folder, one.num_parameters, reason, one.seed, one.same_but_seed,
            )
        )  # fmt: skip
    print(write_comparison(folder, entries))
    for entry in entries:
        if entry.reason is not None:
            print(f"no figures: {entry.name}: {entry.reason}")
