"""Several runs side by side: figures of the run folders, paired differences, and what may not be compared."""

from __future__ import annotations

import csv
import json
import re
import shutil
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import run_folders
from pages import Parsed

from distcxr.metrics.calibration import probabilities
from distcxr.report.compare import Entry, compare, write_comparison
from distcxr.report.seeds import seed_groups
from distcxr.runfolder.predictions import read_predictions, write_predictions


def change(path: Path, edit: Any) -> None:
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def lower_macro(by: float) -> Any:
    def edit(content: dict[str, Any]) -> None:
        for key in ("auroc", "auroc_low", "auroc_high"):
            content["macro"][key] -= by

    return edit


def add_noise(folder: Path) -> None:
    """Worse predictions of the test split."""
    path = folder / "predictions_test.csv"
    held = read_predictions(path)
    noise = np.random.default_rng(0).normal(scale=3, size=held.logits_NC.shape).astype(np.float32)
    held = replace(held, logits_NC=held.logits_NC + noise)
    write_predictions(path, held, probabilities(held.logits_NC))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder to copy."""
    return run_folders.write_run(
        tmp_path_factory.mktemp("runs") / "run", images=150, patients=40, replicates=20, pictures=0
    )


@pytest.fixture
def entries(tmp_path: Path, finished: Path) -> list[Entry]:
    """Two runs, the second the worse; and one that failed."""
    found = []
    for number, name in enumerate(("good", "bad", "failed")):
        if name != "failed":
            folder = Path(shutil.copytree(finished, tmp_path / name))
        if name == "bad":
            add_noise(folder)
            change(folder / "metrics_val.json", lower_macro(0.05))
        reason = "the loss is nan" if name == "failed" else None
        found.append(Entry(name, "resnet18", {"seed": str(number)}, tmp_path / name, 1000 + number, reason))
    return found


def test_seeds_are_taken_into_one_line(entries: list[Entry], tmp_path: Path) -> None:
    table = write_comparison(tmp_path, entries)
    values = json.loads((tmp_path / "sweep.json").read_text())
    aurocs = [run["metrics"]["test"]["macro"]["auroc"] for run in values["runs"][:2]]
    (group,) = values["seeds"]
    assert (group["name"], group["split"], group["num"], group["missing"]) == (
        "resnet18",
        "test",
        2,
        {"2": "the loss is nan"},
    )
    assert group["mean"] == pytest.approx(sum(aurocs) / 2) and group["lowest"] == min(aurocs)
    assert group["sd"] == pytest.approx(abs(aurocs[0] - aurocs[1]) / 2**0.5)
    assert f"{group['mean']:.4f} on average of 2 seeds" in table and "missing: seed 2 (the loss is nan)" in table
    assert "## Seeds" in (tmp_path / "sweep.md").read_text()
    rows = Parsed((tmp_path / "sweep.html").read_text()).rows
    shown = rows[next(number for number, row in enumerate(rows) if "missing seeds" in row) + 1]
    figures = [f"{group[key]:.4f}" for key in ("mean", "sd", "lowest", "highest")]
    assert shown == ["resnet18", "2", "test", *figures, "2 (the loss is nan)"]
    listed = csv.DictReader((tmp_path / "sweep.csv").read_text().splitlines())
    for row, name in zip(listed, ("good", "bad", "failed"), strict=True):
        assert row["run"] == name and float(row["seeds_mean"]) == group["mean"] and row["seeds_num"] == "2"
        assert float(row["seeds_sd"]) == group["sd"] and row["seeds_split"] == "test"


@pytest.mark.parametrize(
    ("figures", "split", "mean", "missing"),
    [
        ([{"test": 0.6}, {"test": 0.62}, {"val": 0.9, "apart": 1}], "test", 0.61, {"2": "other labels"}),
        ([{"test": None, "val": 0.7}, {"test": None, "val": 0.72}], "val", 0.71, {}),
        ([{"test": 0.6, "val": 0.7}, {}], "test", 0.6, {"1": "it has no macro AUROC of test"}),
        ([{}, {}], "val", None, dict.fromkeys("01", "it has no macro AUROC of val")),
    ],
)
def test_the_split_of_seeds(
    figures: list[dict[str, Any]], split: str, mean: float | None, missing: dict[str, str]
) -> None:
    runs = [
        {"name": str(number), "recipe": "a", "values": {"seed": str(number)}, "reason": None,
         "not_comparable": "other labels" if "apart" in each else None,
         "metrics": {name: {"macro": {"auroc": area}} for name, area in each.items() if name != "apart"}}
        for number, each in enumerate(figures)
    ]  # fmt: skip
    (group,) = seed_groups(runs)
    assert (group["split"], group["missing"]) == (split, missing)
    assert group["mean"] == (None if mean is None else pytest.approx(mean))


def test_runs_that_differ_in_more_than_their_seed_are_no_group(entries: list[Entry], tmp_path: Path) -> None:
    rates = [replace(entry, values={**entry.values, "optim.lr": entry.name}) for entry in entries]
    assert compare(tmp_path, rates)["seeds"] == []
    recipes = [replace(entry, recipe=entry.name) for entry in entries]
    assert compare(tmp_path, recipes)["seeds"] == []
    without = [replace(entry, values={}) for entry in entries]
    assert compare(tmp_path, without)["seeds"] == []
    seeded = [replace(one, recipe=f"r{row}", values={}, seed=row, same_but_seed="x") for row, one in enumerate(entries)]
    (group,) = compare(tmp_path, seeded)["seeds"]  # of recipe files with a seed each
    assert (group["name"], group["num"], list(group["missing"])) == ("r0, r1, r2", 2, ["2"])
    alike = [replace(one, seed=0) for one in seeded]
    assert compare(tmp_path, alike)["seeds"] == []
    pairs = [replace(entry, values={**entry.values, "optim.lr": "1e-4"}) for entry in entries[:2]]
    assert [group["name"] for group in compare(tmp_path, pairs)["seeds"]] == ["resnet18 optim.lr=1e-4"]


def exclusive(folder: Path, wrong: int) -> None:
    """Every image of the test split shows one finding, which the model takes for another in the first few images."""
    path = folder / "predictions_test.csv"
    held = read_predictions(path)
    classes = np.arange(len(held.files)) % len(held.findings)
    targets = np.eye(len(held.findings), dtype=np.uint8)[classes]
    logits = np.where(targets, 2, -2).astype(np.float32)
    logits[:wrong] = -logits[:wrong]
    held = replace(held, logits_NC=logits, targets_NC=targets, mask_NC=np.ones_like(targets))
    write_predictions(path, held, probabilities(logits))
    for split in ("val", "test"):
        change(folder / f"metrics_{split}.json", lambda content: content.update(accuracy=1 - wrong / len(held.files)))


def test_accuracy_is_compared_where_classes_exclude_each_other(entries: list[Entry], tmp_path: Path) -> None:
    for entry, wrong in zip(entries, (15, 45), strict=False):
        exclusive(entry.folder, wrong)
    table = write_comparison(tmp_path, entries)
    _, bad, _ = json.loads((tmp_path / "sweep.json").read_text())["runs"]
    found = bad["difference"]["accuracy"]
    assert (found["accuracy_other"], found["accuracy"]) == (0.9, 0.7) and found["difference"] == pytest.approx(-0.2)
    assert found["difference_low"] < -0.2 < found["difference_high"] < 0 and found["p"] == found["p_holm"] == 2 / 21
    assert "accuracy of the likeliest class" in table and "-0.2000 (" in table
    page = (tmp_path / "sweep.html").read_text()
    assert ">Accuracy<" in page and "accuracy, test" in page
    row = list(csv.DictReader((tmp_path / "sweep.csv").read_text().splitlines()))[1]
    assert row["test_accuracy"] == "0.7" and float(row["accuracy_difference"]) == pytest.approx(-0.2)


def test_figures_are_those_of_the_runs(entries: list[Entry], tmp_path: Path) -> None:
    found = compare(tmp_path, entries)
    good, bad, failed = found["runs"]
    theirs = json.loads((tmp_path / "good" / "metrics_test.json").read_text())
    for key in ("auroc", "auroc_low", "auroc_high"):
        assert good["metrics"]["test"]["macro"][key] == theirs["macro"][key]
        assert good["metrics"]["test"]["findings"]["Mass"][key] == theirs["findings"]["Mass"][key]
    assert good["train_minutes"] == pytest.approx(410 / 60) and good["num_parameters"] == 1000
    assert found["best"] == "good" and good["difference"] is None and found["warnings"] == []
    difference = bad["difference"]
    assert difference["auroc_low"] < difference["auroc"] < difference["auroc_high"] < 0
    assert 2 / 21 < difference["p"] == difference["p_floor"] == difference["p_holm"] < 0.13
    assert difference["auprc"]["difference"] < 0
    tested = {name: one for name, one in difference["findings"].items() if one["p_delong"] is not None}
    assert tested and all(one["p_delong_holm"] >= one["p_delong"] for one in tested.values())
    assert difference["findings"]["Effusion"]["operating_points"]["youden"]["recall"]["difference"] is not None
    assert "accuracy" not in difference
    assert failed["metrics"] == {} and failed["reason"] == "the loss is nan"


def test_the_best_is_chosen_on_validation(entries: list[Entry], tmp_path: Path) -> None:
    change(tmp_path / "good" / "metrics_test.json", lower_macro(0.3))
    assert compare(tmp_path, entries)["best"] == "good"


@pytest.mark.parametrize(
    ("name", "edit", "reason"),
    [
        ("environment", lambda found: found["hashes"].update(labels="x"), "other labels"),
        ("environment", lambda found: found["hashes"].update(test="x"), "other test images"),
        ("metrics_val", lambda found: found.update(num_samples=3), "other val images"),
        ("metrics_test", lambda found: found["macro"]["findings"].pop(), "the average is of other findings"),
    ],
)
def test_what_cant_be_compared_is_marked(
    entries: list[Entry], tmp_path: Path, name: str, edit: Any, reason: str
) -> None:
    change(tmp_path / "bad" / f"{name}.json", edit)
    text = write_comparison(tmp_path, entries)
    run = json.loads((tmp_path / "sweep.json").read_text())["runs"][1]
    assert run["not_comparable"] == reason and run["difference"] is None
    for shown in (
        text,
        (tmp_path / "sweep.md").read_text(),
        (tmp_path / "sweep.html").read_text().replace("&#39;", "'"),
    ):
        assert f"bad can't be compared with good: {reason}" in shown
    assert reason in (tmp_path / "sweep.svg").read_text()


def test_the_odd_one_out_is_the_one_that_most_differ_from(entries: list[Entry], tmp_path: Path, finished: Path) -> None:
    third = Path(shutil.copytree(finished, tmp_path / "third"))
    change(tmp_path / "good" / "environment.json", lambda found: found["hashes"].update(labels="x"))
    found = compare(tmp_path, [*entries, Entry("third", "resnet18", {}, third, 1)])
    assert [run["not_comparable"] for run in found["runs"]] == ["other labels", None, None, None]
    assert found["best"] == "third" and found["runs"][1]["difference"] is not None


def test_stages(entries: list[Entry], tmp_path: Path) -> None:
    """A table of models times stages, from history.csv; best within the stage."""
    folder = tmp_path / "good"
    recipe = (folder / "recipe.yaml").read_text()
    stages = "  stages:\n  - {name: all, epochs: 2}\n  - {epochs: 1}\n"
    (folder / "recipe.yaml").write_text(re.sub(r"^  stages: \[\]\n", stages, recipe, flags=re.M))
    (folder / "history.csv").write_text("epoch,stage,val_auroc,train_s\n0,1,0.7,60\n1,1,0.6,60\n2,2,,60\n")
    assert compare(tmp_path, entries)["runs"][0]["stages"] == [
        {"stage": 1, "name": "all", "val_auroc": 0.7},
        {"stage": 2, "name": "2", "val_auroc": None},
    ]
    text = write_comparison(tmp_path, entries)
    assert re.search(r"good +0.7000 +-", text)
    assert "best validation AUROC within each stage" in (tmp_path / "sweep.svg").read_text()


def test_all_files_tell_the_same(entries: list[Entry], tmp_path: Path) -> None:
    write_comparison(tmp_path, entries)
    good = json.loads((tmp_path / "sweep.json").read_text())["runs"][0]
    rows = list(csv.DictReader((tmp_path / "sweep.csv").read_text().splitlines()))
    assert [row["run"] for row in rows] == ["good", "bad", "failed"] and rows[2]["reason"] == "the loss is nan"
    assert float(rows[0]["test_auroc"]) == good["metrics"]["test"]["macro"]["auroc"]
    assert float(rows[0]["test_auroc:Mass"]) == good["metrics"]["test"]["findings"]["Mass"]["auroc"]
    assert rows[0]["seed"] == "0" and rows[0]["folder"] == "good"
    auroc = f"{good['metrics']['test']['macro']['auroc']:.3f}"
    page, markdown = (tmp_path / "sweep.html").read_text(), (tmp_path / "sweep.md").read_text()
    floor = f"≤ {json.loads((tmp_path / 'sweep.json').read_text())['runs'][1]['difference']['p_floor']:.4f}"
    assert floor in page and floor in markdown and "Less the best on validation" in page
    assert auroc in page and auroc in markdown and "the loss is nan" in page and "the loss is nan" in markdown
    assert "sweep.json beside this page" in page
    ET.fromstring((tmp_path / "sweep.svg").read_text())  # a picture that others can open, too


def test_one_run_and_none(entries: list[Entry], tmp_path: Path) -> None:
    """No best of one, no picture of none, and no traceback."""
    assert "0." in write_comparison(tmp_path, entries[:1])
    assert "no figures" in write_comparison(tmp_path, entries[2:])
    ET.fromstring((tmp_path / "sweep.svg").read_text())


def test_a_damaged_run_is_named(entries: list[Entry], tmp_path: Path) -> None:
    (tmp_path / "bad" / "metrics_test.json").write_text("{")
    found = compare(tmp_path, entries)
    assert "metrics_test.json is damaged" in found["runs"][1]["reason"] and found["best"] == "good"
