"""MIMIC-CXR-JPG's tables and folders."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest

from distcxr.data.index import MissingDataError, SampleIndex
from distcxr.data.labels import CHEXPERT14
from distcxr.data.read import read_index
from distcxr.recipe.data import Data

SPLIT = """\
dicom_id,study_id,subject_id,split
02aa804e-bde0afdd,50414267,10000032,train
174413ec-4ec4c1f7,50414267,10000032,train
2a2277a9-b0ded155,53189527,10000764,validate
e084de3b-be89b11e,53911762,10000898,test
"""
METADATA = """\
dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,Rows,Columns
e084de3b-be89b11e,10000898,53911762,"CHEST (PORTABLE AP)",AP,2544,3056
174413ec-4ec4c1f7,10000032,50414267,"CHEST (PA AND LAT)",LATERAL,3056,2544
02aa804e-bde0afdd,10000032,50414267,"CHEST (PA AND LAT)",PA,3056,2544
2a2277a9-b0ded155,10000764,53189527,"CHEST (PA AND LAT)",LL,3056,2544
"""
MIMIC14 = sorted(CHEXPERT14)
LABELS = "subject_id,study_id," + ",".join(MIMIC14) + "\n10000898,53911762" + ",0.0" * 3 + ",-1.0" + "," * 10 + "\n"
LABELS += "10000032,50414267" + "," * 8 + ",1.0" + "," * 5 + "\n"


EDEMA = CHEXPERT14.index("Edema")


def read(root: Path, **data: Any) -> SampleIndex:
    return read_index(Data.model_validate({"dataset": "mimic", "findings": "chexpert14", **data}), root)


def mimic(root: Path, split: str = SPLIT, metadata: str = METADATA, labels: str = LABELS) -> Path:
    """A folder of MIMIC-CXR-JPG with its images."""
    for name, text in {"split": split, "metadata": metadata, "chexpert": labels}.items():
        (root / f"mimic-cxr-2.0.0-{name}.csv.gz").write_bytes(gzip.compress(text.encode()))
    for line in SPLIT.splitlines()[1:]:
        image, study, subject, _ = line.split(",")
        folder = root / f"files/p10/p{subject}/s{study}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{image}.jpg").touch()
    return root


def test_mimic(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    index = read(mimic(tmp_path))
    assert index.findings == CHEXPERT14
    assert index.files([0]) == [str(tmp_path / "files/p10/p10000032/s50414267/02aa804e-bde0afdd.jpg")]
    assert index.file_name(3) == "e084de3b-be89b11e.jpg"
    assert index.patient_id.tolist() == [10000032, 10000032, 10000764, 10000898]
    assert index.split.tolist() == ["train", "train", "val", "test"]
    assert index.study is not None and index.study.tolist() == [50414267, 50414267, 53189527, 53911762]
    assert index.view.tolist() == ["PA", "LATERAL", "LATERAL", "AP"]
    assert index.targets_NC[:, 0].tolist() == [1, 1, 0, 0]  # No Finding, of the study that both images are of
    assert index.mask_NC.sum(axis=1).tolist() == [14, 14, 0, 13] and index.mask_NC[3, EDEMA] == 0
    assert "1 images are of studies without labels" in caplog.text
    assert read(tmp_path, uncertain="one").targets_NC[3, EDEMA] == 1


def test_mimic_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match=r"has no mimic-cxr-2.0.0-split.csv.gz.\nGet MIMIC-CXR-JPG"):
        read(tmp_path)
    wrong: list[tuple[str, dict[str, str]]] = [
        ("split.csv.gz, column split, line 4: 'dev' is not one", {"split": SPLIT.replace("validate", "dev")}),
        ("line 2, column dicom_id: '../x' can't be", {"split": SPLIT.replace("02aa804e-bde0afdd", "../x")}),
        ("line 5, column subject_id: '1e7' is not a subject number", {"split": SPLIT.replace("10000898", "1e7")}),
        ("lists 1 images more than once", {"split": SPLIT + SPLIT.splitlines()[1] + "\n"}),
        ("metadata.csv.gz lacks 1 images of .*e084de3b", {"metadata": METADATA.replace("e084de3b", "00000000")}),
        ("chexpert.csv.gz, line 3, column No Finding: label 'yes'", {"labels": LABELS.replace(",1.0", ",yes")}),
        ("line 4: a study that has labels in another line", {"labels": LABELS + LABELS.splitlines()[1] + "\n"}),
        ("has no label of any study", {"labels": LABELS.replace(",5", ",6")}),
    ]
    for message, tables in wrong:
        with pytest.raises(ValueError, match=message):
            read(mimic(tmp_path, **tables))
    mimic(tmp_path)
    (tmp_path / "mimic-cxr-2.0.0-split.csv.gz").write_bytes(gzip.compress(SPLIT.encode())[:-12])
    with pytest.raises(ValueError, match=r"split.csv.gz can't be read"):
        read(tmp_path)
    mimic(tmp_path)
    (tmp_path / "files/p10/p10000898/s53911762/e084de3b-be89b11e.jpg").unlink()
    with pytest.raises(MissingDataError, match=r"1 of 4 images in .*split.csv.gz have no file"):
        read(tmp_path)
    assert read(tmp_path, missing="skip").skipped.tolist() == [b"e084de3b-be89b11e.jpg"]
