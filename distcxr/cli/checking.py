"""`distcxr check RUN|RECIPE`: whether a run folder is whole, or whether a recipe would run here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from distcxr.cli.building import Bar, images
from distcxr.cli.options import Overrides, Processes, complete_recipe
from distcxr.exit_codes import USER

_What = Annotated[
    Path,
    typer.Argument(
        metavar="RUN|RECIPE", show_default=False, autocompletion=complete_recipe,
        help="run folder, for example runs/quickstart/2026-01-31_12-00-00; or a recipe: YAML file or name",
    ),
]  # fmt: skip
_Quick = Annotated[bool, typer.Option("--quick", help="of a recipe: decode 1,000 images instead of all")]
_MARKS = {"ok": "✓", "warning": "!", "error": "✗"}
_QUARANTINE = Path("quarantine.csv")


def run(what: _What, overrides: Overrides = None, processes: Processes = None, quick: _Quick = False) -> int:
    """Check a recipe before it is trained, or a run folder afterwards.

    A recipe: labels and splits, every image decoded, batches, memory, speed, disk and duration, by a few real updates;
    images that can't be read go into quarantine.csv. A run folder, to the last bit: every checkpoint, its tables and
    results, and what the run is worth; a second a gigabyte, and nothing is changed. The exit code is 0 where all is
    well, 2 otherwise.
    """
    if not what.is_dir():
        return _check_recipe(what, overrides or (), processes, quick=quick)
    if overrides or quick or processes is not None:
        raise ValueError(f"{what} is a run folder: keys, --quick and --processes are about a recipe")
    return _check_run(what)


def _check_run(folder: Path) -> int:
    from distcxr.runfolder.storage import in_units
    from distcxr.runfolder.verify import check_run
    from distcxr.tracking.terminal import table_text

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


def _check_recipe(recipe_path: Path, overrides: Sequence[str], processes: int | None, *, quick: bool) -> int:
    from rich.console import Console
    from rich.table import Table

    from distcxr.data.quarantine import write_quarantine
    from distcxr.jobs.launcher import num_processes
    from distcxr.jobs.preflight import SAMPLE, Preflight
    from distcxr.recipe import load_recipe

    recipe = load_recipe(recipe_path, overrides)
    console, verdicts = Console(highlight=False, markup=False), set()
    with Bar() as bar:
        preflight = Preflight(
            recipe, num_processes(processes), SAMPLE if quick else None,
            lambda done, total: bar.show("decoding", done, total),
        )  # fmt: skip
        for line in preflight.lines():
            row = Table.grid(padding=(0, 1))
            row.add_column(width=1)
            row.add_column(width=len("open files"))
            row.add_column(overflow="fold")  # a long path is never cut
            row.add_row(_MARKS[line.verdict], line.about, line.message)
            console.print(row)
            verdicts.add(line.verdict)
    if preflight.unreadable:
        path = recipe.data.quarantine or _QUARANTINE
        write_quarantine(path, preflight.listed | preflight.unreadable)
        print(f"{path} lists {images(len(preflight.unreadable))} more; data.quarantine={path} leaves them out")
    return USER if "error" in verdicts else 0
