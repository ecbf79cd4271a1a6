"""What a report opens with, counted by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from distcxr.data.cohort import describe_cohort
from distcxr.data.index import SampleIndex
from distcxr.data.sources.image_paths import without_missing
from distcxr.data.splits import Splits
from distcxr.recipe.data import Data


def listed() -> SampleIndex:
    """Eight images of five patients; Edema is unknown on two of them."""
    targets = [[1, 0], [1, 1], [0, 0], [0, 1], [1, 0], [0, 0], [0, 0], [0, 0]]
    mask = [[1, 1], [1, 1], [1, 1], [1, 0], [1, 1], [1, 0], [1, 1], [1, 1]]
    return SampleIndex(
        root=Path("/nowhere"), findings=("Mass", "Edema"), path=np.array([b"%d.png" % row for row in range(8)]),
        patient_id=np.array([1, 1, 2, 2, 3, 3, 4, 5]), targets_NC=np.array(targets, np.uint8),
        mask_NC=np.array(mask, np.uint8), age=np.array([40, 41, 20, 21, np.nan, 60, 80, 30], np.float32),
        sex=np.array(["F", "F", "M", "M", "", "", "F", "M"]),
        view=np.array(["PA", "AP", "PA", "", "PA", "PA", "AP", "PA"]),
        split=np.full(8, ""), label_hash="", skipped=np.array([], dtype="S1"),
    )  # fmt: skip


def test_flow_demographics_and_prevalence() -> None:
    there = np.array([True] * 7 + [False])
    index = without_missing(listed(), there, Data(missing="skip"), table=Path("labels.csv"), layout="")
    splits = Splits(np.arange(6), np.array([], np.int64), np.array([6]), {}, ("data.where: 6 of 7 train images",))
    found = describe_cohort(index, splits)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["label_file"] == {"num_images": 8, "num_patients": 5}, "patient 5 has no image with a file"
    assert found["with_file"] == {"num_images": 7, "num_patients": 4}
    assert found["notes"] == ["data.where: 6 of 7 train images"]
    train, val = found["splits"]["train"], found["splits"]["val"]
    assert (train["num_images"], train["num_patients"]) == (6, 3)
    assert train["age"] == {"median": 30, "q25": 25, "q75": 35, "num_unknown": 1}, "of each patient's first image"
    assert train["sex"] == {"F": 1, "M": 1, "unknown": 1}
    assert train["view"] == {"PA": 4, "AP": 1, "LATERAL": 0, "unknown": 1}
    assert train["findings"] == {
        "Mass": {"num_known": 6, "num_positive": 3, "num_patients_known": 3, "num_patients_positive": 2},
        "Edema": {"num_known": 4, "num_positive": 1, "num_patients_known": 3, "num_patients_positive": 1},
    }
    assert val["num_images"] == 0 and val["age"]["median"] is None and val["findings"]["Mass"]["num_known"] == 0
