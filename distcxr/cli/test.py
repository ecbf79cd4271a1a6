"""`distcxr test CHECKPOINT... [RECIPE] [key=value ...]`: score the test split."""

from __future__ import annotations

import argparse

from distcxr.cli.processes import add_processes, num_processes


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb to the command line."""
    parser = verbs.add_parser(
        "test",
        help="score the test split with a checkpoint, or with several averaged",
        description="Scores the test split and writes metrics, predictions and the report into the checkpoint's run "
        "folder, or into output=FOLDER. Patients that the weights were trained on are refused.",
    )
    parser.add_argument(
        "overrides", nargs="+", metavar="CHECKPOINT | RECIPE | key=value",
        help="checkpoints or run folders (several are averaged); a recipe (default: that of the first checkpoint's "
        "run); and keys that differ",
    )  # fmt: skip
    add_processes(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Sort the words, check the recipe, then test; a ValueError goes to the caller."""
    from pathlib import Path

    from distcxr.cluster.ranks import train_on
    from distcxr.recipe import load_recipe
    from distcxr.recipe.shipped import is_recipe
    from distcxr.runfolder.layout import recipe_beside

    overrides = [word for word in args.overrides if "=" in word and not Path(word).exists()]
    recipes = [word for word in args.overrides if word not in overrides and is_recipe(word)]
    checkpoints = [word for word in args.overrides if word not in overrides and word not in recipes]
    if len(recipes) > 1:
        raise ValueError(f"one recipe at a time, not {', '.join(recipes)}")
    if not checkpoints:
        raise ValueError("name a checkpoint or a run folder, for example runs/densenet121/<time>")
    recipe = Path(recipes[0]) if recipes else recipe_beside(Path(checkpoints[0]))
    load_recipe(recipe, overrides)
    return train_on(num_processes(args.processes), [str(recipe), *overrides, "--test", *checkpoints])
