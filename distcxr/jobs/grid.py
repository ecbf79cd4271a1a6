"""What a sweep is made of: recipes times the values of each key, each a run with a folder of its own."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import product
from pathlib import Path
from typing import Any

from distcxr.own_parts import hash_sources
from distcxr.recipe import Recipe, RecipeError, load_recipe
from distcxr.runfolder import filenames

SWEEPS = filenames.RUNS / "sweeps"
_CLOSES = {"[": "]", "{": "}"}
_QUOTES = "\"'"
_NOT_IN_NAMES = re.compile(r"[^\w.+=,-]+")
_LONGEST_NAME = 120


@dataclass(frozen=True)
class Planned:
    """One run of a sweep.

    Attributes:
        name: what it is called: recipe and the values that differ, `resnet18__optim.lr=1e-4`.
        recipe_path, overrides: its command, the run folder among the overrides.
        values: of the keys that have several, as they were written; with the recipe, what tells runs apart.
        recipe: resolved; `output` is the run folder.
        after: name of the run that this one's weights come from.
    """

    name: str
    recipe_path: Path
    overrides: tuple[str, ...]
    values: dict[str, str]
    recipe: Recipe
    after: str | None = None

    @property
    def folder(self) -> Path:
        """The run folder."""
        assert self.recipe.output is not None
        return self.recipe.output

    def identity(self) -> str:
        """Hash (12 hex digits) of the whole recipe but its folder, and of the source of own parts: a run that ended
        with it needs no second one."""
        return self._hash(output=None, sources=hash_sources(self.recipe.own_functions()))

    def same_but_seed(self) -> str:
        """Hash of the recipe without its folder and seed: equal for runs of recipes that differ in `seed` alone."""
        return self._hash(output=None, seed=0)

    def _hash(self, **changed: Any) -> str:
        values = self.recipe.model_copy(update=changed).model_dump(mode="json")
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


def folder_of(recipes: Sequence[Path], assignments: Sequence[str]) -> tuple[Path, list[str]]:
    """Where the runs go, and the assignments without `output=FOLDER`, which may name that place.

    Else it is `runs/sweeps/<recipe>-<hash of the command>`: the same command finds the same folder again.
    """
    given = [one for one in assignments if one.startswith("output=")]
    _refuse_twice("key", ["output"] * len(given))
    if given:
        return Path(given[0].removeprefix("output=")), [one for one in assignments if one not in given]
    command = json.dumps([[str(path.resolve()) for path in recipes], list(assignments)])
    more = f"+{len(recipes) - 1}" if len(recipes) > 1 else ""
    return SWEEPS / f"{recipes[0].stem}{more}-{hashlib.sha256(command.encode()).hexdigest()[:6]}", list(assignments)


def plan(recipes: Sequence[Path], assignments: Sequence[str], folder: Path) -> list[Planned]:
    """All runs of a grid, in the order of the recipes and of the values, the last key fastest.

    A recipe with `model.weights` in another recipe's `output` (a transfer chain) starts from that recipe's run in
    this sweep, the one with the same values, and waits for it.

    Args:
        assignments: `key=value` for all runs, `key=a,b` for the grid; commas within brackets or quotes do not divide.
            `PATTERN:key=value` is for the recipes with such a name alone, in place of the value for all.
        folder: where the run folders will be.

    Raises:
        ValueError: a recipe or a value that can't be used; all of them are named. Nothing has been started then.
    """
    _refuse_twice("recipe", [str(path.resolve()) for path in recipes])
    own, common = _own_assignments(assignments, recipes)
    keys = _parse_assignments(common)
    swept = [key for key, texts in keys.items() if len(texts) > 1]
    if both := [key for key in swept if any(key in given for given in own.values())]:
        raise ValueError(f"{both[0]} has several values for all recipes and one for some: leave one of the two out")
    stems = _stems(recipes)
    runs: list[Planned] = []
    mistakes: dict[str, dict[str, None]] = {}
    outputs: dict[str, Path] = {}
    for path in recipes:
        for texts in product(*keys.values()):
            given = dict(zip(keys, texts, strict=True))
            values = {key: given[key] for key in swept}
            name = _name(stems[path], values)
            overrides = tuple(f"{key}={text}" for key, text in (given | own[path]).items())
            try:
                recipe = load_recipe(path, overrides)
            except RecipeError as error:
                head, *lines = str(error).split("\n")
                mistakes.setdefault(head, {}).update(dict.fromkeys(lines))  # once, not with every value of other keys
                continue
            if recipe.output is not None:
                outputs[name] = recipe.output.absolute()
            place = folder / name
            runs.append(
                Planned(
                    name=name, recipe_path=path, overrides=(*overrides, f"output={json.dumps(str(place))}"),
                    values=values, recipe=recipe.model_copy(update={"output": place}),
                )
            )  # fmt: skip
    if mistakes:
        blocks = ["\n".join([head, *lines]) for head, lines in mistakes.items()]
        raise ValueError("\n".join(["nothing was started:", *blocks]))
    _refuse_twice("run", [run.name for run in runs])
    chained = [_chained(run, runs, outputs) for run in runs]
    _refuse_circles(chained)
    return chained


def split_values(text: str) -> list[str]:
    """The values of `a,b`; commas within brackets, braces or quotes belong to a value."""
    values, closing, quote = [""], "", ""
    for letter in text:
        if letter == "," and not closing and not quote:
            values.append("")
            continue
        values[-1] += letter
        if quote:
            quote = "" if letter == quote else quote
        elif letter in _QUOTES and (values[-1][:-1].rstrip() or ",")[-1] in "[{,:":  # an apostrophe opens nothing
            quote = letter
        elif letter in _CLOSES:
            closing = _CLOSES[letter] + closing
        elif closing and letter == closing[0]:
            closing = closing[1:]
    return [value.strip() for value in values]


def _own_assignments(
    assignments: Sequence[str], recipes: Sequence[Path]
) -> tuple[dict[Path, dict[str, str]], list[str]]:
    """Keys of `PATTERN:key=value` and their values, for each recipe; and the assignments for all."""
    own: dict[Path, dict[str, str]] = {path: {} for path in recipes}
    common = []
    for assignment in assignments:
        pattern, colon, given = assignment.partition(":")
        if not colon or "=" in pattern:
            common.append(assignment)
            continue
        matching = [path for path in recipes if fnmatchcase(path.stem, pattern)]
        if not matching:
            names = ", ".join(dict.fromkeys(path.stem for path in recipes))
            raise ValueError(f"{assignment!r}: no recipe here is called {pattern!r}; they are {names}")
        ((key, values),) = _parse_assignments([given]).items()
        if len(values) > 1:
            raise ValueError(f"{assignment!r}: a key for some of the recipes has one value; {key}=a,b is for all")
        for path in matching:
            own[path][key] = values[0]
    return own, common


def _parse_assignments(assignments: Sequence[str]) -> dict[str, list[str]]:
    keys: dict[str, list[str]] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key:
            raise ValueError(f"{assignment!r} must read key=value, or key=a,b for several")
        if key == "output":
            raise ValueError(
                "every run of a sweep has a folder of its own: output=FOLDER, for all recipes, holds them all"
            )
        if key in keys:
            raise ValueError(f"{key} is given twice: write {key}=a,b for several values")
        keys[key] = split_values(text)
        if "" in keys[key] and len(keys[key]) > 1:
            raise ValueError(f"{assignment!r}: a value between commas is missing")
        _refuse_twice(f"value of {key}", keys[key])
    return keys


def _refuse_twice(what: str, named: Sequence[str]) -> None:
    twice = [name for name in dict.fromkeys(named) if named.count(name) > 1]
    if twice:
        raise ValueError(f"the {what} {twice[0]} is named twice")


def _stems(recipes: Sequence[Path]) -> dict[Path, str]:
    """What each recipe is called: its file's name, with its folder's where two files have one name."""
    names = [path.stem for path in recipes]
    return {path: path.stem if names.count(path.stem) == 1 else f"{path.parent.name}-{path.stem}" for path in recipes}


def _name(stem: str, values: dict[str, str]) -> str:
    """A folder's name; what a file system or a shell may stumble on is replaced, and a hash keeps names apart."""
    whole = "__".join([stem, *(f"{key}={text}" for key, text in values.items())])
    name = _NOT_IN_NAMES.sub("_", whole)
    if name == whole and len(name) <= _LONGEST_NAME:
        return name
    return f"{name[:_LONGEST_NAME]}-{hashlib.sha256(whole.encode()).hexdigest()[:6]}"


def _chained(run: Planned, runs: Sequence[Planned], outputs: dict[str, Path]) -> Planned:
    """The run with its weights taken from a run of this sweep, if it names the output of that run's recipe."""
    weights = run.recipe.model.weights
    if weights in ("imagenet", "none"):
        return run
    wanted = Path(weights).expanduser().absolute()
    for other in runs:
        places = (outputs.get(other.name), other.folder.absolute())
        for place in places:
            if place is None or other is run or other.values != run.values or not wanted.is_relative_to(place):
                continue
            moved = str(other.folder.absolute() / wanted.relative_to(place))
            model = run.recipe.model.model_copy(update={"weights": moved})
            return replace(
                run,
                overrides=(*run.overrides, f"model.weights={json.dumps(moved)}"),
                recipe=run.recipe.model_copy(update={"model": model}),
                after=other.name,
            )
    return run


def _refuse_circles(runs: Sequence[Planned]) -> None:
    """Runs that wait for each other's weights would wait for ever."""
    after = {run.name: run.after for run in runs}
    for name in after:
        seen, at = [name], after[name]
        while at is not None and at not in seen:
            seen, at = [*seen, at], after[at]
        if at is not None:
            circle = " -> ".join([*seen, at])
            raise ValueError(f"these runs begin with each other's weights (model.weights), so none can begin: {circle}")
