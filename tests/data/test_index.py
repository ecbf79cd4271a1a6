"""The struct of arrays itself."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from distcxr.data.index import SampleIndex


def make_index(root: Path) -> SampleIndex:
    return SampleIndex(
        root=root,
        findings=("Mass", "Edema"),
        path=np.array([b"images/a.png", b"images_002/images/b.png", "é.png".encode()]),
        patient_id=np.array([1, 1, 7]),
        targets_NC=np.array([[1, 0], [0, 1], [1, 1]], dtype=np.uint8),
        mask_NC=np.ones((3, 2), dtype=np.uint8),
        age=np.array([50, np.nan, 3], dtype=np.float32),
        sex=np.array(["M", "F", ""]),
        view=np.array(["PA", "AP", ""]),
        split=np.array(["train", "", "test"]),
        label_hash="0" * 64,
        skipped=np.array([b"z.png"]),
    )


def test_files_and_names(tmp_path: Path) -> None:
    index = make_index(tmp_path)
    assert len(index) == 3
    assert index.files([1, 0]) == [f"{tmp_path}/images_002/images/b.png", f"{tmp_path}/images/a.png"]
    assert index.files(np.array([2])) == [f"{tmp_path}/é.png"]
    assert index.files([]) == []
    assert make_index(Path("/")).files([0]) == ["/images/a.png"]
    assert [index.file_name(row) for row in range(3)] == ["a.png", "b.png", "é.png"]
    assert index.file_names(range(3)) == ["a.png", "b.png", "é.png"]


def test_take_keeps_every_column_in_step(tmp_path: Path) -> None:
    taken = make_index(tmp_path).take([2, 0])
    assert taken.file_names(range(2)) == ["é.png", "a.png"]
    assert taken.patient_id.tolist() == [7, 1]
    assert taken.targets_NC.tolist() == [[1, 1], [1, 0]]
    assert taken.age.tolist() == [3, 50]
    assert taken.sex.tolist() == ["", "M"]
    assert taken.view.tolist() == ["", "PA"]
    assert taken.split.tolist() == ["test", "train"]
    assert taken.skipped.tolist() == [b"z.png"]
    assert len(make_index(tmp_path).take([])) == 0


def test_pickles_whole(tmp_path: Path) -> None:
    index = make_index(tmp_path)
    copy = pickle.loads(pickle.dumps(index))
    np.testing.assert_array_equal(copy.path, index.path)
    np.testing.assert_array_equal(copy.targets_NC, index.targets_NC)
    assert copy.root == index.root


def test_columns_of_unequal_length_are_refused(tmp_path: Path) -> None:
    index = make_index(tmp_path)
    with pytest.raises(AssertionError):
        SampleIndex(**{**vars(index), "patient_id": index.patient_id[:2]})
