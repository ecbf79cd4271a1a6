"""A run folder is read as it was written, or not at all."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pages import edit
from run_folders import write_run

from distcxr.runfolder.contents import read_environment, read_recipe, read_run
from distcxr.runfolder.possible import check_possible


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; not to be changed."""
    return write_run(tmp_path_factory.mktemp("runs") / "run", images=100, patients=30, replicates=10, pictures=1)


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_a_finished_run_lacks_nothing(finished: Path) -> None:
    files = read_run(finished)
    assert files.missing == () and list(files.metrics) == ["test", "val"]
    assert files.recipe == read_recipe(finished / "recipe.yaml") and files.recipe["model"]["name"] == "densenet121"
    assert files.environment == read_environment(finished / "environment.json")
    assert files.metrics["test"]["num_samples"] == 100 and len(files.pictures) == 2
    assert files.steps["step"] == list(range(1, 61)) and len(files.history["val_auroc"]) == 10


def test_files_that_are_not_there_are_listed(folder: Path) -> None:
    for name in ("steps.csv", "environment.json", "predictions_val.csv", "metrics_test.json", "localisation_test.json"):
        (folder / name).unlink()
    files = read_run(folder)
    assert files.missing == ("environment.json", "metrics_test.json", "predictions_val.csv", "steps.csv")
    assert files.environment == {} and files.steps == {} and list(files.metrics) == ["val"]


IMPOSSIBLE: dict[str, Callable[[Any], object]] = {
    "macro.auroc is 7.3, not null or between 0 and 1": lambda held: held["macro"].update(auroc=7.3),
    "findings.Mass.auprc_low is '0.2', not": lambda held: held["findings"]["Mass"].update(auprc_low="0.2"),
    "findings.Infiltration.auroc_low is 0.99, more than auroc_high": (
        lambda held: held["findings"]["Infiltration"].update(auroc_low=0.99)
    ),
    "findings.Mass.operating_points.youden.recall is -0.1": (
        lambda held: held["findings"]["Mass"]["operating_points"]["youden"].update(recall=-0.1)
    ),
    "findings.Mass.operating_points.youden.tp is 1.5, not null or a count": (
        lambda held: held["findings"]["Mass"]["operating_points"]["youden"].update(tp=1.5)
    ),
    "findings.Mass.reliability.frequency.0 is 2": (
        lambda held: held["findings"]["Mass"]["reliability"]["frequency"].__setitem__(0, 2)
    ),
    "num_patients is -3": lambda held: held.update(num_patients=-3),
    "num_positive is 101, more than num, 100": lambda held: held["findings"]["Mass"].update(num_positive=101),
    "subgroups.0.macro.auroc is True": lambda held: held["subgroups"][0]["macro"].update(auroc=True),
}  # fmt: skip


@pytest.mark.parametrize("message", IMPOSSIBLE)
def test_an_impossible_figure_is_an_error_that_names_file_and_key(folder: Path, message: str) -> None:
    edit(folder / "metrics_test.json", IMPOSSIBLE[message])
    with pytest.raises(ValueError, match=rf"metrics_test\.json is damaged: .*{re.escape(message)}"):
        read_run(folder)


def test_keys_of_digits_are_no_figures(tmp_path: Path) -> None:
    check_possible(tmp_path, {"1": {"2": -3}, "4": [5.5]})


def test_what_is_no_run_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"neither recipe\.yaml nor metrics"):
        read_run(tmp_path)
    with pytest.raises(ValueError, match="not a folder"):
        read_run(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"environment\.json can't be read: No such file"):
        read_environment(tmp_path / "environment.json")
