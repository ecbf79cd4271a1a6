"""`distcxr report RUN_FOLDER`: the report page, made again from the run's files."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb to the command line."""
    parser = verbs.add_parser(
        "report",
        help="make a run's report page again",
        description="Writes report.html (one page that needs no network), report.md and report.json into a run folder, "
        "from the files that are in it. A run makes them itself when it ends.",
    )
    parser.add_argument("run_folder", type=Path, metavar="RUN_FOLDER", help="for example runs/densenet121/TIME")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write the three files and say where; a ValueError goes to the caller."""
    from distcxr.report.page import write_report

    page = write_report(args.run_folder)
    print(f"{page}, and the same as report.md and report.json")
    return 0
