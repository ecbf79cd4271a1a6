"""NIH's label file and folders as they are shipped, and all the ways they can be wrong."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from distcxr.data.index import MissingDataError, SampleIndex
from distcxr.data.labels import NIH14, NIH15
from distcxr.data.read import read_index
from distcxr.data.sources import nih
from distcxr.data.sources.label_columns import parse_age
from distcxr.recipe.data import Data

HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)
ROWS = [
    "00000001_000.png,Cardiomegaly,0,1,57,M,PA,2682,2749,0.143,0.143",
    "00000001_001.png,Cardiomegaly|Emphysema,1,1,58,M,AP,2894,2729,0.143,0.143",
    "00000002_000.png,No Finding,0,2,80,F,PA,2500,2048,0.171,0.171",
]
NAMES = [row.split(",")[0] for row in ROWS]
SIZE_LIMIT_MB, CPU_LIMIT_S = 150, 2.0


def write_dataset(root: Path, rows: list[str] = ROWS, header: str = HEADER, folder: str = "images") -> Path:
    """A label file and an empty file for every image of it: no image is opened."""
    (root / nih.CSV_NAMES[0]).write_text("\n".join([header, *rows]) + "\n")
    touch(root / folder, [row.split(",")[0] for row in rows])
    return root


def read(root: Path, findings: tuple[str, ...] = NIH14, **data: str) -> SampleIndex:
    return read_index(Data.model_validate(data), root).with_findings(findings)


def touch(folder: Path, names: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()


def test_columns(tmp_path: Path) -> None:
    index = read(write_dataset(tmp_path), NIH15)
    assert index.file_names(range(3)) == NAMES
    assert index.files([0]) == [str(tmp_path / "images" / NAMES[0])]
    assert index.patient_id.tolist() == [1, 1, 2]
    assert [[NIH15[c] for c in np.flatnonzero(row)] for row in index.targets_NC] == [
        ["Cardiomegaly"], ["Cardiomegaly", "Emphysema"], ["No Finding"],
    ]  # fmt: skip
    assert index.mask_NC.all()
    assert index.age.tolist() == [57, 58, 80]
    assert index.sex.tolist() == ["M", "M", "F"]
    assert index.view.tolist() == ["PA", "AP", "PA"]
    assert index.label_hash == hashlib.sha256((tmp_path / nih.CSV_NAMES[0]).read_bytes()).hexdigest()
    assert (index.patient_id.dtype, index.age.dtype) == (np.dtype(np.int64), np.dtype(np.float32))
    assert index.targets_NC.dtype == index.mask_NC.dtype == np.dtype(np.uint8)
    assert len(index.skipped) == 0


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_the_file_of_2017(tmp_path: Path, newline: str, mark: str, caplog: pytest.LogCaptureFixture) -> None:
    """A comma too many at the end of each line, ages such as 058Y and 414, a byte-order mark, CRLF."""
    rows = [row + "," for row in ROWS]
    rows[0] = rows[0].replace(",57,", ",058Y,")
    rows[1] = rows[1].replace(",58,", ",414,")
    text = newline.join([mark + HEADER + ",", *rows, "", ""])
    (tmp_path / nih.CSV_NAMES[1]).write_bytes(text.encode())
    touch(tmp_path / "images", NAMES)
    with caplog.at_level(logging.WARNING):
        index = read(tmp_path)
    np.testing.assert_array_equal(index.age, np.array([58, np.nan, 80], dtype=np.float32))
    assert index.file_names(range(3)) == NAMES
    assert index.targets_NC.sum() == 3
    assert "1 ages above 120 years or unreadable count as unknown: 414" in caplog.text


def test_the_newer_label_file_wins(tmp_path: Path) -> None:
    write_dataset(tmp_path)
    (tmp_path / nih.CSV_NAMES[1]).write_text(f"{HEADER}\n{ROWS[0]}\n")
    assert len(read(tmp_path)) == 3


def test_patient_sex_and_quoted_headers(tmp_path: Path) -> None:
    header = 'Image Index,Finding Labels,Patient ID,Patient Age,Patient Sex,View Position,"Image[Width,Height]"'
    write_dataset(tmp_path, ['a.png,"Mass|Edema",00000007,55,F,AP,"1,2"'], header)
    index = read(tmp_path)
    assert (index.sex[0], index.view[0], index.patient_id[0], index.targets_NC.sum()) == ("F", "AP", 7, 2)


def test_odd_values_and_absent_columns_are_unknown_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    header = "Image Index,Finding Labels,Patient ID,Patient Gender,View Position"
    write_dataset(tmp_path, ["a.png,Mass,1,X,LL", "b.png,Mass,1,,PA"], header)
    with caplog.at_level(logging.WARNING):
        index = read(tmp_path)
    assert np.isnan(index.age).all()
    assert index.sex.tolist() == ["", ""]
    assert index.view.tolist() == ["", "PA"]
    assert "no column 'Patient Age'" in caplog.text
    assert "1 values of sex other than M and F count as unknown: X" in caplog.text
    assert "1 values of view other than PA and AP count as unknown: LL" in caplog.text


def test_ages() -> None:
    years = [parse_age(text) for text in ("58", "058Y", " 006M ", "052W", "010D", "414")]
    np.testing.assert_allclose(years, [58, 58, 0.5, 52 * 7 / 365.25, 10 / 365.25, 414])
    assert np.isnan([parse_age(text) for text in ("", "Y", "-3", "nan", "inf", "58X", "old")]).all()


@pytest.mark.parametrize("folder", ["images", "images_012/images", "."])
def test_layouts(tmp_path: Path, folder: str) -> None:
    index = read(write_dataset(tmp_path, folder=folder))
    assert index.files(range(3)) == [str(tmp_path / folder / name) for name in NAMES]


def test_twelve_folders_and_an_image_in_two_of_them(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_dataset(tmp_path, folder="images_002/images")
    touch(tmp_path / "images_001/images", NAMES[:1])
    (tmp_path / "images_002/images" / NAMES[1]).rename(tmp_path / "images_001/images" / NAMES[1])
    with caplog.at_level(logging.WARNING):
        index = read(tmp_path)
    folders = [Path(file).parent.parent.name for file in index.files(range(3))]
    assert folders == ["images_001", "images_001", "images_002"]
    assert f"1 images lie in two folders of {tmp_path}, the first counts: {NAMES[0]}" in caplog.text


def test_rows_without_a_file_are_an_error(tmp_path: Path) -> None:
    write_dataset(tmp_path)
    for name in NAMES[:2]:
        (tmp_path / "images" / name).unlink()
    with pytest.raises(MissingDataError, match=f"2 of 3 images .* no file in .*: {NAMES[0]}, {NAMES[1]}") as caught:
        read(tmp_path)
    assert "data.missing=skip" in str(caught.value)


def test_rows_without_a_file_are_skipped_on_request(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_dataset(tmp_path)
    (tmp_path / "images" / NAMES[1]).unlink()
    with caplog.at_level(logging.WARNING):
        index = read(tmp_path, missing="skip")
    assert index.file_names(range(len(index))) == [NAMES[0], NAMES[2]]
    assert index.patient_id.tolist() == [1, 2]
    assert index.age.tolist() == [57, 80]
    assert index.skipped.tolist() == [NAMES[1].encode()]
    table = tmp_path / nih.CSV_NAMES[0]
    assert f"data.missing=skip: 1 of 3 images in {table} have no file in {tmp_path}: {NAMES[1]};" in caplog.text


def no_folder(root: Path) -> Path:
    return root / "nowhere"


def no_csv(root: Path) -> Path:
    touch(root, ["holiday.txt"])
    return root


def no_image(root: Path) -> Path:
    write_dataset(root)
    shutil.rmtree(root / "images")
    return root


@pytest.mark.parametrize(
    ("make", "problem"),
    [(no_folder, "not a folder"), (no_csv, "it holds holiday.txt"), (no_image, "None of the 3 images")],
)
def test_the_error_of_a_missing_dataset_has_how_to_get_it(tmp_path: Path, make: object, problem: str) -> None:
    assert callable(make)
    with pytest.raises(MissingDataError, match=problem) as caught:
        read(make(tmp_path), missing="skip")
    message = str(caught.value)
    for words in ("nihcc.app.box.com/v/ChestXray-NIHCC", "images_012.tar.gz", "test_list.txt", "ROOT/images/",
                  "ROOT/images_001/images/", "ROOT/images_012/images/", "data.root=", "DISTCXR_NIH_ROOT="):  # fmt: skip
        assert words in message


@pytest.mark.parametrize("column", ["Image Index", "Finding Labels", "Patient ID"])
def test_a_needed_column_is_missing(tmp_path: Path, column: str) -> None:
    write_dataset(tmp_path, header=HEADER.replace(column, "Other"))
    with pytest.raises(ValueError, match=f"no column '{column}'; its columns: .*Other"):
        read(tmp_path)


def test_a_needed_column_is_there_twice(tmp_path: Path) -> None:
    write_dataset(tmp_path, header=HEADER.replace("Follow-up #", "Patient ID"))
    with pytest.raises(ValueError, match="more than one column 'Patient ID'"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("Cardiomegaly|Emphysema", "Cardiomegaly|Emphysemas", "line 3: .*'Emphysemas', did you mean 'Emphysema'"),
        ("00000001_001.png", "../../etc/passwd", "line 3: image '../../etc/passwd' is not a plain file name"),
        ("00000001_001.png", "/etc/passwd", "line 3: image '/etc/passwd' is not a plain file name"),
        ("00000001_001.png", "images/a.png", "line 3: image 'images/a.png' is not a plain file name"),
        ("00000001_001.png", "..", "line 3: image '..' is not a plain file name"),
        ("00000001_001.png", "..\\a.png", "line 3: image .* is not a plain file name"),
        ("00000001_001.png", "", "line 3: image '' is not a plain file name"),
        (",1,1,58,", ",1,one,58,", "line 3: Patient ID 'one' is not a whole number"),
        (",1,1,58,", ",1,1.0,58,", "line 3: Patient ID '1.0' is not a whole number"),
        (",1,1,58,", ",1,99999999999999999999,58,", "line 3: Patient ID .* is not a whole number"),
        (",1,1,58,M,AP,2894,2729,0.143,0.143", "", "line 3: 2 fields, at least 7"),
        ("00000001_001.png", "00000001_000.png", r"1 images more than once: 00000001_000.png \(lines 2 and 3\)"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("missing", ["error", "skip"])
def test_bad_rows_are_named(tmp_path: Path, old: str, new: str, problem: str, missing: str) -> None:
    write_dataset(tmp_path)
    csv = tmp_path / nih.CSV_NAMES[0]
    text = csv.read_text()
    assert text.count(old) == 1
    csv.write_text(text.replace(old, new))
    with pytest.raises(ValueError, match=f"{re.escape(str(csv))}.*{problem}"):
        read(tmp_path, missing=missing)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is empty"),
        (HEADER.encode() + b"\n", "a header and no rows"),
        (HEADER.encode() + b"\n\xff\xfe,Mass,0,1,5,M,PA\n", "not readable as CSV"),
        (HEADER.replace(",", ";").encode() + b"\n", "no column 'Image Index'"),
    ],
)
def test_a_file_that_is_no_label_file(tmp_path: Path, content: bytes, problem: str) -> None:
    (tmp_path / nih.CSV_NAMES[0]).write_bytes(content)
    with pytest.raises(ValueError, match=problem):
        read(tmp_path)


# The peak is VmHWM and not getrusage's ru_maxrss: a child inherits the latter from pytest, which holds torch.
MEASURE = """
import os, sys, time
from pathlib import Path
def peak_mb():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024
root, missing = Path(sys.argv[1]), sys.argv[2]
{listing}
from distcxr.recipe.data import Data
bare_mb, start_s = peak_mb(), time.process_time()
from distcxr.data.read import read_index
index = read_index(Data(missing=missing), root)
print(len(index), len(index.skipped), time.process_time() - start_s, peak_mb() - bare_mb)
"""

# To make 112,120 files takes from 2 s to a minute, by the disk; to list them takes 0.04 s.
LISTING = """
list_folder = os.listdir
def listdir(folder):
    if Path(folder).name != "images":
        return list_folder(folder)
    first = 10_000 * (int(Path(folder).parent.name[-3:]) - 1)
    return [f"{number // 4:08d}_{number % 4:03d}.png" for number in range(first, min(first + 10_000, 112_120))]
os.listdir = listdir
"""


def measure(root: Path, missing: str, listing: str = "") -> tuple[int, int]:
    """Index `root` in a new process, imports included, within the limits; images found and skipped.

    CPU seconds, so that other work on the machine does not count.
    """
    package = Path(nih.__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", MEASURE.replace("{listing}", listing), str(root), missing],
        capture_output=True, text=True, timeout=60, env={**os.environ, "PYTHONPATH": str(package)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found, skipped, cpu_s, size_mb = done.stdout.split()
    assert float(cpu_s) < CPU_LIMIT_S
    assert float(size_mb) < SIZE_LIMIT_MB
    return int(found), int(skipped)


def test_a_whole_dataset_is_indexed_in_time_and_memory(tmp_path: Path) -> None:
    labels = ["No Finding"] + ["|".join(some) for some in combinations(NIH14, 3)]
    with (tmp_path / nih.CSV_NAMES[0]).open("w") as csv:
        csv.write(HEADER + "\n")
        for number in range(112_120):
            patient, visit = divmod(number, 4)
            person = f"{visit},{patient},{number % 95},M,PA,2500,2048,0.143,0.143"
            csv.write(f"{patient:08d}_{visit:03d}.png,{labels[number % len(labels)]},{person}\n")
    for number in range(1, 13):
        (tmp_path / f"images_{number:03d}" / "images").mkdir(parents=True)
    assert measure(tmp_path, "error", LISTING) == (112_120, 0)


def test_the_real_label_file() -> None:
    root = os.environ.get("DISTCXR_NIH_ROOT")
    if not root:
        pytest.skip("DISTCXR_NIH_ROOT is not set: no real data here")
    assert sum(measure(Path(root), "skip")) == 112_120
    index = read(Path(root), NIH15, missing="skip")
    assert nih.KNOWN_HASHES.get(index.label_hash) == "NIH v2020"
    assert all(Path(file).is_file() for file in index.files(range(len(index))))
    assert (index.targets_NC.any(axis=1)).all()
    assert not (index.targets_NC[:, :14].any(axis=1) & (index.targets_NC[:, 14] == 1)).any()
