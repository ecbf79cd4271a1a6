"""Opening a recipe's dataset: index and splits, and the patients that another recipe has seen."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from laid_out import NIH_IMAGES, write_nih

from distcxr.data.dataset import Dataset, open_dataset
from distcxr.data.labels import NIH14, NIH15
from distcxr.data.splits import NAMES
from distcxr.recipe import Recipe


@pytest.fixture(scope="module")
def nih(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_nih(tmp_path_factory.mktemp("nih"))


def recipe(root: Path, findings: Any = ("Mass", "Edema"), **keys: Any) -> Recipe:
    return Recipe.model_validate({"data": {"root": root, "val_fraction": 0.25, "findings": findings, **keys}})


def opened(root: Path, findings: Any = ("Mass", "Edema"), **keys: Any) -> Dataset:
    return open_dataset(recipe(root, findings, **keys))


def test_sets_lists_and_every_label_of_the_file(nih: Path, tmp_path: Path) -> None:
    assert opened(nih, "nih14").index.findings == NIH14
    assert opened(nih, "nih15").index.findings == NIH15
    two = opened(nih, ["Hernia", "Mass"])
    assert two.index.findings == ("Hernia", "Mass")
    assert two.index.targets_NC[:4].tolist() == [[0, 1], [0, 0], [1, 0], [0, 0]]
    assert opened(nih, "all").index.findings == ("Edema", "Hernia", "Mass", "No Finding")
    odd = write_nih(tmp_path, extra={7: "Other|Mass", 9: "Other"})
    every = opened(odd, "all").index
    assert every.findings == ("Edema", "Hernia", "Mass", "No Finding", "Other")
    assert every.targets_NC[[7, 9, 0]].tolist() == [[0, 0, 1, 0, 1], [0, 0, 0, 0, 1], [0, 0, 1, 0, 0]]
    with pytest.raises(ValueError, match=r"line 9: label 'Other\|Mass': unknown finding 'Other'.*findings=all"):
        opened(odd, "nih14")
    with pytest.raises(ValueError, match=r"data\.findings is chexpert14, but the label file lacks Enlarged"):
        opened(nih, "chexpert14")


def test_a_label_that_is_empty_is_no_finding_even_where_all_are_taken(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"line 9: label 'Mass\|': unknown finding ''.*No Finding$"):
        opened(write_nih(tmp_path, extra={7: "Mass|"}), "all")


def test_filters_and_limits_keep_the_rows_of_the_index(nih: Path) -> None:
    whole = opened(nih)
    part = opened(nih, where={"without": ["No Finding"], "view": ["PA"]}, max_train_samples=60)
    assert len(part.index) == len(whole.index) == NIH_IMAGES  # so caches and sample ids stay
    assert len(part.splits.train) == 60 and np.isin(part.splits.train, whole.splits.train).all()
    assert (part.index.view[part.splits.val] == "PA").all()
    assert part.hashes["train"] != whole.hashes["train"] and part.hashes["test"] != whole.hashes["test"]
    lines = "\n".join(part.describe())
    assert "data.where: 37 of 100 test images (without ['No Finding'], view ['PA'])" in lines
    assert (
        "data.max_train_samples: 60 of " in lines
        and f"train: 60 images of {part.counts['train']['num_patients']}" in lines
    )
    assert part.counts["test"]["num_images"] == 37
    assert not any("data." in line for line in whole.describe())


def test_what_another_recipe_showed_the_network(nih: Path) -> None:
    """Its splits, its filters and its limits count, whatever this recipe's are."""
    ours = opened(nih, ["Mass"], split="by_patient", split_seed=5)
    whole = opened(nih, "nih15")
    patient = whole.index.patient_id
    for name in NAMES:
        rows = whole.splits.rows(name)
        assert ours.patients_of(whole.data, [name]).tolist() == np.unique(patient[rows]).tolist()
    both = ours.patients_of(whole.data, ["train", "val"]).tolist()
    assert both == np.unique(patient[np.concatenate([whole.splits.train, whole.splits.val])]).tolist()

    part = opened(nih, where={"findings": ["Hernia"], "sex": "F", "age": (30, 70)}, findings=["Hernia"])
    expected = np.unique(patient[part.splits.train]).tolist()
    assert ours.patients_of(part.data, ["train"]).tolist() == expected and 0 < len(expected) < 40
    few = opened(nih, max_train_samples=10)
    assert ours.patients_of(few.data, ["train"]).tolist() == np.unique(patient[few.splits.train]).tolist()
    capped = opened(nih, sampling={"cap_per_label": 5})
    assert ours.patients_of(capped.data, ["train"]).tolist() == ours.patients_of(whole.data, ["train"]).tolist()


def write_table(root: Path) -> Path:
    root.mkdir(exist_ok=True)
    lines = ["image,person,doctor,part,Mass,Edema"]
    for row in range(NIH_IMAGES):
        (root / f"{row}.png").touch()
        part = "train" if row < 300 else "test"
        lines.append(f"{row}.png,p{row // 2},d{row % 100},{part},{-1 if row % 7 == 0 else row % 2},{row % 3 % 2}")
    (root / "labels.csv").write_text("\n".join(lines))
    return root


def test_a_recipe_that_reads_the_same_table_otherwise(tmp_path: Path) -> None:
    """Uncertain labels as positives, patients from another column: what it showed follows from its own reading."""
    root = write_table(tmp_path)
    columns = {"patient": "person", "split": "part"}
    common: dict[str, Any] = {"dataset": "csv", "columns": columns}
    ours = opened(root, **common)
    theirs = opened(root, **common, uncertain="one", where={"findings": ["Mass"]})
    strict = opened(root, **common, uncertain="mask", where={"findings": ["Mass"]})
    seen = ours.patients_of(theirs.data, ["train"])
    assert seen.tolist() == np.unique(ours.index.patient_id[theirs.splits.train]).tolist()
    assert len(seen) > len(ours.patients_of(strict.data, ["train"]))
    random = {"dataset": "csv", "columns": {"patient": "doctor"}, "split": "by_patient"}
    other = opened(root, **random)
    seen = ours.patients_of(other.data, ["test"])
    assert seen.tolist() == np.unique(ours.index.patient_id[other.splits.test]).tolist()


@pytest.mark.parametrize("key", ["where", "max_train_samples", "max_val_samples", "max_test_samples", "sampling"])
def test_a_run_does_not_go_on_with_other_images(nih: Path, key: str) -> None:
    values: dict[str, Any] = {"where": {"sex": "F"}, "sampling": {"cap_per_label": 20}}
    assert recipe(nih).identity() != recipe(nih, **{key: values.get(key, 30)}).identity()


def test_images_without_patients_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = write_table(tmp_path)
    with caplog.at_level(logging.WARNING):
        opened(root, dataset="csv", columns={"patient": "person"}, split="by_patient")
        assert "patient of its own" not in caplog.text
        found = opened(root, dataset="csv", split="by_patient")
    assert caplog.text.count("each of the 400 images counts as a patient of its own") == 1
    assert len(found.splits.train) > 200
    lines = found.describe()
    assert lines[0].startswith("labels: of csv (") and not any("NIH" in line for line in lines)


def test_a_table_without_a_split_column_is_sent_to_by_patient(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.split=official: .*Take data\.split=by_patient.*data\.columns\.split"):
        opened(write_table(tmp_path), dataset="csv")


def test_a_dataset_needs_a_root_and_only_nih_has_one_in_the_environment(
    nih: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISTCXR_NIH_ROOT", str(nih))
    assert len(open_dataset(Recipe.model_validate({"data": {"findings": ["Mass"]}})).index) == NIH_IMAGES
    with pytest.raises(ValueError, match=r"no data\.root: add data\.root=PATH .* the csv data is"):
        open_dataset(Recipe.model_validate({"data": {"dataset": "csv", "findings": "all"}}))
    monkeypatch.delenv("DISTCXR_NIH_ROOT")
    with pytest.raises(ValueError, match=r"no data\.root and DISTCXR_NIH_ROOT is not set"):
        open_dataset(Recipe.model_validate({"data": {"findings": ["Mass"]}}))


def test_macro_findings_have_to_be_learnt(nih: Path) -> None:
    values = {"data": {"root": nih, "findings": ["Mass"]}, "eval": {"macro_findings": ["Mass", "Edema"]}}
    with pytest.raises(ValueError, match=r"eval\.macro_findings names Edema; data\.findings are Mass"):
        open_dataset(Recipe.model_validate(values))
