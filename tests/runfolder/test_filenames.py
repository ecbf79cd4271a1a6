"""The files of a run folder are named in one place."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from distcxr.runfolder import filenames, manifest

PACKAGE = Path(filenames.__file__).parents[1]
OTHERS = sorted(path for path in PACKAGE.rglob("*.py") if path.parent != Path(filenames.__file__).parent)
NAMES = {value for name, value in vars(filenames).items() if name.isupper() and isinstance(value, str)}
NAMES -= {filenames.PICTURES, filenames.TENSORBOARD}  # keys and packages are called so, too
NAMES |= {manifest.TRAINED, manifest.TRAINING, manifest.META}  # Hugging Face's files are model.safetensors, too
BEGINNINGS = ("metrics_", "predictions_", "localisation_")
BEFORE = ("recipe.yaml", "environment.json", "log.txt", "steps.csv", "history.csv", "operating.json", "report.html")


def names_in(text: str) -> Iterator[str]:
    """String constants that are a file's whole name, and f-strings that begin as one."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Constant) and node.value in NAMES:
            yield node.value
        elif isinstance(node, ast.JoinedStr) and isinstance(first := node.values[0], ast.Constant):
            if first.value in BEGINNINGS:
                yield first.value


def test_the_check_finds_names() -> None:
    assert set(BEFORE) <= NAMES
    assert list(names_in("folder / 'steps.csv', f'metrics_{split}.json', 'steps.csv has no rows'")) == [
        "metrics_", "steps.csv",
    ]  # fmt: skip


@pytest.mark.parametrize("path", OTHERS, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_other_module_names_a_file_of_the_run_folder(path: Path) -> None:
    assert not list(names_in(path.read_text()))


def test_results_of_test_have_folders_of_their_own() -> None:
    assert filenames.tested("last-00000120") == "test_last-00000120"
    assert filenames.tested("best", "0123abcd") == "test_best_0123abcd"
