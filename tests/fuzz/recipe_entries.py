"""Recipes and overrides: YAML, grown from the recipes that are shipped, from keys and from what YAML can do."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from random import Random

import yaml
from fuzz.harness import Entry
from fuzz.mutations import HOSTILE_TEXT, of, spoil_bytes, spoil_value
from fuzz.places import Place

from distcxr.jobs.grid import plan
from distcxr.recipe import load_recipe
from distcxr.recipe.load import to_yaml

ROOT = Path(__file__).parents[2]
_OVERRIDE = b"\n# override "
_VALUES = (
    "1", "-1", "0.5", "1e400", "nan", ".inf", "true", "null", "[]", "{}", "[1, [2]]", "{a: 1}", "10ep", "5%", "'", "~",
    "&a [*a]", "*a", "!!int x", "!!bool maybe", "!!float []", "!!timestamp 2001-99-99", "!!binary '?'", "!!set {a}",
    "!!omap [a]", "!!python/object/apply:os.system [touch owned]", "!!python/name:os.system", "2001-13-45", "0x1g",
    "1:99:99", "=", "<<", "'a: b'", "|\n  x", "? [a]\n: b", "---", "...", "%YAML 9.9", "@x", "`x", "\t", "no", "off",
    "9" * 5000, "1" + "0" * 400 + ".5", "[" * 3000, "{a: " * 3000, "!!str " * 50 + "x", "0o17", "1_000", "'\\ud800'",
    '"\\ud800"', '"\\0"',
)  # fmt: skip
_BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
"""A billion words in 300."""
_WHOLE = (
    _BOMB, _BOMB.replace("i:", "data:"),
    "data: &d\n  <<: *d\n", "base: fuzzed.yaml\n", "base: ../../../../etc/passwd\n",
    "base: [a]\n", 'base: "\\0"\n', "base: " + "a" * 5000 + "\n", "data: &a {image_size: *a}\n", "model: &a [*a]\n",
    "train: {stages: &a [*a]}\n",
    "? {a: b}\n: c\n", "- a\n", "'': 1\n", "x", "", "\0", "--- a\n--- b\n", "a: 1\na: 2\n",
    "[" * 100_000, "{" * 100_000, "- " * 50_000, "a: " * 20_000,
)  # fmt: skip


def _make(folder: Path) -> None:
    shutil.copytree(ROOT / "recipes", folder, dirs_exist_ok=True)
    (folder / "fuzzed.yaml").write_text("{}")


RECIPE = Place("recipe", _make)


@functools.cache
def recipe_seeds() -> tuple[bytes, ...]:
    assert RECIPE.files
    return tuple(path.read_bytes() for path in sorted((ROOT / "recipes").glob("*.yaml")))


@functools.cache
def _keys() -> tuple[str, ...]:
    """Every key of a recipe, with dots."""
    schema = json.loads((ROOT / "recipes" / "recipe.schema.json").read_text())
    sections = {name: list(held.get("properties", {})) for name, held in schema.get("$defs", {}).items()}
    top = list(schema["properties"])
    return (*top, *(f"{section.lower()}.{key}" for section, keys in sections.items() for key in keys))


def spoil_recipe(data: bytes, rng: Random, seeds: Sequence[bytes]) -> bytes:
    kind = rng.randrange(8)
    if kind == 0:
        text = spoil_bytes(data, rng, seeds)
    elif kind == 1:
        text = rng.choice(_WHOLE).encode()
    elif kind <= 4:
        try:
            values = yaml.safe_load(data) or {}
            text = yaml.dump(spoil_value(values, rng), sort_keys=False, allow_unicode=rng.random() < 0.5).encode(
                errors="surrogatepass"
            )
        except (ValueError, TypeError, yaml.YAMLError, KeyError):
            text = spoil_bytes(data, rng, seeds)
    else:
        lines = data.decode().split("\n")
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(len(lines))
            key = lines[at].split(":")[0]
            lines[at] = f"{key}: {rng.choice((*_VALUES, *HOSTILE_TEXT))}"
        text = "\n".join(lines).encode(errors="surrogatepass")
    for _ in range(rng.choice((0, 0, 1, 3))):
        value = rng.choice((*_VALUES, *HOSTILE_TEXT))
        key = rng.choice((*_keys(), *HOSTILE_TEXT, "train.stages.0.lr", "train.stages.9", "data.0.x", "..", "="))
        override = f"{key}{rng.choice(('=', '=', '=', ''))}{value}"
        text += _OVERRIDE + override.replace("\n", "\\n").encode(errors="surrogatepass")
    return text


def run_recipe(data: bytes) -> None:
    text, *overrides = data.split(_OVERRIDE)
    with RECIPE.holding(b"fuzzed.yaml\n" + text):
        path = RECIPE.folder / "fuzzed.yaml"
        words = [word.decode(errors="surrogateescape") for word in overrides]
        recipe = load_recipe(path, words)
        if words and len(data) % 4 == 0:
            plan([path], words, RECIPE.folder / "sweep")
        written = RECIPE.folder / "again.yaml"
        written.write_text(to_yaml(recipe), encoding="utf-8", errors="surrogateescape")
        assert load_recipe(written) == recipe, "what is written as resolved reads back as another recipe"


def run_no_code(data: bytes) -> None:
    """Nothing in a recipe runs: a tag that names code is refused."""
    run_recipe(data)
    assert not Path("owned").exists()


ENTRIES = (Entry("recipe", recipe_seeds, of(spoil_recipe), run_no_code, (ValueError,)),)
