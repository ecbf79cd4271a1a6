"""The command of `launch.py`, in parts."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from distcxr.recipe.shipped import recipe_first


@dataclass(frozen=True)
class Command:
    """What a command asks for.

    Attributes:
        overrides: of the recipe; those that follow the checkpoints of `--test`, too.
        test: checkpoints to test; none where the recipe is to be trained.
        on: recipes to test them on, each followed by its overrides; `split` is of these.
    """

    recipe: Path
    overrides: list[str]
    print: bool
    test: list[Path]
    on: list[str]
    split: str
    parser: argparse.ArgumentParser

    def refuse(self, message: str | None) -> NoReturn:
        """End as argparse does for a user's mistake."""
        self.parser.exit(2, message)


def read_command(words: Sequence[str], about: str) -> Command:
    """The parts of a command's words; a wrong one ends the process, with exit code 2."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("recipe", type=Path, help="YAML file, or a name: recipes/densenet121.yaml, densenet121")
    parser.add_argument("overrides", nargs="*", default=[], metavar="key=value", help="for example train.epochs=3")
    parser.add_argument("--print", action="store_true", help="show the resolved recipe and stop")
    more = "score the test split with these weights; several are averaged"
    parser.add_argument("--test", nargs="+", default=[], metavar="CHECKPOINT", help=more)
    more = "with --test: score each on these data sets, recipes that are each followed by their own key=value"
    parser.add_argument("--on", nargs="+", default=[], metavar="RECIPE", help=more)
    parser.add_argument("--split", default="test", choices=("train", "val", "test"), help="with --on: of which split")
    args = parser.parse_intermixed_args(recipe_first(words))
    if args.on and not args.test:
        parser.error("--on is about --test: name the run to test")
    late = [word for word in args.test if "=" in word and not Path(word).exists()]  # overrides, too
    tested = [Path(word) for word in args.test if word not in late]
    return Command(args.recipe, [*args.overrides, *late], args.print, tested, args.on, args.split, parser)
