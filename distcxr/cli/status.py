"""`distcxr status [FOLDER ...]`: how far runs are."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from distcxr.runfolder import filenames

_Folders = Annotated[
    list[Path] | None,
    typer.Argument(metavar="FOLDER", show_default=False, help="run folders, or folders that hold some (default: runs)"),
]


def run(folders: _Folders = None) -> int:
    """List runs with their progress, the newest last.

    Progress and time left come from the run folders; where SLURM is, what became of their jobs.
    """
    from distcxr.jobs.run_status import job_states, read_status, run_folders, slurm_jobs
    from distcxr.tracking.terminal import clock, table_text

    places = folders or [filenames.RUNS]
    found = run_folders(places)
    if not found:
        print(f"no runs in {', '.join(map(str, places))}")
        return 0
    jobs = job_states(slurm_jobs(found))
    rows = [("run", "state", "step", "of", "best val AUROC", "img/s", "time left", "last figures")]
    for status in (read_status(folder, jobs) for folder in found):
        rows.append(
            (
                str(status.folder),
                status.state,
                str(status.step),
                "?" if status.total_steps is None else str(status.total_steps),
                "" if status.best_auroc is None else f"{status.best_auroc:.4f}",
                "" if status.img_per_s is None else f"{status.img_per_s:.0f}",
                "" if status.eta_s is None else clock(status.eta_s),
                "" if status.changed_s is None else f"{clock(status.changed_s)} ago",
            )
        )
    print(table_text(rows, width=None, num_text=2))
    return 0
