"""`distcxr test RUN ...`: a run's or a checkpoint's weights on the test split, or the mean of several."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from distcxr.cli.options import Processes, complete_recipe, recipe_of

_Words = Annotated[
    list[str],
    typer.Argument(
        metavar="RECIPE|RUN|key=value", show_default=False, autocompletion=complete_recipe,
        help="run folders or checkpoints, several are averaged; a recipe (default: that of the first run); keys that "
        "differ",
    ),
]  # fmt: skip


def run(words: _Words, processes: Processes = None) -> int:
    """Score the test split with the weights of a run, or with the mean of several.

    The files go to the run's folder; of several runs to output=FOLDER.
    """
    from distcxr.jobs.launcher import launch, num_processes
    from distcxr.recipe import load_recipe
    from distcxr.recipe.shipped import is_recipe
    from distcxr.runfolder.layout import find_checkpoint

    recipes = [word for word in words if is_recipe(word)]
    overrides = [word for word in words if "=" in word and not Path(word).exists()]
    tested = [word for word in words if word not in recipes and word not in overrides]
    if not tested:
        raise ValueError("name a run folder or a checkpoint to test, for example runs/densenet121/TIME")
    recipe_path, overrides = recipe_of(find_checkpoint(Path(tested[0])), [*recipes, *overrides])
    if (
        not recipes
    ):  # the run's own names the folder that it was trained in, from which it may have been moved or copied
        overrides = ["output=null", *overrides]
    load_recipe(recipe_path, overrides)  # a mistake in it is reported before any process starts
    return launch([str(recipe_path), *overrides, "--test", *tested], num_processes(processes))
