"""`distcxr status [FOLDER ...]`: how far runs are."""

from __future__ import annotations

import argparse
from pathlib import Path

from distcxr.runfolder import filenames


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb to the command line."""
    parser = verbs.add_parser(
        "status",
        help="list runs with their progress",
        description="Progress and time left from the run folders; where SLURM is, what became of their jobs.",
    )
    parser.add_argument(
        "folders", nargs="*", type=Path, default=[filenames.RUNS], metavar="FOLDER",
        help="run folders, or folders that hold some (default: runs)",
    )  # fmt: skip
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print a line for every run, the newest last; a ValueError goes to the caller."""
    from distcxr.cluster.status import job_states, read_status, run_folders, slurm_jobs
    from distcxr.tracking.progress import clock

    folders = run_folders(args.folders)
    if not folders:
        print(f"no runs in {', '.join(map(str, args.folders))}")
        return 0
    jobs = job_states(slurm_jobs(folders))
    rows = [("run", "state", "step", "of", "best val AUROC", "img/s", "time left", "last figures")]
    for status in (read_status(folder, jobs) for folder in folders):
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
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [
            cell.ljust(width) if place < 2 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells))
    return 0
