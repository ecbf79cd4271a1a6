"""`distcxr test RUN ...`: a run's or a checkpoint's weights on the test split, or the mean of several; or each of them
on other data sets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from distcxr.cli.options import Processes, Split, complete_recipe, recipe_of

_Words = Annotated[
    list[str],
    typer.Argument(
        metavar="RECIPE|RUN|key=value", show_default=False, autocompletion=complete_recipe,
        help="run folders or checkpoints, several are averaged; a recipe (default: that of the first run); keys that "
        "differ",
    ),
]  # fmt: skip
_On = Annotated[
    list[str] | None,
    typer.Option(
        metavar="RECIPE [key=value ...]", show_default=False, autocompletion=complete_recipe,
        help="score each run on other data sets: recipes that name them, each followed by its keys that differ: "
        "--on chexpert.yaml data.root=/data/chexpert mimic.yaml data.root=/data/mimic",
    ),
]  # fmt: skip
_Split = Annotated[Split | None, typer.Option(help="with --on: the split of these data sets", show_default="test")]
_WITH_ON = ("output", "train.per_device_batch_size")


def run(words: _Words, on: _On = None, split: _Split = None, processes: Processes = None) -> int:
    """Score the test split with a run's weights, or several runs' mean.

    The files go to the run's folder; of several runs to output=FOLDER. With --on every run is scored on every data set
    that is named, on the findings that both have, with its own thresholds: files in external/NAME of the run's folder,
    and one table, trained on by tested on.
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
    if split is not None and not on:
        raise ValueError("--split is about --on: without it the test split is scored")
    if on:
        _check(on, recipes, overrides)
    recipe_path, overrides = recipe_of(find_checkpoint(Path(tested[0])), [*recipes, *overrides])
    if (
        not recipes
    ):  # the run's own names the folder that it was trained in, from which it may have been moved or copied
        overrides = ["output=null", *overrides]
    load_recipe(recipe_path, overrides)  # a mistake in it is reported before any process starts
    elsewhere = ["--on", *on, "--split", split or Split.TEST] if on else []
    return launch([str(recipe_path), *overrides, "--test", *tested, *elsewhere], num_processes(processes))


def _check(on: Sequence[str], recipes: Sequence[str], overrides: Sequence[str]) -> None:
    """Refuse what can't be used before any process starts."""
    from distcxr.data.dataset import data_root
    from distcxr.recipe.several import load_several

    if recipes:
        raise ValueError(f"with --on every run is tested with its own recipe: leave out {recipes[0]}")
    if wrong := [word for word in overrides if word.partition("=")[0] not in _WITH_ON]:
        raise ValueError(
            f"{wrong[0]} comes before --on, where only {' and '.join(_WITH_ON)} may differ: a run shows other images "
            "as its own. Keys of a data set follow its recipe, after --on"
        )
    for name, recipe in load_several(on).items():
        try:
            data_root(recipe)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
