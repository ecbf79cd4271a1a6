"""Images that can't be read: found, listed, and left out of the splits."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
import pytest
import tiny

from distcxr.data.dataset import open_dataset
from distcxr.data.quarantine import find_unreadable, read_quarantine, write_quarantine


def test_unreadable_images_are_found_and_left_out(tmp_path: Path) -> None:
    tiny.phantom(tmp_path)
    whole = open_dataset(tiny.recipe(tmp_path))
    bad = whole.splits.train[[1, 5]]
    for path in whole.index.files(bad):
        Path(path).write_bytes(b"not a picture")
    done: list[int] = []
    everything = np.arange(len(whole.index))
    reasons = find_unreadable(whole.index, whole.index.files, everything, 2, done.append)
    assert sorted(reasons) == sorted(os.fsdecode(whole.index.path[row]) for row in bad)
    assert set(reasons.values()) == {"neither a PNG nor a JPEG nor a DICOM"} and done[-1] == len(everything)
    listed = tmp_path / "quarantine.csv"
    write_quarantine(listed, reasons)
    assert read_quarantine(listed, whole.index) == reasons
    rest = open_dataset(tiny.recipe(tmp_path, f"data.quarantine={listed}"))
    assert rest.splits.train.tolist() == [row for row in whole.splits.train.tolist() if row not in bad]
    assert np.array_equal(rest.splits.val, whole.splits.val) and np.array_equal(rest.splits.test, whole.splits.test)
    assert "data.quarantine: images left out that can't be read: 2 train, 0 val, 0 test" in rest.describe()


def test_a_run_trains_without_them(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tiny.phantom(tmp_path)
    dataset = open_dataset(tiny.recipe(tmp_path))
    (bad,) = dataset.index.files(dataset.splits.train[:1])
    Path(bad).write_bytes(b"not a picture")
    write_quarantine(tmp_path / "bad.csv", {os.fsdecode(dataset.index.path[dataset.splits.train[0]]): "damaged"})
    caplog.set_level(logging.INFO)
    tiny.train(tmp_path, f"data.quarantine={tmp_path / 'bad.csv'}", "data.on_error=stop", "train.epochs=1")
    assert "images left out that can't be read: 1 train" in caplog.text


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("path,reason\nimages/nobody.png,gone\n", r"bad\.csv, line 2: 'images/nobody\.png' is not an image"),
        ("file\nx.png\n", "has no column 'path'"),
    ],
)
def test_a_list_of_something_else_is_an_error(tmp_path: Path, content: str, reason: str) -> None:
    tiny.phantom(tmp_path)
    (tmp_path / "bad.csv").write_text(content)
    with pytest.raises(ValueError, match=reason):
        open_dataset(tiny.recipe(tmp_path, f"data.quarantine={tmp_path / 'bad.csv'}"))


def test_a_list_of_a_whole_split_is_an_error(tmp_path: Path) -> None:
    tiny.phantom(tmp_path)
    dataset = open_dataset(tiny.recipe(tmp_path))
    names = map(os.fsdecode, dataset.index.path[dataset.splits.val].tolist())
    write_quarantine(tmp_path / "bad.csv", dict.fromkeys(names, "damaged"))
    with pytest.raises(ValueError, match="names every val image"):
        open_dataset(tiny.recipe(tmp_path, f"data.quarantine={tmp_path / 'bad.csv'}"))
