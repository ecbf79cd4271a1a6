"""Gathering in 1 to 4 processes, shards uneven and empty: the numbers of one process and of scikit-learn."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from cohort import scored
from numpy.typing import NDArray
from torch import Tensor

from distcxr.metrics.gather import gather_by_sample_id, gather_unreadable
from distcxr.metrics.summary import summarise

FINDINGS = ["Hernia", "Mass", "No Finding"]
NUM_SAMPLES = 211


def whole_split() -> tuple[Tensor, Tensor, NDArray[np.uint8], NDArray[np.uint8]]:
    """Logits with ties, ids with gaps in ascending order, targets and mask: the same in every process."""
    rng = np.random.default_rng(7)
    targets = (rng.random((NUM_SAMPLES, 3)) < [0.04, 0.2, 0.5]).astype(np.uint8)
    targets[0] = 1
    logits = (rng.normal(size=targets.shape) + targets).astype(np.float32).round(1)
    mask = (rng.random(targets.shape) < 0.9).astype(np.uint8)
    mask[0] = 1
    ids = np.sort(rng.choice(10**12, size=NUM_SAMPLES, replace=False))
    return torch.from_numpy(logits), torch.from_numpy(ids), targets, mask


def shard(how: str, rank: int, world_size: int) -> Tensor:
    """The rows of one rank, in an order of its own; all ranks together have each row once."""
    rows = torch.from_numpy(np.random.default_rng(3).permutation(NUM_SAMPLES))
    if how == "strided":
        return rows[rank::world_size]
    if how == "uneven":
        bounds = [0, *(NUM_SAMPLES * (r + 1) ** 3 // world_size**3 for r in range(world_size))]
        return rows[bounds[rank] : bounds[rank + 1]]
    owner = {"all on the last": world_size - 1, "all on the first": 0}[how]
    return rows if rank == owner else rows[:0]


def rank_and_world() -> tuple[int, int]:
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def check_exact(rank: int, world_size: int, shardings: list[str]) -> None:
    logits, ids, targets, mask = whole_split()
    patients = np.arange(NUM_SAMPLES)
    expected = summarise("val", scored(logits.numpy(), targets, mask, patients, FINDINGS))
    expected_ids = ids.flip(0)  # the order of the expected ids does not count
    for how in shardings:
        mine = shard(how, rank, world_size)
        gathered, gathered_ids = gather_by_sample_id(logits[mine], ids[mine], expected_ids)
        assert gathered.dtype == torch.float32 and gathered_ids.dtype == torch.int64
        assert torch.equal(gathered_ids, ids), how
        assert torch.equal(gathered, logits), how
        assert summarise("val", scored(gathered.numpy(), targets, mask, patients, FINDINGS)) == expected, how
    if rank > 0:
        return  # the same report, and importing scikit-learn in every process takes seconds
    from sklearn.metrics import roc_auc_score

    areas = []
    for column, name in enumerate(FINDINGS):
        keep = mask[:, column] == 1
        areas.append(roc_auc_score(targets[keep, column], logits.numpy()[keep, column]))
        area = expected.findings[name].auroc
        assert area is not None and abs(area - areas[-1]) <= 1e-12
    assert expected.macro_auroc is not None and abs(expected.macro_auroc - np.mean(areas[:2])) <= 1e-12


def check_refused(mine: Tensor, expected: NDArray[np.int64], message: str) -> None:
    logits, ids, _, _ = whole_split()
    with pytest.raises(RuntimeError, match=message):
        gather_by_sample_id(logits[mine], ids[mine], expected)


SHARDINGS = ["strided", "uneven", "all on the last", "all on the first"]


def test_one_process_without_a_process_group() -> None:
    assert not torch.distributed.is_initialized()
    check_exact(0, 1, SHARDINGS)


@pytest.mark.world_size(1)
def test_one_process_with_a_process_group() -> None:
    check_exact(*rank_and_world(), SHARDINGS)


@pytest.mark.world_size(2)
def test_two_ranks() -> None:
    check_exact(*rank_and_world(), SHARDINGS)


@pytest.mark.world_size(3)
def test_three_ranks() -> None:
    check_exact(*rank_and_world(), SHARDINGS)


@pytest.mark.world_size(4)
def test_four_ranks() -> None:
    check_exact(*rank_and_world(), SHARDINGS)


@pytest.mark.world_size(3)
def test_nothing_anywhere_is_nothing() -> None:
    none = np.zeros(0, dtype=np.int64)
    logits, ids = gather_by_sample_id(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), none)
    assert logits.shape == (0, 3) and ids.shape == (0,)


@pytest.mark.world_size(3)
def test_missing_id_is_named_on_every_rank() -> None:
    rank, world_size = rank_and_world()
    ids = whole_split()[1]
    mine = shard("strided", rank, world_size)
    lost = 0 if rank != 1 else int(mine[4])
    mine = mine if rank != 1 else mine[mine != lost]
    lost_id = int(ids[int(shard("strided", 1, world_size)[4])])
    check_refused(mine, ids.numpy(), f"scored 210 samples where 211 were due.*1 missing: {lost_id}$")


@pytest.mark.world_size(3)
def test_duplicated_id_is_named_on_every_rank() -> None:
    """The head of the list once more, as padding samplers do it."""
    rank, world_size = rank_and_world()
    ids = whole_split()[1]
    mine = shard("strided", rank, world_size)
    head = shard("strided", 0, world_size)[:1]
    if rank == 2:
        mine = torch.cat((mine, head))
    check_refused(mine, ids.numpy(), f"scored 212 samples.*1 duplicated: {int(ids[head])}$")


@pytest.mark.world_size(2)
def test_one_twice_and_another_never_is_caught_though_the_count_is_right() -> None:
    rank, world_size = rank_and_world()
    ids = whole_split()[1]
    first = shard("strided", 0, world_size)
    mine = shard("strided", rank, world_size)
    if rank == 0:
        mine = torch.cat((mine[1:], mine[1:2]))
    message = f"1 missing: {int(ids[first[0]])}; 1 duplicated: {int(ids[first[1]])}$"
    check_refused(mine, ids.numpy(), message)


@pytest.mark.world_size(2)
def test_id_nobody_asked_for_and_long_lists_are_shortened() -> None:
    rank, world_size = rank_and_world()
    ids = whole_split()[1]
    expected = np.concatenate((ids.numpy()[1:], 10**13 + np.arange(7)))
    first_five = ", ".join(str(10**13 + number) for number in range(5))
    message = f"7 missing: {first_five} and 2 more; 1 not expected: {int(ids[0])}$"
    check_refused(shard("uneven", rank, world_size), expected, message)


@pytest.mark.world_size(3)
def test_what_is_wrong_on_one_rank_is_an_error_on_all() -> None:
    rank, world_size = rank_and_world()
    logits, ids, _, _ = whole_split()
    mine = shard("strided", rank, world_size)
    with pytest.raises(ValueError, match=r"ranks \[1\]: logits must be float32"):
        gather_by_sample_id(logits[mine].to(torch.float64 if rank == 1 else torch.float32), ids[mine], ids)
    with pytest.raises(ValueError, match=r"ranks \[2\]"):
        gather_by_sample_id(logits[mine], ids[mine][: -1 if rank == 2 else None], ids)
    with pytest.raises(ValueError, match=r"\[2, 3, 3\] findings"):
        gather_by_sample_id(logits[mine][:, rank == 0 :], ids[mine], ids)


def test_expected_ids_that_repeat_are_an_error() -> None:
    with pytest.raises(ValueError, match="twice: 4"):
        gather_by_sample_id(torch.zeros(2, 1), torch.tensor([4, 5]), np.array([4, 4, 5]))


def test_logits_that_require_grad_come_back_without_it() -> None:
    logits, _ = gather_by_sample_id(torch.ones(1, 1, requires_grad=True), torch.tensor([4]), np.array([4]))
    assert not logits.requires_grad


@pytest.mark.world_size(3)
def test_unreadable_files_of_all_ranks() -> None:
    rank, _ = rank_and_world()
    per_rank = [[(2**40, "truncated: 'ä, b.png'"), (3, "zero bytes")], [], [(3, "zero bytes"), (1, "\ud800")]]
    expected = [(1, "\ud800"), (3, "zero bytes"), (2**40, "truncated: 'ä, b.png'")]
    assert gather_unreadable(per_rank[rank]) == expected
    assert gather_unreadable([]) == []


def test_unreadable_files_of_one_process() -> None:
    assert gather_unreadable([(5, "b"), (2, "a")]) == [(2, "a"), (5, "b")]
