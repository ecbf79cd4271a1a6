"""Our own predictions file: bit for bit, whole or not at all, and what is wrong with one named."""

from __future__ import annotations

import csv
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cohort import predictions
from numpy.typing import NDArray

from distcxr.runfolder.predictions import read_predictions, write_predictions

HEADER = "file,patient,Mass,Mass_true,logit:Mass"
FINDINGS = ["Hernia", "Mass", "Edema", "No Finding"]
Arrays = tuple[NDArray[np.float32], NDArray[np.uint8], NDArray[np.uint8]]


def arrays(num: int = 300, num_findings: int = 4) -> Arrays:
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 2, size=(num, num_findings)).astype(np.uint8)
    logits = (rng.normal(size=targets.shape) + targets).astype(np.float32).round(1)
    mask = (rng.random(targets.shape) < 0.9).astype(np.uint8)
    return logits, targets, mask


def test_predictions_come_back_bit_for_bit(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    num = 3000
    bits = rng.integers(0, 2**32, size=(num, 4), dtype=np.uint64).astype(np.uint32)
    logits = bits.view(np.float32)
    logits[~np.isfinite(logits)] = 0.1
    logits[:4, 0] = 0.0, -0.0, 1.4e-45, -3.4028235e38
    _, targets, mask = arrays(num)
    files = [f"{row:08d}_000.png" for row in range(num)]
    files[0] = ' with, space,\nline and "quotes".png '
    files[1] = b"not UTF-8 \xe9.png".decode(errors="surrogateescape")
    patients = list(range(num))
    path = tmp_path / "predictions_val.csv"
    write_predictions(path, *predictions(files, patients, FINDINGS, logits, targets, mask))
    back = read_predictions(path)
    assert back.files == files
    assert back.patient_ids == [str(patient) for patient in patients]
    assert back.findings == FINDINGS
    np.testing.assert_array_equal(back.logits_NC.view(np.uint32), logits.view(np.uint32))
    np.testing.assert_array_equal(back.mask_NC, mask)
    np.testing.assert_array_equal(back.targets_NC, targets * mask)
    assert list(tmp_path.iterdir()) == [path]


def test_predictions_of_no_samples_come_back(tmp_path: Path) -> None:
    logits, targets, mask = arrays(0)
    write_predictions(tmp_path / "p.csv", *predictions([], [], FINDINGS, logits, targets, mask))
    back = read_predictions(tmp_path / "p.csv")
    assert back.findings == FINDINGS
    assert back.logits_NC.shape == back.targets_NC.shape == back.mask_NC.shape == (0, 4)


def test_predictions_file_as_text(tmp_path: Path) -> None:
    logits = np.float32([[0.0, 100.0], [-100.0, 0.1], [20.0, np.nan]])
    targets, mask = np.uint8([[0, 1], [1, 1], [1, 0]]), np.uint8([[1, 1], [1, 0], [1, 1]])
    path = tmp_path / "predictions_test.csv"
    write_predictions(
        path, *predictions(["a.png", "b.png", "c.png"], [7, 8, 8], ["Mass", "Edema"], logits, targets, mask)
    )
    header, first, second, third = csv.reader(path.read_text().splitlines())
    assert ",".join(header) == "file,patient,Mass,Mass_true,logit:Mass,Edema,Edema_true,logit:Edema"
    assert first == ["a.png", "7", "0.5", "0", "0.0", "1.0", "1", "100.0"]
    assert second[:2] == ["b.png", "8"] and second[3:5] == ["1", "-100.0"] and second[6:] == ["", "0.1"]
    assert float(second[2]) == pytest.approx(3.720075976020836e-44, rel=1e-14)  # a float32 sigmoid gives less
    assert float(second[5]) == pytest.approx(0.5249791875, abs=1e-9)
    assert 0 < 1 - float(third[2]) < 1e-8  # a float32 sigmoid gives 1
    assert third[5:] == ["nan", "0", "nan"]
    assert np.isnan(read_predictions(path).logits_NC[2, 1])


def test_predictions_that_cannot_be_written_leave_the_old_file(tmp_path: Path) -> None:
    logits, targets, mask = arrays(2)
    path = tmp_path / "p.csv"
    write_predictions(path, *predictions(["a", "b"], [1, 2], FINDINGS, logits, targets, mask))
    before = path.read_bytes()

    class Broken:
        def __str__(self) -> str:
            raise OSError("disk full")

    held, prob = predictions(["a", "b"], [1, 2], FINDINGS, logits, targets, mask)
    with pytest.raises(OSError, match="disk full"):
        write_predictions(path, replace(held, patient_ids=["1", Broken()]), prob)  # type: ignore[list-item]
    with pytest.raises(ValueError, match="1 files, 2 patients, 4 findings"):
        write_predictions(path, replace(held, files=["a"]), prob)
    with pytest.raises(ValueError, match=r"probabilities, targets and mask of \(2, 4\), \(1, 4\)"):
        write_predictions(path, held, prob[:1])
    with pytest.raises(ValueError, match="logits must be float32, got float64"):
        write_predictions(path, replace(held, logits_NC=prob), prob)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("file,patient\n", "header must be"),
        ("file,patient,Mass,logit:Mass,Mass_true\n", "header must be"),
        (f"{HEADER}\na,1,0.5,1\n", "line 2: 4 cells where the header has 5"),
        (f"{HEADER}\na,1,0.5,1,0\nb,1,0.5,2,0\n", "Mass_true, line 3: '2' is not one of '0', '1', ''"),
        (f"{HEADER}\na,1,0.5,1,high\n", "logit:Mass, line 2: 'high' is not a number"),
    ],
)
def test_predictions_that_cannot_be_read_are_an_error(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "p.csv").write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        read_predictions(tmp_path / "p.csv")
    assert "p.csv" in str(caught.value)


@pytest.mark.slow
def test_predictions_of_the_nih_test_split_take_seconds(tmp_path: Path) -> None:
    logits, targets, mask = arrays(25_596, 14)
    files, patients = ["x.png"] * len(logits), [1] * len(logits)
    names = [f"finding {column}" for column in range(14)]
    start = time.perf_counter()
    write_predictions(tmp_path / "p.csv", *predictions(files, patients, names, logits, targets, mask))
    assert time.perf_counter() - start < 10
