"""CheXpert's tables and folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from laid_out import CHEXPERT_HEADER, CHEXPERT_TRAIN, CHEXPERT_VALID, chexpert

from distcxr.data.index import MissingDataError, SampleIndex
from distcxr.data.labels import CHEXPERT14
from distcxr.data.read import read_index
from distcxr.recipe.data import Data

OPACITY = CHEXPERT14.index("Lung Opacity")


def read(root: Path, dataset: str = "chexpert", **data: Any) -> SampleIndex:
    return read_index(Data.model_validate({"dataset": dataset, "findings": "chexpert14", **data}), root)


@pytest.mark.parametrize("folder", ["", "CheXpert-v1.0-small"])
def test_chexpert(tmp_path: Path, folder: str) -> None:
    """`root` may be the folder or the one above it."""
    root = chexpert(tmp_path / folder, train=CHEXPERT_TRAIN, valid=CHEXPERT_VALID)
    index = read(tmp_path)
    assert index.root == root and index.findings == CHEXPERT14
    assert index.file_name(1) == "train/patient00001/study1/view2_lateral.jpg"
    assert all(Path(file).is_file() for file in index.files(range(4)))
    assert index.patient_id.tolist() == [1, 1, 2, 64541]
    assert index.split.tolist() == ["train", "train", "train", "test"]
    assert index.view.tolist() == ["AP", "LATERAL", "PA", "AP"] and index.sex.tolist() == ["F", "F", "", "M"]
    assert index.age.tolist() == [68, 68, 0, 73]
    assert index.targets_NC.sum(axis=1).tolist() == [1, 1, 2, 1] and index.targets_NC[0, 0] == 1
    assert np.argwhere(index.mask_NC == 0).tolist() == [[1, OPACITY]]  # what is blank is absent, not unknown


@pytest.mark.parametrize(("uncertain", "target", "known"), [("mask", 0, 0), ("zero", 0, 1), ("one", 1, 1)])
def test_uncertain_labels(tmp_path: Path, uncertain: str, target: int, known: int) -> None:
    index = read(chexpert(tmp_path, train=CHEXPERT_TRAIN, valid=CHEXPERT_VALID), uncertain=uncertain)
    assert (index.targets_NC[1, OPACITY], index.mask_NC[1, OPACITY]) == (target, known)


def test_with_a_test_table_the_valid_one_validates(tmp_path: Path) -> None:
    """A frontal image stays one whatever AP/PA has: 17 of CheXpert's have LL or RL there."""
    test = CHEXPERT_VALID.replace("valid/patient64541", "test/patient64741").replace("Frontal,AP", "Frontal,LL")
    index = read(chexpert(tmp_path, train=CHEXPERT_TRAIN, valid=CHEXPERT_VALID, test=test))
    assert index.split.tolist() == ["train"] * 3 + ["val", "test"]
    assert index.view.tolist() == ["AP", "LATERAL", "PA", "AP", ""]


def test_chexpert_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match=r"has no train.csv.\nGet CheXpert"):
        read(tmp_path)
    with pytest.raises(MissingDataError, match=r"has no valid.csv"):
        read(chexpert(tmp_path / "a", train=CHEXPERT_TRAIN))
    root = chexpert(tmp_path / "b", train=CHEXPERT_TRAIN, valid=CHEXPERT_VALID)
    wrong = {
        "line 2, column No Finding: label '2' is not 0, 1, -1": CHEXPERT_TRAIN.replace("AP,1.0,", "AP,2,"),
        "line 2, column Path: no patient in 'CheXpert-v1.0-small/train/p1/": CHEXPERT_TRAIN.replace(
            "patient00001", "p1"
        ),
        r"line 2, column Path: image '\.\./": CHEXPERT_TRAIN.replace("CheXpert-v1.0-small/", "../"),
        "list 1 images more than once": CHEXPERT_TRAIN + CHEXPERT_TRAIN.splitlines()[0] + "\n",
    }
    for message, rows in wrong.items():
        (root / "train.csv").write_text(CHEXPERT_HEADER + rows)
        with pytest.raises(ValueError, match=message):
            read(root)
    (root / "train.csv").write_text(CHEXPERT_HEADER.replace("Edema", "Oedema") + CHEXPERT_TRAIN)
    with pytest.raises(ValueError, match=r"no column 'Edema', did you mean 'Oedema'\?"):
        read(root)
    (root / "train.csv").write_text(CHEXPERT_HEADER + CHEXPERT_TRAIN)
    (root / "valid/patient64541/study1/view1_frontal.jpg").unlink()
    with pytest.raises(MissingDataError, match=r"1 of 4 images in .*train.csv have no file in .*: valid/patient64541"):
        read(root)
    assert len(read(root, missing="skip")) == 3


def test_two_sizes_of_chexpert_are_not_guessed_between(tmp_path: Path) -> None:
    for name in ("CheXpert-v1.0", "CheXpert-v1.0-small"):
        chexpert(tmp_path / name, train=CHEXPERT_TRAIN, valid=CHEXPERT_VALID)
    with pytest.raises(ValueError, match=r"holds CheXpert-v1.0, CheXpert-v1.0-small: set data\.root"):
        read(tmp_path)
