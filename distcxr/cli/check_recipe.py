"""`distcxr check RECIPE`: everything that a run needs, looked at before it starts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from distcxr.cli.building import Bar, images

_MARKS = {"ok": "✓", "warning": "!", "error": "✗"}
_QUARANTINE = Path("quarantine.csv")


def check_recipe(recipe_path: Path, overrides: Sequence[str], processes: int | None, *, quick: bool) -> int:
    """Print a line per check and write the list of unreadable images; 0 when nothing would stop the run, else 2."""
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
            row.add_row(_MARKS[line.verdict], line.about, line.message)
            console.print(row)
            verdicts.add(line.verdict)
    if preflight.unreadable:
        path = recipe.data.quarantine or _QUARANTINE
        write_quarantine(path, preflight.listed | preflight.unreadable)
        print(f"{path} lists {images(len(preflight.unreadable))} more; data.quarantine={path} leaves them out")
    return 2 if "error" in verdicts else 0
