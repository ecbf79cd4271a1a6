"""The files of `recipes/`: each loads, opens with its own command, and leaves nothing of an original to a default."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from distcxr.recipe import load_recipe
from distcxr.recipe.load import to_yaml

ROOT = Path(__file__).parents[2]
ALL = sorted(path for path in (ROOT / "recipes").rglob("*.yaml") if path.parent.name != "launch")  # Accelerate's files
OURS = {"base", "densenet121", "resnet50", "quickstart"}
PUBLISHED = [p for p in ALL if p.stem != "base" and (p.parent.name != "recipes" or p.stem not in OURS)]
# Keys that a published recipe has to set itself: a default that we choose or change must not reach it.
REQUIRED = {
    "data": ("dataset", "findings", "split", "image_size"),
    "augment": ("flip", "rotate_deg", "translate", "scale", "brightness", "contrast", "normalize"),
    "model": ("name", "library", "weights", "in_chans"),
    "loss": ("name",),
    "optim": ("name", "weight_decay"),
    "schedule": ("name", "warmup"),
    "train": ("global_batch_size", "precision", "clip_norm"),
    "eval": ("best_metric", "weights"),
}


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT / "recipes").with_suffix(""))


def written(path: Path) -> dict[str, Any]:
    """Keys of the file and its bases, without the schema's defaults; values are of no interest here."""
    values = yaml.safe_load(path.read_text())
    base = values.pop("base", None)
    below = written(path.parent / base) if base else {}
    for section, keys in values.items():
        below[section] = below.get(section, {}) | keys if isinstance(keys, dict) else keys
    return below


@pytest.mark.parametrize("path", ALL, ids=name_of)
def test_it_loads_and_prints_itself(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(path)
    again = tmp_path / "again.yaml"
    again.write_text(to_yaml(recipe))
    assert load_recipe(again) == recipe


@pytest.mark.parametrize("path", [path for path in ALL if path.stem != "base"], ids=name_of)
def test_it_opens_with_its_own_command(path: Path) -> None:
    header = path.read_text().partition("\n\n")[0]
    assert f"{path.relative_to(ROOT)}" in header or path.stem == "quickstart"
    assert all(line.startswith("#") for line in header.splitlines())


@pytest.mark.parametrize("path", PUBLISHED, ids=name_of)
def test_a_published_recipe_sets_all_that_the_original_decides(path: Path) -> None:
    values = written(path)
    absent = [f"{section}.{key}" for section, keys in REQUIRED.items() for key in keys if key not in values[section]]
    stages = values["train"].get("stages")
    if stages:
        absent += [f"stage {n}: {key}" for n, s in enumerate(stages) for key in ("lr", "epochs") if key not in s]
    else:
        absent += [key for key in ("lr",) if key not in values["optim"]]
        absent += [key for key in ("epochs",) if key not in values["train"]]
    assert not absent


@pytest.mark.parametrize("path", PUBLISHED, ids=name_of)
def test_a_published_recipe_names_what_was_claimed_and_what_to_expect(path: Path) -> None:
    """In its own header, or in the one that it names."""
    text = path.read_text()
    named = [path.parent / name for name in re.findall(r"[\w./]+\.yaml", text) if (path.parent / name).is_file()]
    headers = [file.read_text().partition("\n\n")[0] for file in (path, *named)]
    for word in ("Original", "Claimed", "Expect", "Cost"):
        assert any(f"# {word}" in header for header in headers), word


def test_the_documentation_has_every_figure_that_was_claimed() -> None:
    page = (ROOT / "docs" / "recipes.md").read_text()
    for path in PUBLISHED:
        claimed = " ".join(re.findall(r"# Claimed(?:.*\n#   )*.*", path.read_text()))
        figures = re.findall(r"\.\d{2,5}\b|\d+ %", claimed)
        assert [figure for figure in figures if figure not in page] == [], path


def test_the_documentation_lists_every_recipe() -> None:
    page = (ROOT / "docs" / "recipes.md").read_text()
    missing = [name_of(path) for path in ALL if path.stem != "base" and f"`{name_of(path)}`" not in page]
    assert not missing
