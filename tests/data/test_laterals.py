"""The lateral view of each frontal image, and both of them in one batch, whatever reads them."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import laid_out
import numpy as np
import pytest
import tiny
import torch
import two_views

from distcxr.data.dataset import open_dataset
from distcxr.data.index import SampleIndex
from distcxr.data.laterals import is_frontal, pair_laterals
from distcxr.data.loader import Loader, Pixels, Request
from distcxr.data.order import BatchPlan, EvalOrder
from distcxr.data.quarantine import write_quarantine
from distcxr.data.read import read_index
from distcxr.recipe import Recipe
from distcxr.recipe.data import Data


def paired(root: Path, **data: Any) -> SampleIndex:
    section = Data.model_validate({"lateral": "second_input", **data})
    return pair_laterals(section, read_index(section, root))


def pairs(index: SampleIndex) -> dict[str, str]:
    """The lateral view's path of each image that has one."""
    assert index.lateral is not None
    rows = np.flatnonzero(index.lateral >= 0)
    return {index.path[row].decode(): index.path[index.lateral[row]].decode() for row in rows}


def test_chexpert_and_padchest(tmp_path: Path) -> None:
    laid_out.chexpert(tmp_path / "c", train=laid_out.CHEXPERT_TRAIN, valid=laid_out.CHEXPERT_VALID)
    study = "train/patient00001/study1"
    assert pairs(paired(tmp_path / "c", dataset="chexpert", findings="chexpert14")) == {
        f"{study}/view1_frontal.jpg": f"{study}/view2_lateral.jpg"
    }
    root = laid_out.padchest(tmp_path / "p")
    assert pairs(paired(root, dataset="padchest", split="by_patient", findings=["Pneumonia"])) == {
        "0/1_a.png": "0/1_b.png"
    }  # all have StudyID 1, and the patient counts, too
    by_patient = {"split": "by_patient", "ratios": [0.4, 0.3, 0.3]}
    members = [
        {"dataset": "chexpert", "root": tmp_path / "c"},
        {"dataset": "padchest", "root": root, **by_patient},
    ]
    joint = {"dataset": "joint", "members": members, "findings": ["Pneumonia"], "split_seed": 3}
    assert pairs(paired(tmp_path, **joint)) == {
        f"chexpert/{study}/view1_frontal.jpg": f"chexpert/{study}/view2_lateral.jpg",
        "padchest/0/1_a.png": "padchest/0/1_b.png",
    }


TABLE = """image,patient,study,view,Mass
a,1,s,PA,1
b,1,s,LATERAL,1
c,1,s,LL,1
d,1,s,AP,1
e,1,t,AP,0
f,2,s,LATERAL,0
g,2,,PA,0
h,2,,LATERAL,0
i,2,,,0
j,2,u,,0
"""
CSV = {"dataset": "csv", "findings": ["Mass"], "split": "by_patient",
       "columns": {"patient": "patient", "study": "study", "view": "view"}}  # fmt: skip


def test_the_first_of_the_same_patient_s_study_that_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text(TABLE)
    for name in "abcdefghij":
        (tmp_path / name).touch()
    index = paired(tmp_path, **CSV)
    assert pairs(index) == {"a": "b", "d": "b"}
    assert "".join(index.path[is_frontal(index)].astype(str)) == "adegi"
    write_quarantine(tmp_path / "bad.csv", {"b": "damaged"})
    assert pairs(paired(tmp_path, **CSV, quarantine=tmp_path / "bad.csv")) == {"a": "c", "d": "c"}
    (tmp_path / "b").unlink()
    assert pairs(paired(tmp_path, **CSV, missing="skip")) == {"a": "c", "d": "c"}
    write_quarantine(tmp_path / "bad.csv", dict.fromkeys("bc", "damaged"))
    (tmp_path / "b").touch()
    with pytest.raises(
        ValueError, match=r"of 10 images 5 are frontal .PA, AP., 4 lateral, and of 7 the study is known"
    ):
        paired(tmp_path, **CSV, quarantine=tmp_path / "bad.csv")


def test_frontal_images_alone_are_samples(tmp_path: Path) -> None:
    two_views.studies(tmp_path)
    plain = open_dataset(tiny.recipe(tmp_path, *two_views.KEYS, "data.lateral=none"))
    dataset = open_dataset(tiny.recipe(tmp_path, *two_views.KEYS))
    frontal = plain.index.view != "LATERAL"
    for name in ("train", "val", "test"):
        rows = plain.splits.rows(name)
        assert np.array_equal(dataset.splits.rows(name), rows[frontal[rows]])
    assert dataset.index.lateral is not None and plain.index.lateral is None
    described = "\n".join(dataset.describe())
    assert "data.lateral: frontal images alone are samples: " in described
    having = np.count_nonzero(dataset.index.lateral[dataset.splits.train] >= 0)
    assert f"lateral views beside frontal images: {having} of {len(dataset.splits.train)} train" in described
    assert "laterals" not in plain.hashes
    lateral = dataset.index.lateral.copy()
    lateral[dataset.splits.train[0]] = -1
    other = replace(dataset, index=replace(dataset.index, lateral=lateral))
    assert {key for key, value in dataset.hashes.items() if other.hashes[key] != value} == {"laterals"}


class Numbers:
    """A reader of images that are their row's number; row 5 can't be read."""

    where = "nowhere"

    def read(self, requests: Iterable[Request]) -> Generator[Pixels]:
        for rows in requests:
            bad = tuple((at, "damaged") for at, row in enumerate(rows.tolist()) if row == 5)
            numbers = torch.from_numpy(rows).byte()
            yield Pixels((numbers * (numbers != 5)).view(-1, 1, 1, 1).repeat(1, 1, 2, 2), bad)

    def close(self) -> None: ...


def test_a_batch_has_both_images(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text(TABLE)
    for name in "abcdefghij":
        (tmp_path / name).touch()
    index = replace(paired(tmp_path, **CSV), lateral=np.array([1, -1, -1, 5, 2, *[-1] * 5]))
    order, none = EvalOrder(np.array([6, 0, 3, 4, 5]), BatchPlan(5, 5)), lambda _, at: torch.zeros(len(at), 0)
    (batch,) = Loader(index, order, Numbers(), none, ("view", "lateral")).epoch(0)
    assert batch.pixels[:, :, 0, 0].tolist() == [[6, 6], [0, 1], [3, 0], [4, 2], [0, 0]]
    assert batch.metadata.tolist() == [[1, 0, 0, 0], [1, 0, 0, 1], [0, 1, 0, 1], [0, 1, 0, 1], [0, 0, 1, 0]]
    assert batch.unreadable == ((3, "its lateral view f: damaged"), (5, "damaged"))
    assert batch.mask[:, 0].tolist() == [1, 1, 0, 1, 0]
    (plain,) = Loader(index, order, Numbers(), none).epoch(0)
    assert plain.pixels.shape == (5, 1, 2, 2) and plain.unreadable == ((5, "damaged"),)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"data": {"lateral": "second_input"}}, "data.dataset: nih does not: chexpert, mimic and padchest do"),
        ({"data": {"lateral": "second_input", "dataset": "csv", "columns": {"study": "s"}}}, "and data.columns.view"),
        (
            {"data": {"lateral": "second_input", "dataset": "mimic", "where": {"view": ["PA", "LATERAL"]}}},
            "leave LATERAL out of it",
        ),
        ({"model": {"head": {"kind": "attention"}}}, "take model.head.kind=linear or mlp"),
        ({"model": {"library": "python", "name": "mine:net"}}, "a network of your own, mine:net, takes one image"),
        ({"augment": {"mixup": 0.2}}, "augment.mixup would mix an image that has a lateral view"),
        ({"train": {"stages": [{"epochs": 1, "augment": {"cutmix": 1}}]}}, "augment.cutmix would mix"),
    ],
)
def test_what_does_not_go_with_lateral_views(section: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe.model_validate({"data": {"dataset": "mimic", "lateral": "second_input"}, **section})
