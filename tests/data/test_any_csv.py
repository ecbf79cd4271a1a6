"""Any CSV by a column map: labels in one column or many, attributes, and every way it can be wrong."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distcxr.data.index import MissingDataError, SampleIndex
from distcxr.data.read import read_index
from distcxr.recipe.data import Data

WIDE = """\
image,who,years,gender,side,part,note,Mass,Edema
a/1.png,p1,63,Male,AP,train,first,1,0
a/2.png,p1,,F,LATERAL,train,,,-1
b/3.jpg,p2,240,x,oblique,test,third,0,1.0
"""
COLUMNS = {"patient": "who", "age": "years", "sex": "gender", "view": "side", "split": "part"}


def read(root: Path, text: str, columns: dict[str, Any] | None = None, **data: Any) -> SampleIndex:
    """The index of a table after its images are made."""
    (root / "labels.csv").write_text(text)
    for name in ("a/1.png", "a/2.png", "b/3.jpg"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).touch()
    spec = {"dataset": "csv", "findings": "all", "columns": COLUMNS if columns is None else columns, **data}
    return read_index(Data.model_validate(spec), root)


def test_a_column_per_finding(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    index = read(tmp_path, WIDE)
    assert index.findings == ("Mass", "Edema")
    assert index.targets_NC.tolist() == [[1, 0], [0, 0], [0, 1]]
    assert index.mask_NC.tolist() == [[1, 1], [0, 0], [1, 1]]
    assert index.file_names(range(3)) == ["1.png", "2.png", "3.jpg"]
    assert index.files([2]) == [str(tmp_path / "b/3.jpg")]
    assert index.patient_id[0] == index.patient_id[1] != index.patient_id[2]
    np.testing.assert_array_equal(index.age, np.array([63, np.nan, np.nan], dtype=np.float32))
    assert index.sex.tolist() == ["M", "F", ""] and index.view.tolist() == ["AP", "LATERAL", ""]
    assert index.split.tolist() == ["train", "train", "test"]
    assert "not labels of 0, 1, -1 or empty: note ('first')" in caplog.text
    assert "1 values of view other than PA, AP and LATERAL count as unknown: oblique" in caplog.text


def test_a_patient_keeps_its_number_whoever_else_is_there(tmp_path: Path) -> None:
    text = "image,who,Mass\na/1.png,007,1\na/2.png,12,0\n"
    before = read(tmp_path, text, {"patient": "who"})
    after = read(tmp_path, f"{text}b/3.jpg,p1,1\n", {"patient": "who"})
    assert before.patient_id.tolist() == after.patient_id[:2].tolist() == [7, 12]


@pytest.mark.parametrize(("uncertain", "target", "known"), [("mask", 0, 0), ("zero", 0, 1), ("one", 1, 1)])
def test_uncertain_labels(tmp_path: Path, uncertain: str, target: int, known: int) -> None:
    index = read(tmp_path, WIDE, uncertain=uncertain)
    assert (index.targets_NC[1, 1], index.mask_NC[1, 1]) == (target, known)
    assert index.mask_NC[1, 0] == 0  # an empty cell stays unknown


def test_names_in_one_column(tmp_path: Path) -> None:
    text = "image,shows\na/1.png,Mass | Edema\na/2.png,normal\nb/3.jpg,\n"
    index = read(tmp_path, text, {"label": "shows"})
    assert index.findings == ("Edema", "Mass", "normal")
    assert index.targets_NC.tolist() == [[1, 1, 0], [0, 0, 1], [0, 0, 0]]
    assert index.mask_NC.tolist() == [[1, 1, 1], [1, 1, 1], [0, 0, 0]]
    assert len(set(index.patient_id.tolist())) == 3


def test_patients_keep_their_numbers_when_rows_are_added(tmp_path: Path) -> None:
    """A random split by patient is a function of the number: nobody may move because of others."""
    whole = read(tmp_path, WIDE).patient_id
    fewer = read(tmp_path, "\n".join(WIDE.splitlines()[::3]) + "\n").patient_id
    assert fewer.tolist() == [whole[2]]
    own = [read(tmp_path, text, {}).patient_id for text in (WIDE, "\n".join(WIDE.splitlines()[::3]) + "\n")]
    assert own[1].tolist() == [own[0][2]] and len(set(own[0].tolist())) == 3
    assert read(tmp_path, WIDE.replace(",p", ",0").replace(",0art", ",part")).patient_id.tolist() == [1, 1, 2]


def test_images_of_the_same_name_go_by_their_paths(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b/1.png").touch()
    index = read(tmp_path, "image,Mass\na/1.png,1\n./b//1.png,0\n", {})
    assert index.file_names([0, 1]) == ["a/1.png", "b/1.png"] and index.file_name(1) == "b/1.png"


def test_a_findings_column_must_hold_labels_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Left to itself such a column is no finding, with a warning where most of it is labels: of a joint data set's
    member nothing is asked by name. Asked for by name, or in a filter, it is a mistake."""
    mostly = "image,Mass,Edema\na/1.png,1,1\na/2.png,0,x\nb/3.jpg,1,0\n"
    assert read(tmp_path, mostly, {}).findings == ("Mass",)
    assert "labels.csv, line 3: column Edema is left out, though most of its cells are labels: 'x'" in caplog.text
    text = WIDE.replace("p1,63,Male,AP,train,first,1,0", "p1,63,Male,AP,train,first,1,maybe")
    assert read(tmp_path, text).findings == ("Mass",)
    for asked in ({"findings": ["Edema"]}, {"where": {"without": ["Edema"]}}):
        with pytest.raises(ValueError, match=r"labels.csv, line 2, column Edema: label 'maybe' is not 0, 1, -1"):
            read(tmp_path, text, **asked)
    with pytest.raises(ValueError, match=r"unknown finding 'Edma', did you mean 'Edema'\?"):
        read(tmp_path, text, findings=["Edma"])


@pytest.mark.parametrize(
    ("text", "columns", "message"),
    [
        ("image,Mass\n", {}, "a header and no rows"),
        ("image,Mass\na/1.png,1,1\n", {}, "line 2: 3 cells where the header has 2"),
        ("file,Mass\na/1.png,1\n", {}, r"data.columns.image: .*labels.csv has no column 'image'; its columns: file, M"),
        ("image,Mass,Mass\na/1.png,1,1\n", {}, "more than one column 'Mass'"),
        ("image,who,Mass\na/1.png,1,1\n", {"patient": "Who"}, r"columns.patient: .* 'Who', did you mean 'who'\?"),
        ("image,who,Mass\na/1.png,,1\n", {"patient": "who"}, "line 2: no patient"),
        (
            "image,part,Mass\na/1.png,valid,1\n",
            {"split": "part"},
            "column part, line 2: 'valid' is not one of 'train'",
        ),
        ("image,Mass\n../1.png,1\n", {}, "line 2, column image: image '../1.png' is not a path below the data root"),
        ("image,Mass\n/etc/passwd,1\n", {}, "line 2, column image: image '/etc/passwd' is not a path below"),
        ("image,Mass\na\\1.png,1\n", {}, "is not a path below"),
        ("image,Mass\n,1\n", {}, "line 2, column image: image '' is not a path below"),
        ("image,Mass\na/1.png,1\n./a/1.png,0\n", {}, r"1 images more than once: a/1.png \(lines 2 and 3\)"),
        ("image,note\na/1.png,one\n", {}, "set data.columns.label"),
        ("image,l\na/1.png,\n", {"label": "l"}, "is empty in every row"),
        ("image,l\na/1.png,Mass||Edema\n", {"label": "l"}, r"line 2: label 'Mass\|\|Edema' has an empty name"),
        ("image,l\na/1.png,Mass|No Finding\n", {"label": "l"}, "line 2: .*'No Finding' contradicts"),
    ],
)
def test_refused(tmp_path: Path, text: str, columns: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        read(tmp_path, text, columns)
    assert "labels.csv" in str(caught.value)


def test_missing_files_and_tables(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = WIDE + "c/4.png,p3,1,M,AP,test,,0,1\n"
    with pytest.raises(MissingDataError, match=r"1 of 4 images in .*labels.csv have no file in .*: c/4.png"):
        read(tmp_path, text)
    index = read(tmp_path, text, missing="skip")
    assert len(index) == 3 and index.skipped.tolist() == [b"4.png"]
    assert "1 of 4 images" in caplog.text
    with pytest.raises(MissingDataError, match=r"None of the 1 images that .*labels.csv lists"):
        read(tmp_path, "image,Mass\nnowhere/1.png,1\n", {}, missing="skip")
    with pytest.raises(MissingDataError, match=r"other.csv does not exist: data.dataset=csv"):
        read(tmp_path, WIDE, {"table": "other.csv"})
