"""A page made of hostile words has the elements and attributes of any other page: none comes from data."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from pages import Parsed, made

WORDS = (
    "<script>alert(1)</script>", '" onmouseover="alert(1)', "' onload='alert(1)' x='", "javascript:alert(1)",
    "</style></title><script>alert(1)</script>", "</svg></figure><img src=x onerror=alert(1)>",
    "{{ page.title }}</pre></details><iframe src=//evil.example>",
)  # fmt: skip
FIXED = {"split", "image", "heat", "kind", "operating_points_from", "checkpoint_from", "scale", "auroc"}
"""Keys of values that choose files or branches of the code."""


def _spoilt(value: Any, word: str, fixed: bool = False) -> Any:
    """Every text replaced but those of `FIXED`."""
    if isinstance(value, dict):
        return {key: _spoilt(one, word, key in FIXED) for key, one in value.items()}
    if isinstance(value, list):
        return [_spoilt(one, word, fixed) for one in value]
    return f"{word} {value}" if isinstance(value, str) and not fixed else value


def _edit(file: Path, change: Callable[[Any], Any]) -> None:
    file.write_text(json.dumps(change(json.loads(file.read_text()))))


def _shape(page: Parsed) -> set[tuple[str, frozenset[str]]]:
    return {(tag, frozenset(attributes)) for tag, attributes in page.elements}


@pytest.mark.parametrize("word", WORDS)
def test_no_element_or_attribute_comes_from_data(folder: Path, word: str) -> None:
    ordinary, _, _ = made(folder)
    for split in ("test", "val"):
        file = folder / f"metrics_{split}.json"
        _edit(file, lambda held: _spoilt(held, word))

        def rename(held: Any) -> Any:
            new = {f"{word} {name}": scores for name, scores in held["findings"].items()}
            return held | {"findings": new, "warnings": [word], "unreadable": [{"file": word, "reason": word}]}

        _edit(file, rename)
        table = (folder / f"predictions_{split}.csv").read_text().split("\n", 1)
        names = table[0].split(",")
        for column in range(2, len(names), 3):
            name = f"{word} {names[column]}".replace('"', '""')
            names[column : column + 3] = [f'"{name}"', f'"{name}_true"', f'"logit:{name}"']
        (folder / f"predictions_{split}.csv").write_text(",".join(names) + "\n" + table[1])
    _edit(folder / "pictures" / "pictures.json", lambda held: _spoilt(held, word))
    _edit(folder / "environment.json", lambda held: _spoilt(held, word) | {"hashes": {word: word}})
    _edit(
        folder / "localisation_test.json",
        lambda held: held | {"method": word, "findings": {f"{word} {k}": v for k, v in held["findings"].items()}},
    )
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(_spoilt(yaml.safe_load(recipe.read_text()), word)))
    page, _, _ = made(folder.rename(folder.with_name(f"run {word}".replace("/", "\u2215"))))

    assert page.words.count(word) > 30, "the words are on the page"
    assert _shape(page) <= _shape(ordinary)
    classes = {attributes.get("class") for _, attributes in ordinary.elements}
    for tag, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        assert attributes.get("class") in classes, (tag, attributes)
        assert (attributes.get("href") or "#").startswith("#"), (tag, attributes)
        assert (attributes.get("src") or "data:image/jpeg;base64,").startswith("data:image/jpeg;base64,")
