"""Filters and limits on the splits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictures import index_of
from pydantic import ValidationError

from distcxr.data.index import SampleIndex
from distcxr.data.splits import NAMES, NOT_COMPARABLE, Splits, by_patient
from distcxr.data.where import narrow
from distcxr.recipe.data import Data

LEARNT = ("Mass", "Edema")
NUM = 1200


def make_labels() -> SampleIndex:
    """Three findings beside No Finding, some unknown; ages, sexes and views, some unknown; 4 images a patient."""
    rng = np.random.default_rng(0)
    shown = (rng.random((NUM, 3)) < (0.3, 0.2, 0.1)).astype(np.uint8)
    targets_NC = np.concatenate([shown, (shown.sum(axis=1, keepdims=True) == 0).astype(np.uint8)], axis=1)
    return replace(
        index_of(Path("/data"), [f"images/{row:04d}.png" for row in range(NUM)]),
        findings=("Mass", "Edema", "Other", "No Finding"),
        targets_NC=targets_NC,
        mask_NC=(rng.random((NUM, 4)) < 0.9).astype(np.uint8),
        patient_id=np.arange(NUM) // 4,
        age=np.where(rng.random(NUM) < 0.1, np.nan, rng.integers(0, 90, NUM)).astype(np.float32),
        sex=rng.choice(["M", "F", ""], NUM),
        view=rng.choice(["PA", "AP", "LATERAL", ""], NUM),
    )


LABELS = make_labels()
WHOLE = by_patient(LABELS, ratios=(0.6, 0.2, 0.2), seed=1)


def narrowed(labels: SampleIndex = LABELS, splits: Splits = WHOLE, **keys: Any) -> Splits:
    return narrow(Data.model_validate(keys), labels, splits, LEARNT)


def label(row: int, name: str) -> int | None:
    """1, 0, or None where the label is unknown."""
    column = LABELS.findings.index(name)
    return int(LABELS.targets_NC[row, column]) if LABELS.mask_NC[row, column] else None


CONDITIONS = {
    "findings": (["Mass", "Other"], lambda row: label(row, "Mass") == 1 or label(row, "Other") == 1),
    "without": (["No Finding", "Other"], lambda row: label(row, "No Finding") == label(row, "Other") == 0),
    "view": (["PA", "LATERAL"], lambda row: LABELS.view[row] in ("PA", "LATERAL")),
    "sex": ("F", lambda row: LABELS.sex[row] == "F"),
    "age": ((18, 64), lambda row: 18 <= LABELS.age[row] <= 64),
}


@pytest.mark.parametrize("keys", [[key] for key in CONDITIONS] + [["without", "sex"], ["findings", "view", "age"]])
def test_conditions_hold_in_every_split(keys: list[str]) -> None:
    found = narrowed(where={key: CONDITIONS[key][0] for key in keys})
    for name in NAMES:
        expected = [row for row in WHOLE.rows(name).tolist() if all(CONDITIONS[key][1](row) for key in keys)]
        assert found.rows(name).tolist() == expected and 0 < len(expected) < len(WHOLE.rows(name))
        assert found.list_hashes[name] != WHOLE.list_hashes[name]
    assert len(found.notes) == 3 and all(note.startswith("data.where: ") for note in found.notes)
    assert f"{len(found.train)} of {len(WHOLE.train)} train images" in found.notes[0]
    assert NOT_COMPARABLE in found.notes[2] and NOT_COMPARABLE not in found.notes[0]


def test_what_is_unknown_meets_no_condition() -> None:
    without = narrowed(where={"without": ["Other"]})
    with_it = narrowed(where={"findings": ["Other"]})
    neither = set(WHOLE.train.tolist()) - set(without.train.tolist()) - set(with_it.train.tolist())
    assert neither == {row for row in WHOLE.train.tolist() if label(row, "Other") is None} != set()
    every_age = narrowed(where={"age": (0, 200)})
    assert len(every_age.train) == np.count_nonzero(~np.isnan(LABELS.age[WHOLE.train])) < len(WHOLE.train)


def test_without_conditions_the_splits_stay_as_they_are() -> None:
    found = narrowed()
    assert found.list_hashes == WHOLE.list_hashes and found.notes == ()
    assert all(found.rows(name).tolist() == WHOLE.rows(name).tolist() for name in NAMES)


def test_limits_choose_at_random_and_the_same_every_time() -> None:
    found = narrowed(max_train_samples=300, max_val_samples=20, max_test_samples=NUM)
    assert [len(found.rows(name)) for name in NAMES] == [300, 20, len(WHOLE.test)]
    for name in NAMES:
        assert np.isin(found.rows(name), WHOLE.rows(name)).all() and (np.diff(found.rows(name)) > 0).all()
    assert found.list_hashes["test"] == WHOLE.list_hashes["test"]
    assert found.notes == (
        f"data.max_train_samples: 300 of {len(WHOLE.train):,} train images",
        f"data.max_val_samples: 20 of {len(WHOLE.val):,} val images",
    )
    again = narrowed(max_train_samples=300, max_val_samples=20, max_test_samples=50)
    assert again.train.tolist() == found.train.tolist() and len(again.test) == 50 and NOT_COMPARABLE in again.notes[2]
    other = narrowed(max_train_samples=300, split_seed=1)
    assert other.train.tolist() != found.train.tolist()
    larger = narrowed(max_train_samples=400)
    assert np.isin(found.train, larger.train).all()
    # The mean place in the split of 300 of about 720 rows: uniform, within 4 standard errors.
    places = np.searchsorted(WHOLE.train, found.train) / len(WHOLE.train)
    assert abs(places.mean() - 0.5) < 4 * 0.29 / 300**0.5


def test_limits_come_after_the_conditions() -> None:
    both = narrowed(where={"sex": "F"}, max_train_samples=100)
    assert len(both.train) == 100 and (LABELS.sex[both.train] == "F").all()


@pytest.mark.parametrize("key", ["findings", "without"])
def test_a_condition_on_a_finding_that_the_label_file_lacks(key: str) -> None:
    with pytest.raises(ValueError, match=rf"data\.where\.{key}: unknown finding 'mass', did you mean 'Mass'\? Valid: "):
        narrowed(where={key: ["Edema", "mass"]})


@pytest.mark.parametrize("key", ["findings", "without", "view"])
def test_an_empty_condition_is_refused(key: str) -> None:
    with pytest.raises(ValidationError, match=rf"data\.where\.{key} is an empty list"):
        Data.model_validate({"where": {key: []}})


@pytest.mark.parametrize("name", NAMES)
def test_conditions_that_empty_a_split_say_how_many_meet_each(name: str) -> None:
    sex = LABELS.sex.copy()
    sex[WHOLE.rows(name)] = ["M"] * 5 + [""] * (len(WHOLE.rows(name)) - 5)
    labels = replace(LABELS, sex=sex, age=np.full(NUM, 50, np.float32))
    with pytest.raises(ValueError, match=rf"data\.where leaves the {name} split empty\. Of its .*: sex F 0, age 20 to"):
        narrowed(labels, where={"sex": "F", "age": (20, 60)})


def test_a_condition_on_an_absent_attribute_names_the_column() -> None:
    labels = replace(LABELS, sex=np.full(NUM, ""), age=np.full(NUM, 50, np.float32))
    with pytest.raises(ValueError, match=r"has no sex of any image \(data\.dataset: csv needs data\.columns\.sex\)$"):
        narrowed(labels, where={"sex": "F", "age": (20, 60)})


def test_keys_that_leave_a_finding_nothing_to_learn_from() -> None:
    rare = np.flatnonzero(np.isin(np.arange(NUM), WHOLE.train) & (LABELS.view == "AP"))[:3]
    targets_NC, mask_NC = LABELS.targets_NC.copy(), np.ones_like(LABELS.mask_NC)
    targets_NC[:, 1] = 0
    targets_NC[rare, 1] = 1
    labels = replace(LABELS, targets_NC=targets_NC, mask_NC=mask_NC)
    with pytest.raises(ValueError, match=r"data\.where keeps .*, and none of those that show Edema \(3\)\. .*findings"):
        narrowed(labels, where={"view": ["PA"]})
    with pytest.raises(ValueError, match=r"data\.max_train_samples=20 keeps 20 of .* show Edema \(3\)"):
        narrowed(labels, max_train_samples=20)
    assert len(narrow(Data(max_train_samples=20), labels, WHOLE, ("Mass",)).train) == 20
    targets_NC[:, 1] = 0  # never there at all: nothing that the recipe did
    assert len(narrowed(labels, max_train_samples=20).train) == 20
