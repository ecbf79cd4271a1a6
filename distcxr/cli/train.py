"""`distcxr train RECIPE [key=value ...]`: train on all GPUs of this machine."""

from __future__ import annotations

import argparse
from pathlib import Path

from distcxr.cli.processes import add_processes, num_processes


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb to the command line."""
    parser = verbs.add_parser(
        "train",
        help="train a recipe on all GPUs of this machine",
        description="Starts one process per GPU, or two on a CPU, through Accelerate's launcher, and trains the recipe "
        "in them. The same command resumes a run that was stopped.",
    )
    parser.add_argument("recipe", type=Path, help="YAML file, or a name: recipes/densenet121.yaml, densenet121")
    parser.add_argument("overrides", nargs="*", default=[], metavar="key=value", help="for example train.epochs=3")
    add_processes(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Check the recipe, then train; a ValueError goes to the caller."""
    from distcxr.cluster.ranks import train_on
    from distcxr.recipe import load_recipe

    load_recipe(args.recipe, args.overrides)  # a mistake is found before any process is started
    return train_on(num_processes(args.processes), [str(args.recipe), *args.overrides])
