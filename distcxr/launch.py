"""Train a recipe:  accelerate launch launch.py RECIPE [key=value ...] [--print] [--test CHECKPOINT ...]

Without the repository `accelerate launch -m distcxr.launch densenet121 ...` is the same, with a recipe by its name.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from distcxr.recipe import RecipeError, load_recipe
from distcxr.recipe.idle import idle_overrides
from distcxr.recipe.load import to_yaml
from distcxr.recipe.shipped import is_recipe


def main() -> int:
    """Read the command, load the recipe, hand over to the engine; 2 is the exit code of a user's mistake."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("recipe", type=Path, help="YAML file, or a name: recipes/densenet121.yaml, densenet121")
    parser.add_argument("overrides", nargs="*", default=[], metavar="key=value", help="for example train.epochs=3")
    parser.add_argument("--print", action="store_true", help="show the resolved recipe and stop")
    parser.add_argument(
        "--test", nargs="+", default=[], metavar="CHECKPOINT",
        help="score the test split with these weights; several are averaged",
    )  # fmt: skip
    args = parser.parse_intermixed_args(_recipe_first(sys.argv[1:]))
    late = [word for word in args.test if "=" in word and not Path(word).exists()]  # overrides, too
    tested = [Path(word) for word in args.test if word not in late]
    overrides, speaks = [*args.overrides, *late], os.environ.get("RANK", "0") == "0"
    try:
        recipe = load_recipe(args.recipe, overrides)
    except RecipeError as error:
        parser.exit(2, f"error: {error}\n" if speaks else None)
    for line in idle_overrides(recipe, overrides) if speaks else ():
        print(f"warning: {line}", file=sys.stderr)
    if args.print:
        print(to_yaml(recipe), end="")
        return 0
    from distcxr.engine.main import run  # imports torch: seconds that --print and a typing error do not need

    return run(recipe, args.recipe.stem, tested)


def _recipe_first(words: Sequence[str]) -> list[str]:
    """The command with its one recipe in front: `--test A B RECIPE` would take it for a checkpoint, which is a folder.

    argparse reports a command that has none, or several.
    """
    recipes = [word for word in words if is_recipe(word)]
    others = [word for word in words if word not in recipes]
    return [*recipes, *others] if len(recipes) == 1 else list(words)


if __name__ == "__main__":
    sys.exit(main())
