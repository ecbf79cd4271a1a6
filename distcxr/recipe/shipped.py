"""Finds the files that come with the package: the recipes by their names, and the SLURM templates.

In a clone they are the folders `recipes/` and `slurm/` at its top. In a wheel, without these folders, `setup.py`
puts copies of both into `distcxr/shipped/`.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]
_OF_ACCELERATE = "launch"  # a folder of `recipes/` with YAML files that are not recipes


def shipped(folder: str) -> Path:
    """Where the folder `recipes` or `slurm` is, of the wheel or of the clone."""
    inside = _PACKAGE / "shipped" / folder
    return inside if inside.is_dir() else _PACKAGE.parent / folder


def recipe_names() -> dict[str, Path]:
    """The files of all recipes that come with distcxr by their names: `densenet121`, `study/resnet50`."""
    root = shipped("recipes")
    found = {path.relative_to(root).with_suffix("").as_posix(): path for path in sorted(root.rglob("*.yaml"))}
    return {name: path for name, path in found.items() if not name.startswith(f"{_OF_ACCELERATE}/")}


def find_recipe(named: Path, folder: Path) -> Path:
    """The file that is meant: the one in `folder`, or if there is none the recipe of this name; else a missing file."""
    path = folder / named
    try:
        is_file = path.is_file()
    except (OSError, ValueError):  # too long for a name, or with a zero byte
        is_file = False
    return path if is_file else recipe_names().get(named.as_posix(), path)


def is_recipe(word: str) -> bool:
    """Whether an argument is a recipe: a YAML file, there or not, or the name of a recipe that is not also a path."""
    if "=" in word:
        return False
    return word.endswith((".yaml", ".yml")) or (not Path(word).exists() and word in recipe_names())


def recipe_first(words: Sequence[str]) -> list[str]:
    """The command with its one recipe in front: `--test A B RECIPE` would take it for a checkpoint, which is a folder.

    argparse reports a command that has none, or several.
    """
    recipes = [word for word in words if is_recipe(word)]
    return [*recipes, *(word for word in words if word not in recipes)] if len(recipes) == 1 else list(words)


def not_found(path: Path) -> str:
    """What to try in place of a recipe that is neither a file nor a name."""
    names = recipe_names()
    near = difflib.get_close_matches(path.with_suffix("").as_posix().removeprefix("recipes/"), names, n=1)
    hint = f"; did you mean {near[0]}?" if near else "."
    return f"there is no such file, and no recipe of this name{hint} Recipes that come with distcxr: {', '.join(names)}"
