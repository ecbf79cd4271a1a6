"""Train a recipe:  accelerate launch launch.py RECIPE [key=value ...] [--print] [--test CHECKPOINT ...] [--on ...]

Without the repository `accelerate launch -m distcxr.launch densenet121 ...` is the same, with a recipe by its name.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from distcxr.error_file import is_full_memory, leave_full_memory, write_error_file
from distcxr.interrupt import without_traceback
from distcxr.processes import collector_paused, end_with_launcher, set_before_torch
from distcxr.recipe import RecipeError, load_recipe
from distcxr.recipe.command import read_command
from distcxr.recipe.idle import idle_overrides
from distcxr.recipe.load import to_yaml
from distcxr.recipe.several import load_several
from distcxr.stall.watch import watching


def main(words: Sequence[str] | None = None) -> int:
    """Load the recipe of the command `words` and hand over to the engine; 2 is the exit code of a user's mistake."""
    end_with_launcher()
    command = read_command(sys.argv[1:] if words is None else words, __doc__ or "")
    overrides, is_main = command.overrides, os.environ.get("RANK", "0") == "0"
    try:
        recipe = load_recipe(command.recipe, overrides)
        on = load_several(command.on)
    except RecipeError as error:
        write_error_file(str(error))  # `distcxr train` has loaded the recipe before: no rank fails here under it
        command.refuse(f"error: {error}\n" if is_main else None)
    for line in idle_overrides(recipe, overrides) if is_main else ():
        print(f"warning: {line}", file=sys.stderr)
    if command.print:
        print(to_yaml(recipe), end="")
        return 0
    test = command.test or [Path(run) for run in recipe.eval.ensemble]
    set_before_torch()
    try:
        with watching(None if test else recipe.train.stall_s):
            if is_main and sys.stderr.isatty():  # somebody waits
                print("loading PyTorch ...", file=sys.stderr, flush=True)
            with collector_paused():
                from distcxr.engine.main import run  # imports torch: seconds that a typing error does not need
            gc.freeze()  # what was imported stays, no collection needs to look at it
            elsewhere = [(on, command.split)] if on else []
            return run(recipe, command.recipe.stem, test, *elsewhere)
    except (MemoryError, OSError, ImportError) as error:  # before the engine, which sees to its own
        if not is_full_memory(error):
            raise
        return leave_full_memory()


if __name__ == "__main__":
    without_traceback()
    sys.exit(main())
