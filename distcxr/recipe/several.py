"""Several recipes in one command, each followed by the keys that differ: `a.yaml data.root=/a b.yaml data.root=/b`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from distcxr.recipe.keys import Recipe
from distcxr.recipe.load import RecipeError, load_recipe


def load_several(words: Sequence[str]) -> dict[str, Recipe]:
    """The recipes by their files' names without the ending, in their order.

    Raises:
        RecipeError: as `load_recipe`; a key before the first recipe, or two recipes of one name.
    """
    given: dict[Path, list[str]] = {}
    for word in words:
        if "=" not in word or Path(word).is_file():
            if (path := Path(word)) in given or path.stem in [other.stem for other in given]:
                raise RecipeError(f"two recipes are called {path.stem}: results go by this name, so rename one")
            given[path] = []
        elif not given:
            raise RecipeError(f"{word} comes before any recipe: name the recipe first, then the keys that differ in it")
        else:
            given[list(given)[-1]].append(word)
    return {path.stem: load_recipe(path, overrides) for path, overrides in given.items()}
