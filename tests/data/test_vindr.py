"""VinDr-CXR's tables: three radiologists an image to train with, one row to test."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from laid_out import IMAGE_A, VINDR_TRAIN, vindr

from distcxr.data.index import MissingDataError, SampleIndex
from distcxr.data.read import read_index
from distcxr.data.sources.image_paths import file_of_stems
from distcxr.data.splits import whole_splits
from distcxr.recipe.data import Data


def read(root: Path, **data: Any) -> SampleIndex:
    return read_index(Data.model_validate({"dataset": "vindr", "findings": "all", **data}), root)


def shown(index: SampleIndex) -> list[set[str]]:
    return [{index.findings[column] for column in np.flatnonzero(row)} for row in index.targets_NC]


@pytest.mark.parametrize(("radiologists", "first"), [("majority", {"Effusion"}), ("any", {"Effusion", "Atelectasis"})])
def test_vindr(tmp_path: Path, radiologists: str, first: set[str]) -> None:
    index = read(vindr(tmp_path), radiologists=radiologists)
    assert shown(index) == [first, {"No Finding"}, {"Other diseases"}, {"Edema"}]
    assert len(index.findings) == 28 and {"Pleural_Thickening", "Fibrosis", "Nodule/Mass"} < set(index.findings)
    assert index.mask_NC.all() and set(index.view.tolist()) == {"PA"}
    assert index.split.tolist() == ["train", "train", "test", "test"] and len(set(index.patient_id.tolist())) == 4
    assert all(Path(file).is_file() for file in index.files(range(4))) and index.file_name(0) == f"{IMAGE_A}.dicom"
    splits = whole_splits(Data(dataset="vindr"), index)
    assert [len(splits.train), len(splits.val), splits.test.tolist()] == [1, 1, [2, 3]]


def test_half_of_the_radiologists_are_no_majority(tmp_path: Path) -> None:
    assert shown(read(vindr(tmp_path, train=VINDR_TRAIN[1:])))[0] == set()  # two of three readers of an image


def test_vindr_converted_to_png(tmp_path: Path) -> None:
    """Patients, and so the split, stay."""
    there = read(vindr(tmp_path / "png", suffix=".png"))
    assert there.file_name(0) == f"{IMAGE_A}.png"
    names = ["a.png", "a.jpg", "b.jpg", "b.dicom"]
    for listed in (names, names[::-1]):  # a file system lists them in any order
        listing: Any = SimpleNamespace(names=lambda _, listed=listed: listed)
        assert file_of_stems(listing, "train", ["a", "b"], ".dicom") == {"a": "a.jpg", "b": "b.dicom"}
    assert there.patient_id.tolist() == read(vindr(tmp_path / "dicom")).patient_id.tolist()


def test_vindr_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match=r"has no annotations/image_labels_train.csv.\nGet VinDr-CXR from"):
        read(tmp_path)
    cases: dict[str, dict[str, Any]] = {
        rf"lists 1 images more than once: {IMAGE_A} read by R6": {"train": [VINDR_TRAIN[0], VINDR_TRAIN[0]]},
        "image_labels_test.csv lists images of image_labels_train.csv: 0004": {"test": [(IMAGE_A, set())]},
        "column image_id: '../a' can't be": {"test": [("../a", set())]},
    }
    for number, (message, tables) in enumerate(cases.items()):
        with pytest.raises(ValueError, match=message):
            read(vindr(tmp_path / str(number), **tables))
    table = vindr(tmp_path / "c") / "annotations/image_labels_test.csv"
    text = table.read_text()
    table.write_text(text.replace("Edema", "Oedemas"))
    with pytest.raises(ValueError, match="have different findings: Edema, Oedemas in one of them alone"):
        read(tmp_path / "c")
    table.write_text(text.replace(",1", ",2"))
    with pytest.raises(ValueError, match="line 3, column Edema: label '2' is not 0, 1 or empty"):
        read(tmp_path / "c")
