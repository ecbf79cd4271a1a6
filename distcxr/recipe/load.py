"""From a YAML file and `key=value` overrides to a `Recipe`, with errors that name file, key and remedy."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from distcxr.plain_yaml import load_plain
from distcxr.recipe.keys import Recipe
from distcxr.recipe.section import DURATION_KEYS, FUNCTION_KEYS, NOT_A_FUNCTION
from distcxr.recipe.shipped import find_recipe, not_found
from distcxr.regular import read_regular

_MOST_BYTES = 4 << 20  # a recipe has 4 KB; YAML takes 20 s for 4 MB


class RecipeError(ValueError):
    """A recipe or override that can't be used; the message names file, key and remedy."""


class _Yaml(yaml.SafeLoader):
    """Safe YAML in which `no` and `off` are strings and `1e-4` is a number; a key that is there twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a word", key_node.start_mark)
            if key_node.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key_node.value!r} is there twice", key_node.start_mark
                )
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


_Yaml.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in rules if tag.rsplit(":", 1)[1] in ("null", "merge")]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
):
    _Yaml.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first))


def _parse(text: str) -> Any:
    """The one document in `text`, in plain values."""
    return load_plain(text, _Yaml)


def load_recipe(path: Path | str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe, its bases and the overrides, and validate the result.

    Args:
        path: YAML file, or the name of a recipe that comes with distcxr; `base:` in it names one parent, a file beside
            it or again a name.
        overrides: `section.key=value`, the value in YAML.

    Raises:
        RecipeError: naming the file or override, the key, and the nearest valid name where one is near.
    """
    return _with_overrides(_read(Path(path), Path(), ()), overrides, str(path))


def with_overrides(recipe: Recipe, overrides: Sequence[str]) -> Recipe:
    """A resolved recipe with overrides as `load_recipe` takes them, and its errors."""
    return _with_overrides(recipe.model_dump(mode="json"), overrides, "the recipe with these overrides")


def _with_overrides(values: dict[str, Any], overrides: Sequence[str], name: str) -> Recipe:
    for override in overrides:
        _apply(values, override)
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        lines = [_explain(issue, values, overrides) for issue in error.errors() if not _is_repeated(issue, values)]
        # Every stage that inherits a section repeats its contradictions: each is reported once.
        problems = "\n".join(f"  - {line}" for line in dict.fromkeys(lines))
        raise RecipeError(f"{name} can't be used:\n{problems}") from None


def _read(named: Path, folder: Path, children: tuple[Path, ...]) -> dict[str, Any]:
    """Keys and values of a recipe, a file in `folder` or a name, over those of its bases."""
    try:
        path = find_recipe(named, folder).resolve()
    except (OSError, ValueError, RuntimeError) as error:  # no name of a file, or links in a circle
        raise RecipeError(f"{children[-1] if children else named}: no recipe has the name {named}: {error}") from None
    if path in children:
        raise RecipeError(f"{path}: `base` goes round in a circle: {' -> '.join(str(p) for p in (*children, path))}")
    try:
        text = read_regular(path, _MOST_BYTES)[0].decode()
    except OSError as error:
        wanted = f" (the base of {children[-1]})" if children else ""
        problem = not_found(named) if isinstance(error, FileNotFoundError) else error.strerror
        raise RecipeError(f"the recipe {path}{wanted} can't be read: {problem}") from None
    except UnicodeDecodeError:
        raise RecipeError(f"{path} is not a text file") from None
    try:
        values = _parse(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"{path} is not valid YAML: {error}") from None
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise RecipeError(f"{path} must hold keys and values, not a {type(values).__name__}")
    base = values.pop("base", None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise RecipeError(f"{path}: `base` must be one file name, not {base!r}")
    return _merge(_read(Path(base), path.parent, (*children, path)), values)


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _apply(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise RecipeError(f"the override {override!r} must read key=value, for example train.epochs=3")
    try:
        value = _parse(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"the value of the override {override!r} is not valid YAML: {error}") from None
    *sections, name = key.split(".")
    target: Any = values
    for depth, section in enumerate(sections):
        part = _part(target, section, ".".join(sections[:depth]), override)
        inner = target[part] if isinstance(target, list) else target.get(part)
        if not isinstance(inner, dict | list):
            # A union such as augment.normalize may hold a word where the override wants a mapping.
            inner = target[part] = {}
        target = inner
    target[_part(target, name, ".".join(sections), override)] = value


def _part(target: dict[str, Any] | list[Any], part: str, key: str, override: str) -> Any:
    """Key of a section, or index in a list such as that of `train.stages.0.lr`."""
    if isinstance(target, list) and part.isdigit() and int(part) < len(target):
        return int(part)
    if isinstance(target, list) or part.isdigit():  # no key is a number
        num = len(target) if isinstance(target, list) else 0
        there = f"its entries are 0 to {num - 1}" if num else "the recipe has none there"
        raise RecipeError(f"the override {override!r}: {key} has no entry {part}; {there}")
    return part


def _explain(issue: Any, values: dict[str, Any], overrides: Sequence[str]) -> str:
    """The message for one of pydantic's validation errors: key, value, the override it came from, and what is valid."""
    location, given = _locate(values, issue["loc"], absent=issue["type"] == "missing")
    key = ".".join(location)
    origin = next((f" (from the override {text!r})" for text in reversed(overrides) if text.startswith(f"{key}=")), "")
    if issue["type"] == "extra_forbidden":
        names = list(_fields_at(location[:-1]))
        section = ".".join(location[:-1]) or "a recipe"
        hint = _did_you_mean(location[-1], names)
        return f"unknown key {key!r}{origin}{hint or '.'} Valid keys of {section}: {', '.join(names)}"
    if issue["type"] == "missing":
        return f"{key} is needed and not given"
    if issue["type"] == "value_error":
        return f"{issue['ctx']['error']}{origin}"
    problem = f"{key} = {given!r}{origin}"
    if issue["type"] == "literal_error":
        expected = issue["ctx"]["expected"]
        hint = _did_you_mean(str(given), re.findall(r"'([^']*)'", expected))
        return f"{problem} is not one of {expected}{hint}"
    if location and location[-1] in DURATION_KEYS:
        return f"{problem} is not a duration: write 10ep (epochs), 500st (steps) or 5% (of the run)"
    if location and location[-1] in FUNCTION_KEYS:
        return f"{problem} {NOT_A_FUNCTION}"
    return f"{problem}: {issue['msg'][0].lower()}{issue['msg'][1:]}"


def _is_repeated(issue: Any, values: dict[str, Any]) -> bool:
    """Whether a stage has the mistake from the section that it completes: it is reported once."""
    in_stage = issue["loc"][:2] == ("train", "stages") and len(issue["loc"]) > 4
    return (
        in_stage
        and issue["type"] != "missing"
        and issue["loc"][4] not in _locate(values, issue["loc"], absent=False)[0]
    )


def _did_you_mean(word: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, names, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _locate(values: Any, path: Sequence[str | int], *, absent: bool) -> tuple[list[str], Any]:
    """The key that pydantic's `path` leads to and what the user wrote there.

    Parts of the path that only name a member of a union are in no file, so they are left out.
    """
    key = []
    for depth, part in enumerate(path):
        if isinstance(values, dict) and part in values:
            key.append(str(part))
            values = values[part]
        elif isinstance(values, list) and isinstance(part, int) and part < len(values):
            key.append(str(part))
            values = values[part]
        elif absent and depth == len(path) - 1:
            key.append(str(part))
    return key, values


def _fields_at(location: Sequence[str]) -> Sequence[str]:
    """Names of the keys of the section at `location`."""
    section: type[BaseModel] = Recipe
    for part in location:
        annotation = section.model_fields[part].annotation if part in section.model_fields else None
        inner = [kind for kind in (annotation, *get_args(annotation)) if isinstance(kind, type)]
        section = next((kind for kind in inner if issubclass(kind, BaseModel)), section)  # a list's number: the same
    return list(section.model_fields)


def to_yaml(recipe: Recipe) -> str:
    """The resolved recipe as YAML that `load_recipe` reads back to an equal recipe."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=110)
