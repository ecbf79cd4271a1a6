"""`distcxr train RECIPE [key=value ...]`: one process per GPU, or two on a CPU."""

from __future__ import annotations

from typing import Annotated

import typer

from distcxr.cli.options import Overrides, Processes, Recipe

_Print = Annotated[bool, typer.Option("--print", help="show the resolved recipe and stop")]


def run(recipe_path: Recipe, overrides: Overrides = None, processes: Processes = None, print_: _Print = False) -> int:
    """Train a recipe with one process per GPU, or two on a CPU.

    The same command resumes a run that was stopped; distcxr check RECIPE finds before what would stop it. For several
    machines use accelerate launch or distcxr submit.
    """
    from distcxr.jobs.launcher import launch, num_processes
    from distcxr.recipe import load_recipe

    words = [str(recipe_path), *(overrides or ())]
    load_recipe(recipe_path, overrides or ())  # a mistake in it is reported before any process starts
    if print_:
        return launch([*words, "--print"], processes=1)
    return launch(words, num_processes(processes))
