"""Order: a pure permutation, the same global batches for any world size, nothing padded."""

from __future__ import annotations

import bisect
import tracemalloc

import numpy as np
import pytest

from distcxr.data.order import BatchPlan, EvalOrder, TrainOrder, hash64, shuffled

WEIGHTS = np.random.default_rng(0).exponential(size=100)


def all_batches(
    num: int, global_batch: int, world: int, per_device: int, epoch: int, start: int = 0, weighted: bool = False
) -> list[list[int]]:
    """Global batches as the ranks together see them, each in global order."""
    rows = np.arange(1000, 1000 + num)
    seen: list[list[int]] = []
    for rank in range(world):
        plan = BatchPlan(global_batch, per_device, world, rank)
        order = TrainOrder(rows, seed=7, plan=plan, cumulative_N=np.cumsum(WEIGHTS[:num]) if weighted else None)
        micro = [row.tolist() for _, row in order.epoch(epoch, start)]
        assert len(micro) == (len(order) - start) * plan.accumulation
        for k in range(len(order) - start):
            if rank == 0:
                seen.append([])
            for part in micro[k * plan.accumulation : (k + 1) * plan.accumulation]:
                seen[k] += part
    return seen


@pytest.mark.parametrize("num", [1, 2, 3, 4, 5, 16, 17, 1000, 4097])
def test_shuffle_is_a_permutation(num: int) -> None:
    drawn = shuffled(np.arange(num), num, seed=3, epoch=1)
    assert sorted(drawn.tolist()) == list(range(num))


def test_shuffle_needs_no_neighbours() -> None:
    whole = shuffled(np.arange(500), 500, seed=3, epoch=1)
    alone = [shuffled(np.array([at]), 500, seed=3, epoch=1)[0] for at in (0, 17, 499)]
    assert alone == whole[[0, 17, 499]].tolist()


def test_epochs_and_seeds_differ_also_in_epoch_0() -> None:
    at = np.arange(200)
    orders = {tuple(shuffled(at, 200, seed=seed, epoch=epoch)) for seed in (0, 1, 2) for epoch in (0, 1, 2)}
    assert len(orders) == 9


def test_shuffle_spreads_evenly() -> None:
    """Each of 8 values lands on each of 8 places about as often: chi-squared of 49 degrees under its 0.1 % bound."""
    counts = np.zeros((8, 8))
    for seed in range(4000):
        counts[np.arange(8), shuffled(np.arange(8), 8, seed=seed, epoch=0)] += 1
    assert ((counts - 500) ** 2 / 500).sum() < 85.4


def test_hash_depends_on_order_of_words() -> None:
    assert hash64(1, 2) != hash64(2, 1)
    assert len(np.unique(hash64(0, np.arange(10_000, dtype=np.uint64)))) == 10_000


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("world", "per_device"), [(1, 8), (2, 16), (2, 4), (4, 8), (4, 2)])
def test_same_global_batches_on_any_world(world: int, per_device: int, weighted: bool) -> None:
    reference = all_batches(100, 32, 1, 32, epoch=2, weighted=weighted)
    assert all_batches(100, 32, world, per_device, epoch=2, weighted=weighted) == reference
    assert len(reference) == 3  # the tail shorter than the global batch is dropped
    distinct = len({row for batch in reference for row in batch})
    assert distinct < 80 if weighted else distinct == 96


@pytest.mark.parametrize("weighted", [False, True])
def test_start_skips_whole_global_batches(weighted: bool) -> None:
    whole = all_batches(100, 16, 2, 4, epoch=0, weighted=weighted)
    assert all_batches(100, 16, 2, 4, epoch=0, start=4, weighted=weighted) == whole[4:]


def test_a_weighted_sample_is_a_hash_compared_with_sums_of_weights() -> None:
    """If this moves, a resumed run draws other images. In Python's own integers, seed, stream, epoch and position."""
    sums, mask = np.cumsum(WEIGHTS).tolist(), 2**64 - 1
    expected = []
    for position in range(96):
        state = 0
        for word in (7, 0xBA1A9CE, 5, position):
            state = (state + word + 0x9E3779B97F4A7C15) & mask
            state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & mask
            state = (state ^ (state >> 27)) * 0x94D049BB133111EB & mask
            state ^= state >> 31
        expected.append(1000 + bisect.bisect_right(sums, (state >> 11) / 2**53 * sums[-1]))
    drawn = all_batches(100, 32, 1, 32, epoch=5, weighted=True)
    assert [row for batch in drawn for row in batch] == expected
    assert all_batches(100, 32, 1, 32, epoch=6, weighted=True) != drawn


def test_weights_are_how_often_a_row_is_sampled() -> None:
    """Over 400 epochs each of 10 rows comes up in proportion: chi-squared of 9 degrees under its 0.1 % bound."""
    weights = np.array([1, 2, 3, 4, 0.5, 6, 7, 8, 9, 10], dtype=np.float64)
    order = TrainOrder(np.arange(10), 0, BatchPlan(10, 10), np.cumsum(weights))
    drawn = np.concatenate([rows for epoch in range(400) for _, rows in order.epoch(epoch)])
    expected = 4000 * weights / weights.sum()
    assert ((np.bincount(drawn, minlength=10) - expected) ** 2 / expected).sum() < 27.9


def test_a_million_million_images_need_no_memory() -> None:
    """From anywhere in the epoch: distinct rows, the same for 1 and 4 ranks, in less than 4 MB."""
    rows, start = range(5, 5 + 10**12), 10**12 // 512 - 3
    seen = {}
    tracemalloc.start()
    for world in (1, 4):
        parts: list[list[int]] = [[], [], []]
        for rank in range(world):
            order = TrainOrder(rows, seed=1, plan=BatchPlan(512, 512 // world, world, rank))
            for part, (_, drawn) in zip(parts, order.epoch(2, start), strict=True):
                part += drawn.tolist()
        seen[world] = parts
    assert seen[1] == seen[4]
    drawn_rows = [row for part in seen[1] for row in part]
    assert len(set(drawn_rows)) == 3 * 512 and all(row in rows for row in drawn_rows)
    ends = list(EvalOrder(rows, BatchPlan(8, 8, 1)).epoch(0, 10**12 // 8 - 1))
    assert len(ends) == 1 and ends[0][1].tolist() == list(rows[-8:])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4e6, peak


def test_a_range_gives_what_its_numbers_would() -> None:
    plan = BatchPlan(16, 8, 1)
    of_range, of_array = (list(TrainOrder(rows, 3, plan).epoch(1)) for rows in (range(7, 207, 2), np.arange(7, 207, 2)))
    for (places, drawn), (same_places, same) in zip(of_range, of_array, strict=True):
        assert places.tolist() == same_places.tolist() and drawn.tolist() == same.tolist()


@pytest.mark.parametrize("world", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("num", [0, 1, 3, 10, 25])
def test_evaluation_sees_each_row_once(world: int, num: int) -> None:
    rows = np.arange(50, 50 + num)
    seen = []
    for rank in range(world):
        order = EvalOrder(rows, BatchPlan(world * 4, 4, world, rank))
        assert order.num_common <= len(order) <= order.num_common + 1
        parts = [part.tolist() for _, part in order.epoch()]
        assert len(parts) == len(order) and all(parts)
        seen += [row for part in parts for row in part]
    assert seen == rows.tolist()


def test_sizes_that_do_not_divide_name_those_that_do() -> None:
    with pytest.raises(ValueError, match=r"per_device_batch_size=5.*valid values: 1, 2, 4, 8, 16$"):
        BatchPlan(32, 5, 2, 0)
    with pytest.raises(ValueError, match=r"multiple of 3, for example 30 or 33"):
        BatchPlan(32, 4, 3, 0)
    assert BatchPlan(128, 16, 4, 1).accumulation == 2


def test_batch_larger_than_split() -> None:
    with pytest.raises(ValueError, match=r"global_batch_size=64 is larger than the training split of 40 images"):
        TrainOrder(np.arange(40), seed=0, plan=BatchPlan(64, 64))
