"""What is checked where scores and labels come in, and how they are sliced."""

from __future__ import annotations

import numpy as np
import pytest
from cohort import Cohort, cohort, known, scored


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_finding_with_scores_that_are_not_finite_holds_no_samples_and_its_counts(bad: float) -> None:
    logits, targets, mask, patients = cohort()
    mask[[3, 17]] = 1
    logits[3, 0] = logits[17, 2] = logits[17, 3] = logits[3, 3] = bad
    held = scored(logits, targets, mask, patients)
    assert [one.num_not_finite for one in held.known] == [1, 0, 1, 2]
    for column in (0, 2, 3):
        one = held.known[column]
        assert len(one.scores_M) == len(one.targets_M) == len(one.patient_M) == one.num_patients == 0
        assert (one.num, one.num_positive) == (mask[:, column].sum(), (targets * mask)[:, column].sum())
        assert one.reason == f"{one.num_not_finite} of {one.num} logits are not finite" and one.ranks is None
        assert not one.is_known_N.any()
    assert held.known[1].reason is None and held.known[1].num == mask[:, 1].sum()


def test_slices_are_the_known_labels_in_order() -> None:
    logits, targets, mask, patients = cohort(1)
    held = scored(logits, targets, mask, patients)
    assert len(held) == 400 and held.num_patients == len(np.unique(patients))
    np.testing.assert_array_equal(np.unique(patients)[held.patient_N], patients)
    for column, one in enumerate(held.known):
        keep = mask[:, column] == 1
        np.testing.assert_array_equal(one.scores_M, logits[keep, column])
        np.testing.assert_array_equal(one.targets_M, targets[keep, column])
        np.testing.assert_array_equal(one.patient_M, held.patient_N[keep])
        assert one.scores_M.flags.c_contiguous and one.targets_M.flags.c_contiguous


def test_some_of_the_samples_are_what_they_are_alone_but_for_the_numbers_of_patients() -> None:
    logits, targets, mask, patients = cohort(2)
    inside = np.random.default_rng(0).random(400) < 0.3
    part = scored(logits, targets, mask, patients).within(inside)
    alone = scored(logits[inside], targets[inside], mask[inside], patients[inside])
    assert len(part) == len(alone) and part.num_patients == len(np.unique(patients)) > alone.num_patients
    for one, two in zip(part.known, alone.known, strict=True):
        np.testing.assert_array_equal(one.scores_M, two.scores_M)
        np.testing.assert_array_equal(one.targets_M, two.targets_M)
        np.testing.assert_array_equal(one.is_known_N, two.is_known_N)
        assert (one.num, one.num_positive, one.num_patients) == (two.num, two.num_positive, two.num_patients)
    again = part.within(np.arange(len(part)) % 2 == 0)
    assert again.known[0].num == np.count_nonzero(part.known[0].is_known_N[::2])


def test_doubles_become_ranks_and_thresholds_go_there_and_back() -> None:
    scores, targets = np.array([0.7, 0.1, 0.7 + 2.0**-53, 0.1]), np.uint8([1, 0, 1, 0])
    one = known(scores, targets)
    assert one.scores_M.tolist() == [1, 0, 2, 0] and one.scores_M.dtype == np.float32
    assert [one.to_rank(at) for at in (0.1, 0.5, 0.7, 0.9)] == [0, 1, 1, 3]
    assert [one.to_score(rank) for rank in (0, 1, 2)] == [0.1, 0.7, 0.7 + 2.0**-53]
    plain = known(scores.astype(np.float32), targets)
    assert plain.levels is None and plain.to_rank(0.5) == plain.to_score(0.5) == 0.5


def test_text_names_patients_as_numbers_do() -> None:
    logits, targets, mask, patients = cohort(3)
    text = np.array([f"{patient:06d}" for patient in patients])
    np.testing.assert_array_equal(
        scored(logits, targets, mask, text).patient_N, scored(logits, targets, mask, patients).patient_N
    )


def test_arrays_are_left_as_they_were() -> None:
    data = cohort(4)
    before = Cohort(*(part.copy() for part in data))
    scored(*data)
    for one, two in zip(data, before, strict=True):
        np.testing.assert_array_equal(one, two)


def test_labels_other_than_0_1_and_unknown_are_refused_with_their_rows() -> None:
    logits, targets, mask, patients = cohort()
    mask[5], targets[5, 1] = 1, 2
    with pytest.raises(ValueError, match="targets other than 0 and 1 where the mask is 1 in 1 of 400 rows: 5"):
        scored(logits, targets, mask, patients)
    targets[5, 1], mask[6, 0] = 1, 255
    with pytest.raises(ValueError, match="mask other than 0 and 1 in 1 of 400 rows: 6"):
        scored(logits, targets, mask, patients)
    mask[:9] = 2
    with pytest.raises(ValueError, match=r"in 9 of 400 rows: 0, 1, 2, 3, 4 and 4 more$"):
        scored(logits, targets, mask, patients)


def test_logits_are_not_taken_for_probabilities() -> None:
    logits, targets, mask, patients = cohort()
    logits[:] = 0.5
    mask[[1, 2]] = 1
    logits[1, 0], logits[2, 3] = 1.5, -0.1
    with pytest.raises(ValueError, match=r"outside 0 to 1 \(are they logits\?\) in 2 of 400 rows: 1, 2"):
        scored(logits, targets, mask, patients, scale="probability")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c._replace(logits_NC=c.logits_NC.astype(np.float16)), "float32 or float64, got float16"),
        (lambda c: c._replace(logits_NC=c.logits_NC[:, 0]), r"must be \[N, C\] with C = 4"),
        (lambda c: c._replace(logits_NC=c.logits_NC[:, :3]), r"must be \[N, C\] with C = 4"),
        (lambda c: c._replace(targets_NC=c.targets_NC.astype(np.int64)), "targets must be uint8 or bool"),
        (lambda c: c._replace(mask_NC=c.mask_NC.astype(np.int8)), "mask must be uint8 or bool"),
        (lambda c: c._replace(patient_id=c.patient_id[:-1]), "399 patient ids, but 400 rows"),
        (lambda c: c._replace(patient_id=c.patient_id.astype(np.float64)), "integers or text"),
    ],
)
def test_wrong_arrays_are_refused(change: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scored(*change(cohort()))  # type: ignore[operator]


def test_names_that_do_not_fit_are_refused() -> None:
    data = cohort()
    with pytest.raises(ValueError, match="repeat a name"):
        scored(*data, findings=["A", "B", "B", "C"])
    with pytest.raises(ValueError, match="C = 3 findings"):
        scored(*data, findings=["A", "B", "C"])
    held = scored(*data)
    assert held.columns(None) == [0, 1, 2, 3] and held.columns(["C", "A"]) == [2, 0]
    with pytest.raises(ValueError, match=r"\['Z'\] are not scored; scored are \['A', 'B', 'C', 'D'\]"):
        held.columns(["A", "Z"])
    with pytest.raises(ValueError, match="repeat a name"):
        held.columns(["A", "A"])
