"""The RSNA Pneumonia challenge: its tables, and whose images they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from laid_out import NORMAL, OPAQUE, OTHER, RSNA_CLASSES, RSNA_LABELS, rsna

from distcxr.data.index import MissingDataError, SampleIndex
from distcxr.data.pixels.decode import decode_grey
from distcxr.data.read import read_index
from distcxr.data.sources.rsna import MAPPING
from distcxr.data.splits import whole_splits
from distcxr.recipe.data import Data


def read(root: Path, **data: Any) -> SampleIndex:
    return read_index(Data.model_validate({"dataset": "rsna", "findings": "all", **data}), root)


def test_rsna(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A row an image, however many boxes it has; each counts as a patient where the mapping is not there."""
    index = read(rsna(tmp_path))
    assert index.findings == ("Lung Opacity", "Pneumonia", "No Finding") and index.mask_NC.all()
    assert index.targets_NC.tolist() == [[0, 0, 1], [1, 1, 0], [0, 0, 0]]
    assert decode_grey(Path(index.files([1])[0]).read_bytes()).tolist() == [[0, 255], [128, 7]]
    assert len(set(index.patient_id.tolist())) == 3 and f"is not known; {MAPPING}" in caplog.text
    with pytest.raises(ValueError, match=r"Take\s+data.split=by_patient"):
        whole_splits(Data(dataset="rsna"), index)
    (tmp_path / "stage_2_detailed_class_info.csv").unlink()
    assert read(tmp_path).findings == ("Lung Opacity", "Pneumonia")


def test_rsna_patients_and_split_are_nih_s(tmp_path: Path) -> None:
    index = read(rsna(tmp_path, mapped=True))
    assert index.patient_id.tolist() == [13, 13, 28173] and set(index.split.tolist()) == {""}
    assert read(rsna(tmp_path, mapped=True, lists=True)).split.tolist() == ["train", "train", "test"]


def test_rsna_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match=r"has no stage_2_train_labels.csv.\nGet it from https://www.kaggle.com"):
        read(tmp_path)
    root = rsna(tmp_path / "a")
    labels, classes = "stage_2_train_labels.csv", "stage_2_detailed_class_info.csv"
    for name, text, message in (
        (labels, RSNA_LABELS.replace("453.0,1", "453.0,0"), f"line 4, column Target: {OPAQUE} has another"),
        (labels, RSNA_LABELS.replace(f"{OTHER},,", "../x,,"), "line 5, column patientId: '../x' can't be"),
        (labels, RSNA_LABELS.replace(",,,,0", ",,,,2"), r"column Target, line 2: '2' is not one of '0', '1'"),
        (labels, RSNA_LABELS.replace("Target", "target"), "no column 'Target', did you mean 'target'"),
        (classes, RSNA_CLASSES.replace(NORMAL, "x"), f"lacks 1 images of .*: {NORMAL}"),
        (MAPPING, "{}", "is not RSNA's list of"),
        (MAPPING, "[]", "names no image of NIH's for 3 images: 00"),
        (MAPPING, "[1]", "is not RSNA's list of"),
        (MAPPING, "[{", "is not RSNA's list of"),
    ):  # fmt: skip
        rsna(root)
        (root / name).write_text(text)
        with pytest.raises(ValueError, match=message):
            read(root)
