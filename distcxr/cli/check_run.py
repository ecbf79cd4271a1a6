"""`distcxr check RUN`: whether a run folder is whole, to the last bit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from distcxr.exit_codes import USER

_Run = Annotated[
    Path,
    typer.Argument(
        metavar="RUN", show_default=False, help="run folder, for example runs/quickstart/2026-01-31_12-00-00"
    ),
]


def run(folder: _Run) -> int:
    """Check a run folder: every checkpoint to the last bit, its tables and results; and what the run is worth.

    Takes about a second a gigabyte and changes nothing. The exit code is 0 where all is whole, 2 otherwise.
    """
    from distcxr.runfolder.storage import in_units
    from distcxr.runfolder.verify import check_run
    from distcxr.tracking.terminal import table_text

    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder: give a run folder, such as runs/quickstart/2026-01-31_12-00-00")
    found = check_run(folder)
    rows = [("checkpoint", "", "step", "epoch", "size")]
    for one in found.checkpoints:
        step, epoch = (str(one.state.get(key, "?")) for key in ("step", "epoch"))
        rows.append((one.path.name, "damaged" if one.problems else "whole", step, epoch, in_units(one.num_bytes)))
    print(table_text(rows, width=None, num_text=2) if found.checkpoints else "no checkpoints")
    print(table_text([("file", ""), *found.files.items()], width=None, num_text=2))
    for problem in found.problems:
        print(f"problem: {problem}")
    for sentence in found.worth:
        print(sentence)
    return USER if found.problems else 0
