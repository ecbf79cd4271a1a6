"""Who may see which images."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from distcxr.data.index import MissingDataError, SampleIndex
from distcxr.data.labels import NIH14
from distcxr.data.read import read_index
from distcxr.data.sources import nih
from distcxr.data.splits import (
    NAMES,
    Splits,
    by_patient,
    check_leak,
    describe_hashes,
    findings_without_positives,
    from_index,
    from_lists,
    official,
)
from distcxr.recipe.data import Data

NUM_PATIENTS = 400


def name_of(patient: int, number: int) -> str:
    return f"{patient:08d}_{number:03d}.png"


def make_index(root: Path, patients: int | list[int] = NUM_PATIENTS, skipped: list[str] | None = None) -> SampleIndex:
    """Patient p has 1 + p % 4 images, patients count from 1; the first findings alternate."""
    numbers = range(1, patients + 1) if isinstance(patients, int) else patients
    rows = [(patient, number) for patient in numbers for number in range(1 + patient % 4)]
    rows = [row for row in rows if name_of(*row) not in (skipped or [])]
    num = len(rows)
    targets_NC = np.zeros((num, 3), dtype=np.uint8)
    targets_NC[np.arange(num), np.arange(num) % 2] = 1
    return SampleIndex(
        root=root,
        findings=("Mass", "Edema", "Hernia"),
        path=np.array([f"images/{name_of(*row)}".encode() for row in rows], dtype=np.bytes_),
        patient_id=np.array([patient for patient, _ in rows], dtype=np.int64),
        targets_NC=targets_NC,
        mask_NC=np.ones_like(targets_NC),
        age=np.full(num, np.nan, dtype=np.float32),
        sex=np.full(num, ""),
        view=np.full(num, ""),
        split=np.full(num, ""),
        label_hash="ab" * 32,
        skipped=np.array([name.encode() for name in skipped or []], dtype=np.bytes_),
    )


def write_lists(root: Path, patients: int = NUM_PATIENTS, num_train: int = 300) -> None:
    """Official lists as NIH writes them: sorted, without a newline at the end."""
    index = make_index(root, patients)
    names = index.file_names(range(len(index)))
    in_train = index.patient_id <= num_train
    for file, chosen in (("train_val_list.txt", in_train), ("test_list.txt", ~in_train)):
        (root / file).write_text("\n".join(names[row] for row in np.flatnonzero(chosen)))


def patients_of(index: SampleIndex, splits: Splits) -> dict[str, set[int]]:
    return {name: set(index.patient_id[splits.rows(name)].tolist()) for name in NAMES}


def test_official(tmp_path: Path) -> None:
    write_lists(tmp_path)
    index = make_index(tmp_path)
    splits = official(index, val_fraction=0.2, seed=3)
    found = patients_of(index, splits)
    assert found["train"] | found["val"] == set(range(1, 301))
    assert found["test"] == set(range(301, 401))
    assert not found["train"] & found["val"]
    assert 36 <= len(found["val"]) <= 84  # 60 expected, 3.5 standard deviations
    rows = np.concatenate([splits.train, splits.val, splits.test])
    assert sorted(rows.tolist()) == list(range(len(index)))
    assert all(splits.rows(name).dtype == np.int64 and (np.diff(splits.rows(name)) > 0).all() for name in NAMES)


def test_lists_and_splits_are_hashed(tmp_path: Path) -> None:
    write_lists(tmp_path)
    index = make_index(tmp_path)
    splits = official(index, val_fraction=0.2, seed=3)
    for file in ("train_val_list.txt", "test_list.txt"):
        assert splits.list_hashes[file] == hashlib.sha256((tmp_path / file).read_bytes()).hexdigest()
    for name in NAMES:
        names = "\n".join(sorted(index.file_names(splits.rows(name))))
        assert splits.list_hashes[name] == hashlib.sha256(names.encode()).hexdigest()
    other = official(index, val_fraction=0.2, seed=4)
    assert other.list_hashes["train"] != splits.list_hashes["train"]
    assert other.list_hashes["test"] == splits.list_hashes["test"]


def reference_place(seed: int, patient: int) -> float:
    """splitmix64, chained over seed, stream and patient, in Python's own integers."""
    state, mask = 0, 2**64 - 1
    for word in (seed, 0x5B117, patient):
        state = (state + word + 0x9E3779B97F4A7C15) & mask
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & mask
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB & mask
        state ^= state >> 31
    return (state >> 11) / 2**53


@pytest.mark.parametrize("seed", [0, 1, 2**40])
def test_a_split_is_the_hash_of_seed_and_patient(tmp_path: Path, seed: int) -> None:
    """If this moves, new runs can't be compared with old ones."""
    index = make_index(tmp_path)
    found = patients_of(index, by_patient(index, ratios=(0.7, 0.1, 0.2), seed=seed))
    place = {patient: reference_place(seed, patient) for patient in range(1, NUM_PATIENTS + 1)}
    assert found["train"] == {patient for patient in place if place[patient] < 0.7}
    assert found["test"] == {patient for patient in place if place[patient] >= 0.8}
    write_lists(tmp_path)
    carved = patients_of(index, official(index, val_fraction=0.2, seed=seed))
    assert carved["val"] == {patient for patient in range(1, 301) if place[patient] < 0.2}


def test_skipped_and_added_images_move_no_patient(tmp_path: Path) -> None:
    write_lists(tmp_path)
    whole = make_index(tmp_path)
    gone = [name for name in whole.file_names(range(len(whole))) if int(name[:8]) % 3 == 0]
    part = make_index(tmp_path, skipped=gone)
    assert len(part) == len(whole) - len(gone)
    makers: list[Callable[[SampleIndex], Splits]] = [
        lambda index: official(index, val_fraction=0.2, seed=3),
        lambda index: by_patient(index, ratios=(0.7, 0.1, 0.2), seed=3),
    ]
    for make in makers:
        before, after = patients_of(whole, make(whole)), patients_of(part, make(part))
        present = set(part.patient_id.tolist())
        assert {name: before[name] & present for name in NAMES} == after
    more = make_index(tmp_path, NUM_PATIENTS + 100)
    grown = patients_of(more, by_patient(more, ratios=(0.7, 0.1, 0.2), seed=3))
    before = patients_of(whole, by_patient(whole, ratios=(0.7, 0.1, 0.2), seed=3))
    assert all(before[name] <= grown[name] for name in NAMES)


def test_a_larger_val_fraction_keeps_its_patients(tmp_path: Path) -> None:
    write_lists(tmp_path)
    index = make_index(tmp_path)
    val = [patients_of(index, official(index, val_fraction=share, seed=0))["val"] for share in (0.1, 0.2, 0.5)]
    assert val[0] < val[1] < val[2]


def test_random_shares_are_met_on_average(tmp_path: Path) -> None:
    index = make_index(tmp_path)
    counts = np.array(
        [
            [len(np.unique(index.patient_id[splits.rows(name)])) for name in NAMES]
            for splits in (by_patient(index, ratios=(0.6, 0.1, 0.3), seed=seed) for seed in range(25))
        ]
    )
    assert (counts.sum(axis=1) == NUM_PATIENTS).all()
    # The mean of 10,000 draws of a share p lies within 5 standard errors, sqrt(p (1 - p) / 10,000) <= 0.005.
    np.testing.assert_allclose(counts.mean(axis=0) / NUM_PATIENTS, [0.6, 0.1, 0.3], atol=0.025)
    assert len(np.unique(counts[:, 0])) > 1


def test_bad_ratios(tmp_path: Path) -> None:
    for ratios in ((0.5, 0.5, 0.5), (1.2, -0.4, 0.2), (0.5, 0.5), (float("nan"),) * 3):
        with pytest.raises(ValueError, match="ratios"):
            Data.model_validate({"split": "by_patient", "ratios": ratios})
    with pytest.raises(ValueError, match=r"test split is empty: .* share of data\.ratios=\[0\.8, 0\.2, 0\.0\]"):
        by_patient(make_index(tmp_path), ratios=(0.8, 0.2, 0.0), seed=0)


@pytest.mark.parametrize("val_fraction", [0.0, 1.0, -1.0, float("nan")])
def test_bad_val_fraction(tmp_path: Path, val_fraction: float) -> None:
    write_lists(tmp_path)
    with pytest.raises(ValueError, match=r"data\.val_fraction is"):
        official(make_index(tmp_path), val_fraction=val_fraction, seed=0)


def write_three(root: Path) -> dict[str, Path]:
    """Lists of patients 1-4, 5-6 and 7-8, with a byte-order mark, CRLF and blank lines in one of them."""
    index = make_index(root, 8)
    files = {}
    for name, patients in (("train", range(1, 5)), ("val", range(5, 7)), ("test", range(7, 9))):
        names = [file for file in index.file_names(range(len(index))) if int(file[:8]) in patients]
        files[name] = root / f"my_{name}.txt"
        files[name].write_text("\n".join(names) + "\n")
    files["val"].write_bytes(b"\xef\xbb\xbf\r\n" + files["val"].read_bytes().replace(b"\n", b"\r\n") + b"\r\n")
    return files


def test_explicit_lists(tmp_path: Path) -> None:
    files = write_three(tmp_path)
    index = make_index(tmp_path, 8)
    splits = from_lists(index, **files, val_fraction=0.1, seed=0)
    assert patients_of(index, splits) == {"train": {1, 2, 3, 4}, "val": {5, 6}, "test": {7, 8}}
    assert set(splits.list_hashes) == {*NAMES, "my_train.txt", "my_val.txt", "my_test.txt"}
    relative = {name: Path(path.name) for name, path in files.items()}
    again = from_lists(index, **relative, val_fraction=0.1, seed=0)
    assert again.list_hashes == splits.list_hashes


def test_list_files_of_one_name_keep_their_hashes(tmp_path: Path) -> None:
    files = write_three(tmp_path)
    for name, path in files.items():
        (tmp_path / name).mkdir()
        files[name] = path.rename(tmp_path / name / "train")
    splits = from_lists(make_index(tmp_path, 8), **files, val_fraction=0.1, seed=0)
    assert set(splits.list_hashes) == {*NAMES, *map(str, files.values())}


def test_images_in_no_list_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = write_three(tmp_path)
    with caplog.at_level(logging.WARNING):
        from_lists(make_index(tmp_path, 9), **files, val_fraction=0.1, seed=0)
    assert "2 of 22 images are in no list" in caplog.text


def append(path: Path, *names: str) -> None:
    with path.open("a") as file:
        file.write("".join(f"{name}\n" for name in names))


@pytest.mark.parametrize("first, second", [("train", "val"), ("train", "test"), ("val", "test")])
def test_a_patient_in_two_lists(tmp_path: Path, first: str, second: str) -> None:
    files = write_three(tmp_path)
    index = make_index(tmp_path, [*range(1, 9), 41, 42, 43, 44, 45])
    append(files[first], *(name_of(patient, 0) for patient in (41, 42, 43, 45)))
    append(files[second], *(name_of(patient, 1) for patient in (41, 42, 43, 45)))
    with pytest.raises(ValueError, match=rf"4 patients .* both {first} and {second}.*patients 41, 42, 43, \.\.\."):
        from_lists(index, **files, val_fraction=0.1, seed=0)


def test_official_lists_that_leak(tmp_path: Path) -> None:
    write_lists(tmp_path, num_train=300)
    test = tmp_path / "test_list.txt"
    test.write_text(test.read_text() + "\n" + name_of(7, 3))
    train = tmp_path / "train_val_list.txt"
    train.write_text(train.read_text().replace(name_of(7, 3) + "\n", ""))
    with pytest.raises(ValueError, match=r"1 patients have images in both (train|val) and test.*patients 7\."):
        official(make_index(tmp_path), val_fraction=0.2, seed=0)


def with_own_split(root: Path, train: range, val: range, test: range) -> SampleIndex:
    index = make_index(root, 40)
    patient = index.patient_id
    names = np.full(len(index), "", dtype="U5")
    for name, patients in (("train", train), ("val", val), ("test", test)):
        names[np.isin(patient, patients)] = name
    return replace(index, split=names)


def test_a_split_that_the_dataset_names(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    index = with_own_split(tmp_path, range(1, 21), range(21, 26), range(30, 41))
    splits = from_index(index, val_fraction=0.5, seed=0)
    assert patients_of(index, splits) == {"train": {*range(1, 21)}, "val": {*range(21, 26)}, "test": {*range(30, 41)}}
    assert set(splits.list_hashes) == set(NAMES)
    assert f"{sum(1 + patient % 4 for patient in range(26, 30))} of {len(index)} images are in no split" in caplog.text


def test_validation_patients_are_taken_from_train_where_the_dataset_names_none(tmp_path: Path) -> None:
    index = with_own_split(tmp_path, range(1, 31), range(0), range(31, 41))
    found = patients_of(index, from_index(index, val_fraction=0.3, seed=2))
    place = {patient: reference_place(2, patient) for patient in range(1, 31)}
    assert found["val"] == {patient for patient in place if place[patient] < 0.3} != set()
    assert found["train"] == {*place} - found["val"] and found["test"] == {*range(31, 41)}
    first = min(place, key=place.__getitem__)
    assert patients_of(index, from_index(index, val_fraction=1e-9, seed=2))["val"] == {first}, "one at least"


def test_a_dataset_without_a_test_split_is_sent_to_by_patient(tmp_path: Path) -> None:
    index = with_own_split(tmp_path, range(1, 31), range(31, 41), range(0))
    with pytest.raises(ValueError, match=r"data\.split=official: .* no image into test\. Take data\.split=by_patient"):
        from_index(index, val_fraction=0.1, seed=0)
    with pytest.raises(ValueError, match=r"no image into train or test\..*data\.columns\.split"):
        from_index(make_index(tmp_path, 40), val_fraction=0.1, seed=0)


def test_a_dataset_s_own_split_that_leaks(tmp_path: Path) -> None:
    index = with_own_split(tmp_path, range(1, 21), range(21, 31), range(31, 41))
    index.split[np.flatnonzero(index.patient_id == 35)[0]] = "train"
    with pytest.raises(ValueError, match=r"1 patients have images in both train and test.*patients 35\."):
        from_index(index, val_fraction=0.1, seed=0)


def test_check_leak_looks_at_any_splits(tmp_path: Path) -> None:
    index = make_index(tmp_path, 3)  # rows: patient 1 twice, 2 three times, 3 four times
    check_leak(index, Splits(np.arange(0, 2), np.arange(2, 5), np.arange(5, 9), {}))
    with pytest.raises(ValueError, match="1 patients have images in both train and val"):
        check_leak(index, Splits(np.arange(0, 3), np.arange(3, 5), np.arange(5, 9), {}))


@pytest.mark.parametrize("name", ["train", "val", "test"])
def test_bad_lists(tmp_path: Path, name: str) -> None:
    index = make_index(tmp_path, 8)

    def refused(problem: str) -> None:
        with pytest.raises(ValueError, match=rf"my_{name}\.txt.*{problem}"):
            from_lists(index, **files, val_fraction=0.1, seed=0)

    files = write_three(tmp_path)
    append(files[name], *(f"x{number}.png" for number in range(5)))
    refused(r"5 images that the label file lacks: x0\.png, x1\.png, x2\.png, \.\.\.")
    files = write_three(tmp_path)
    append(files[name], *files[name].read_text(encoding="utf-8-sig").split()[:2])
    refused("2 images more than once")
    files[name].write_text("\n\n")
    refused("is empty")
    files[name].write_bytes(b"\xff\xfe\x00")
    refused("can't be read")
    files[name].unlink()
    refused("can't be read")


def test_official_lists_that_are_not_there(tmp_path: Path) -> None:
    write_lists(tmp_path)
    (tmp_path / "test_list.txt").unlink()
    with pytest.raises(MissingDataError, match=r"has no test_list\.txt") as caught:
        official(make_index(tmp_path), val_fraction=0.1, seed=0)
    assert "nihcc.app.box.com" in str(caught.value)


def test_lists_may_name_images_that_were_skipped(tmp_path: Path) -> None:
    files = write_three(tmp_path)
    skipped = [name_of(7, number) for number in range(4)]
    index = make_index(tmp_path, 8, skipped=skipped)
    assert patients_of(index, from_lists(index, **files, val_fraction=0.1, seed=0))["test"] == {8}


@pytest.mark.parametrize("name, patients", [("train", range(1, 5)), ("val", range(5, 7)), ("test", range(7, 9))])
def test_a_split_with_all_images_skipped(tmp_path: Path, name: str, patients: range) -> None:
    files = write_three(tmp_path)
    whole = make_index(tmp_path, 8)
    skipped = [file for file in whole.file_names(range(len(whole))) if int(file[:8]) in patients]
    index = make_index(tmp_path, 8, skipped=skipped)
    with pytest.raises(ValueError, match=rf"the {name} split is empty: no image that .*my_{name}\.txt names has"):
        from_lists(index, **files, val_fraction=0.1, seed=0)


def test_the_error_of_an_empty_split_names_the_key_to_change(tmp_path: Path) -> None:
    write_lists(tmp_path, patients=6, num_train=4)
    index = make_index(tmp_path, 6)
    with pytest.raises(ValueError, match=r"the train split is empty: of the 4 patients .* lower data\.val_fraction"):
        official(index, val_fraction=1 - 1e-9, seed=0)
    with pytest.raises(ValueError, match=r"the val split is empty: none of the 6 patients .*data\.ratios"):
        by_patient(index, ratios=(0.5, 1e-9, 0.5 - 1e-9), seed=0)
    gone = make_index(tmp_path, 6, skipped=[name_of(p, f) for p in range(1, 5) for f in range(1 + p % 4)])
    with pytest.raises(ValueError, match=r"split is empty: no image that .*train_val_list\.txt names has a file"):
        official(gone, val_fraction=0.5, seed=0)


def test_findings_without_positives(tmp_path: Path) -> None:
    index = make_index(tmp_path, 8)
    assert findings_without_positives(index, np.arange(len(index))) == ("Hernia",)
    assert findings_without_positives(index, np.array([0, 2])) == ("Edema", "Hernia")
    index.mask_NC[0, 0] = 0  # an unknown label is no positive
    assert findings_without_positives(index, np.array([0, 1])) == ("Mass", "Hernia")


def test_unknown_hashes_are_called_unknown(tmp_path: Path) -> None:
    write_lists(tmp_path)
    index = make_index(tmp_path, skipped=[name_of(1, 0)])
    nih = Data(dataset="nih")
    lines = describe_hashes(nih, index, official(index, val_fraction=0.2, seed=0))
    assert lines[0] == "labels: not a known NIH file (abababab…): figures are not comparable with published ones"
    assert lines[1].startswith("list train_val_list.txt: not a known NIH file")
    assert lines[3].startswith(f"images: {len(index):,} of {len(index) + 1:,} have a file: figures are not")
    splits = by_patient(index, ratios=(0.7, 0.1, 0.2), seed=0)
    random = describe_hashes(Data(split="by_patient"), index, splits)
    assert any("split at random by patient" in line for line in random)
    other = describe_hashes(Data(dataset="csv", split="by_patient"), index, splits)
    assert other[0] == "labels: of csv (abababab…)" and not any("NIH" in line for line in other)


def test_the_real_lists() -> None:
    source = os.environ.get("DISTCXR_NIH_ROOT")
    if not source:
        pytest.skip("DISTCXR_NIH_ROOT is not set: no real data here")
    part = read_index(Data(missing="skip"), Path(source)).with_findings(NIH14)
    splits = official(part, val_fraction=0.1, seed=0)
    lines = describe_hashes(Data(), part, splits)
    assert lines[:3] == [
        "labels: NIH v2020 (dc1d2df6…)",
        "list train_val_list.txt: NIH train_val_list.txt (61fbe896…)",
        "list test_list.txt: NIH test_list.txt (38ca5ef7…)",
    ]
    assert sum(len(splits.rows(name)) for name in NAMES) == len(part)
    assert nih.KNOWN_HASHES[splits.list_hashes["test_list.txt"]] == "NIH test_list.txt"
