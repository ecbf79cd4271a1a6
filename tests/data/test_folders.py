"""A folder per class, with and without split folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from distcxr.data.index import MissingDataError, SampleIndex
from distcxr.data.read import read_index
from distcxr.recipe.data import Data


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def read(root: Path, pattern: str | None = None) -> SampleIndex:
    return read_index(Data.model_validate({"dataset": "folders", "patient_pattern": pattern}), root)


def test_classes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, "normal/p1_1.png", "normal/.DS_Store", "abnormal/p1_2.JPG", "abnormal/p2_1.jpeg", ".git/HEAD")
    touch(tmp_path, "readme.txt", "normal/notes.txt", "distcxr-cache/32px/cache.json")
    index = read(tmp_path, r"^p(\d+)_")
    assert index.findings == ("abnormal", "normal")
    assert index.file_names(range(3)) == ["abnormal/p1_2.JPG", "abnormal/p2_1.jpeg", "normal/p1_1.png"]
    assert index.targets_NC.tolist() == [[1, 0], [1, 0], [0, 1]] and index.mask_NC.all()
    assert index.patient_id.tolist() == [1, 2, 1] and index.split.tolist() == [""] * 3
    assert "1 files are not images and are left out: normal/notes.txt" in caplog.text


def test_split_folders(tmp_path: Path) -> None:
    touch(tmp_path, "train/normal/1.png", "train/abnormal/1.png", "test/normal/1.png")
    index = read(tmp_path)
    assert index.split.tolist() == ["train", "train", "test"] and index.findings == ("abnormal", "normal")
    assert index.targets_NC.tolist() == [[1, 0], [0, 1], [0, 1]]
    assert len(set(index.patient_id.tolist())) == 3
    before = index.label_hash
    touch(tmp_path, "val/abnormal/2.png")
    index = read(tmp_path)
    assert index.split.tolist() == ["train", "train", "val", "test"] and index.label_hash != before


def test_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match=r"nowhere is not a folder.\ndata.dataset=folders expects"):
        read(tmp_path / "nowhere")
    with pytest.raises(MissingDataError, match="holds no folder of images"):
        read(touch(tmp_path / "a", "1.png"))
    with pytest.raises(ValueError, match=r"normal holds no image"):
        read(touch(tmp_path / "b", "normal/notes.txt", "abnormal/1.png"))
    with pytest.raises(ValueError, match=r"normal holds folders \(p1\)"):
        read(touch(tmp_path / "c", "normal/p1/1.png", "abnormal/1.png"))
    with pytest.raises(ValueError, match="holds both train and normal"):
        read(touch(tmp_path / "d", "normal/1.png", "train/normal/1.png"))
    with pytest.raises(ValueError, match=r"data.patient_pattern .* finds no patient in the name of n/x.png"):
        read(touch(tmp_path / "e", "n/1_1.png", "n/x.png"), r"^(\d+)_")


@pytest.mark.parametrize(("pattern", "message"), [("p(", "is not a regular expression"), (r"p\d+", "has no group")])
def test_a_pattern_has_a_group(pattern: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Data.model_validate({"dataset": "folders", "patient_pattern": pattern})
