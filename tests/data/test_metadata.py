"""Age, sex and view as numbers beside the image."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from distcxr.data.index import SampleIndex
from distcxr.data.metadata import check_metadata, metadata_of, metadata_width


def index(**columns: list[float] | list[str]) -> SampleIndex:
    num = len(next(iter(columns.values())))
    nothing = SampleIndex(
        root=Path("/nowhere"), findings=("Mass",), path=np.array([b"%d.png" % row for row in range(num)]),
        patient_id=np.arange(num), targets_NC=np.zeros((num, 1), np.uint8), mask_NC=np.ones((num, 1), np.uint8),
        age=np.full(num, np.nan, np.float32), sex=np.full(num, ""), view=np.full(num, ""), split=np.full(num, ""),
        label_hash="", skipped=np.array([], dtype="S1"),
    )  # fmt: skip
    return replace(
        nothing, **{name: np.array(values, np.float32 if name == "age" else None) for name, values in columns.items()}
    )


def test_what_is_unknown_is_an_input_of_its_own() -> None:
    people = index(age=[58, np.nan, 0, 411], sex=["M", "F", "", "M"], view=["PA", "", "AP", "LATERAL"])
    found = metadata_of(people, np.array([2, 0, 1, 3]), ["age", "sex", "view"])
    expected = [
        [0.0, 1, 0, 0, 0, 1, 0],
        [0.58, 1, 1, 0, 1, 0, 0],
        [0.0, 0, 0, 1, 0, 0, 0],
        [1.2, 1, 1, 0, 0, 0, 1],
    ]
    torch.testing.assert_close(found, torch.tensor(expected))
    assert found.dtype == torch.float32


def test_columns_follow_the_order_of_the_names() -> None:
    people = index(age=[50], view=["AP"])
    assert metadata_of(people, np.array([0]), ["view", "age"]).tolist() == [[0, 1, 0, 0.5, 1]]
    assert metadata_of(people, np.array([0]), []).shape == (1, 0)
    for names in ([], ["age"], ["sex", "view"], ["view", "age", "sex"]):
        assert metadata_of(people, np.array([0]), names).shape[1] == metadata_width(names)


def test_a_column_of_which_nothing_is_known_is_named() -> None:
    people = index(age=[50, np.nan], sex=["", "F"])
    check_metadata(people, np.array([0, 1]), ["age", "sex"])
    check_metadata(people, np.array([0, 1]), [])
    with pytest.raises(ValueError, match=r"asks for view, which no training image has.*data\.columns\.view"):
        check_metadata(people, np.array([0, 1]), ["age", "view"])
    with pytest.raises(ValueError, match="asks for sex"):
        check_metadata(people, np.array([0]), ["age", "sex"])
