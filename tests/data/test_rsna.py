"""The RSNA Pneumonia challenge: its tables, and whose images they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distcxr.data.index import MissingDataError, SampleIndex
from distcxr.data.pixels.decode import decode_grey
from distcxr.data.sources.read import read_index
from distcxr.data.sources.rsna import MAPPING
from distcxr.data.splits import whole_splits
from distcxr.recipe.data import Data
from tests.dicoms import dicom

NORMAL, OPAQUE, OTHER = (f"0{number}0322c-f94d-4cda-8c3f-a8c7a6b6d7d8" for number in range(3))
LABELS = (
    "patientId,x,y,width,height,Target\n"
    f"{NORMAL},,,,,0\n{OPAQUE},264.0,152.0,213.0,379.0,1\n{OPAQUE},562.0,152.0,256.0,453.0,1\n{OTHER},,,,,0\n"
)
CLASSES = (
    f"patientId,class\n{NORMAL},Normal\n{OPAQUE},Lung Opacity\n{OPAQUE},Lung Opacity\n"
    f"{OTHER},No Lung Opacity / Not Normal\n"
)
NIH = {NORMAL: "00000013_005.png", OPAQUE: "00000013_026.png", OTHER: "00028173_002.png"}


def rsna(root: Path, *, mapped: bool = False, lists: bool = False, images: dict[str, str] | None = None) -> Path:
    """A folder of the challenge; its images are DICOMs of four pixels."""
    (root / "stage_2_train_images").mkdir(parents=True, exist_ok=True)
    (root / "stage_2_train_labels.csv").write_text(LABELS)
    (root / "stage_2_detailed_class_info.csv").write_text(CLASSES)
    content = dicom(np.array([[0, 255], [128, 7]], dtype=np.uint8))
    for image in NIH:
        (root / f"stage_2_train_images/{image}.dcm").write_bytes(content)
    entries = [
        {"img_id": name, "subset_img_id": image, "SOPInstanceUID": "1.2"} for image, name in (images or NIH).items()
    ]
    if mapped:
        (root / MAPPING).write_text(json.dumps(entries))
    if lists:
        (root / "train_val_list.txt").write_text("00000013_005.png\n00000013_026.png\n00000001_000.png\n")
        (root / "test_list.txt").write_text("00028173_002.png\n00000003_000.png\n")
    return root


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
        (labels, LABELS.replace("453.0,1", "453.0,0"), f"line 4, column Target: {OPAQUE} has another"),
        (labels, LABELS.replace(f"{OTHER},,", "../x,,"), "line 5, column patientId: '../x' can't be"),
        (labels, LABELS.replace(",,,,0", ",,,,2"), r"column Target, line 2: '2' is not one of '0', '1'"),
        (labels, LABELS.replace("Target", "target"), "no column 'Target', did you mean 'target'"),
        (classes, CLASSES.replace(NORMAL, "x"), f"lacks 1 images of .*: {NORMAL}"),
        (MAPPING, "{}", "is not RSNA's list of"),
        (MAPPING, "[]", "names no image of NIH's for 3 images: 00"),
        (MAPPING, "[1]", "is not RSNA's list of"),
        (MAPPING, "[{", "is not RSNA's list of"),
    ):  # fmt: skip
        rsna(root)
        (root / name).write_text(text)
        with pytest.raises(ValueError, match=message):
            read(root)
