"""Labels without images: NIH's file, and tables of 0, 1 and nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from distcxr.data.labels import NIH15
from distcxr.data.read import read_index
from distcxr.data.sources.label_table import read_labels
from distcxr.recipe.data import Data

NIH = "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position\n"


def write(folder: Path, text: str) -> Path:
    path = folder / "labels.csv"
    path.write_text(text)
    return path


def test_nih_file_needs_no_images(tmp_path: Path) -> None:
    rows = "00000001_000.png,Mass|Nodule,0,1,058Y,M,PA\n00000002_000.png,No Finding,0,2,31,F,AP\n"
    path = write(tmp_path, NIH + rows).rename(tmp_path / "Data_Entry_2017.csv")
    index = read_labels(path)
    (tmp_path / "images").mkdir()
    for name in ("00000001_000.png", "00000002_000.png"):
        (tmp_path / "images" / name).touch()
    whole = read_index(Data(), tmp_path)
    assert index.findings == NIH15 and index.file_names([0, 1]) == ["00000001_000.png", "00000002_000.png"]
    for name in ("patient_id", "targets_NC", "mask_NC", "age", "sex", "view"):
        np.testing.assert_array_equal(getattr(index, name), getattr(whole, name))
    assert index.label_hash == whole.label_hash


def test_table(tmp_path: Path) -> None:
    path = write(tmp_path, "file,Mass,Patient Age,patient,Sex,Edema\nx/a.png,1,58,p7,F,\nb.png,0.0,,p3,,1\n")
    index = read_labels(path)
    assert index.findings == ("Mass", "Edema") and index.file_names([0, 1]) == ["a.png", "b.png"]
    assert index.targets_NC.tolist() == [[1, 0], [0, 1]] and index.mask_NC.tolist() == [[1, 0], [1, 1]]
    assert index.patient_id[0] != index.patient_id[1]
    assert index.age[0] == 58 and np.isnan(index.age[1])
    assert index.sex.tolist() == ["F", ""] and index.view.tolist() == ["", ""]


def test_patients_from_nih_names(tmp_path: Path) -> None:
    index = read_labels(write(tmp_path, "f,Mass\n00000013_001.png,1\n00000013_002.jpg,0\n00000002_000.png,1\n"))
    assert index.patient_id.tolist() == [13, 13, 2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("f,Mass\n", "a header and no rows"),
        ("f,patient\na,1\n", "has no findings"),
        ("f,patient,Mass\na,1,2\n", "line 2, column Mass: label '2' is not 0, 1 or empty"),
        ("f,patient,Mass\na,1,1\nb,1,-1\n", "line 3, column Mass: label '-1'"),
        ("f,patient,Mass\na,1,1\nb,1\n", "line 3: 2 cells where the header has 3"),
        ("f,patient,Mass\na,1,1\na,1,0\n", "lists 1 images more than once: a"),
        ("f,patient,Mass,Mass\na,1,1,1\n", "without a name, or with the same"),
        ("f,Mass\na,1\n", "'a' is not a name with NIH's patient number: .*add a column 'Patient ID'"),
        ("f,patient,Mass\na,,1\n", "1 images have no patient; the first is a"),
        (NIH + "00000001_000.png,Maas,0,1,1,M,PA\n", "unknown finding 'Maas', did you mean 'Mass'"),
    ],
)
def test_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        read_labels(write(tmp_path, text))
    assert "labels.csv" in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.csv can't be read"):
        read_labels(tmp_path / "none.csv")
    path = tmp_path / "labels.csv"
    path.write_bytes(b"f,Mass\n\xff\xfe,1\n")
    with pytest.raises(ValueError, match="as UTF-8"):
        read_labels(path)
