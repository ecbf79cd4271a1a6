"""The order of an epoch's samples: pure functions of (seed, epoch, position), with no random state and no padding.

Global batch k of an epoch is positions `k*G : (k+1)*G` of the epoch's shuffled split, whatever the number of
ranks; rank r takes its contiguous slice of it, cut into micro-batches. So 1, 2 and 4 ranks see the same global
batches, and a resumed run starts at any global batch without replaying what came before.

Shapes: B micro-batch, N samples of the split.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 8
_BLOCK = 16384
"""Positions that are shuffled at once: one by one, numpy's fixed cost of a call would dominate."""

_WEIGHTED = 0xBA1A9CE  # keeps weighted sampling apart from other hashes of the same seed

_WORD = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def hash64(*words: int | NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Mix integers, or uint64 arrays that broadcast, into 64 well-spread bits, uint64 of the broadcast shape: the
    splitmix64 finaliser, chained over the words, of which the order matters.

    Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
    """
    state: int | NDArray[np.uint64] = 0
    for word in words:
        if isinstance(state, int) and isinstance(word, int):  # plain integers cost a tenth of numpy's
            state = (state + word + _GOLDEN) & _WORD
            state = (state ^ (state >> 30)) * _FIRST & _WORD
            state = (state ^ (state >> 27)) * _SECOND & _WORD
            state ^= state >> 31
        else:
            before, more = (np.asarray(part).astype(np.uint64, copy=False) for part in (state, word))
            with np.errstate(over="ignore"):  # wrapping at 64 bits is the point
                state = np.asarray(before + more)
                state += np.uint64(_GOLDEN)
                state = _mix(state)
    return np.asarray(state, dtype=np.uint64)


def uniform(*words: int | NDArray[np.uint64]) -> NDArray[np.float64]:
    """`hash64` as numbers in [0, 1)."""
    return (hash64(*words) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser itself; uses up `state`."""
    state ^= state >> np.uint64(30)
    state *= np.uint64(_FIRST)
    state ^= state >> np.uint64(27)
    state *= np.uint64(_SECOND)
    state ^= state >> np.uint64(31)
    return state


@functools.lru_cache(maxsize=4)
def _round_keys(seed: int, epoch: int) -> tuple[np.uint64, ...]:
    """What each round of the shuffle adds before it mixes, so that `_mix(right + key)` is `hash64(key, right)`."""
    keys = hash64(seed, epoch, np.arange(_ROUNDS, dtype=np.uint64)).tolist()
    return tuple(np.uint64((int(hash64(key)) + _GOLDEN) & _WORD) for key in keys)


def shuffled(positions: NDArray[np.int64], num: int, *, seed: int, epoch: int) -> NDArray[np.int64]:
    """Where the epoch's shuffle sends `positions`, int64 [B]: one permutation of `range(num)`, point by point.

    A Feistel network permutes the next power of four; a value outside `range(num)` walks on until it is inside
    (under four steps on average). Nothing of size `num` is ever built.
    """
    assert num > 0
    half_bits = np.uint64(max(1, ((num - 1).bit_length() + 1) // 2))
    mask = np.uint64((1 << int(half_bits)) - 1)
    values = positions.astype(np.uint64)
    walking, current = np.arange(len(values)), values
    while len(walking):
        left, right = current >> half_bits, current & mask
        for key in _round_keys(seed, epoch):
            left, right = right, left ^ (_mix(right + key) & mask)
        current = (left << half_bits) | right
        values[walking] = current
        outside = current >= num
        walking, current = walking[outside], current[outside]
    return values.astype(np.int64)


@dataclass(frozen=True)
class BatchPlan:
    """How one global batch is shared out: `per_device_batch_size x accumulation x world_size = global_batch_size`.
    Raises ValueError: when the sizes do not divide, naming the values that do."""

    global_batch_size: int
    per_device_batch_size: int
    world_size: int = 1
    rank: int = 0

    def __post_init__(self) -> None:
        assert 0 <= self.rank < self.world_size
        if self.global_batch_size % self.world_size:
            below = self.global_batch_size // self.world_size * self.world_size
            near = [value for value in (below, below + self.world_size) if value]
            raise ValueError(
                f"train.global_batch_size={self.global_batch_size} can't be shared by {self.world_size} processes; "
                f"use a multiple of {self.world_size}, for example {' or '.join(map(str, near))}"
            )
        share = self.global_batch_size // self.world_size
        if share % self.per_device_batch_size:
            valid = [str(size) for size in range(1, share + 1) if share % size == 0]
            raise ValueError(
                f"train.per_device_batch_size={self.per_device_batch_size} does not divide the {share} images that "
                f"each of {self.world_size} processes has of train.global_batch_size={self.global_batch_size}; "
                f"valid values: {', '.join(valid)}"
            )

    @property
    def accumulation(self) -> int:
        """Micro-batches a rank runs for one update."""
        return self.global_batch_size // (self.per_device_batch_size * self.world_size)

    def micro_batch(self, micro_step: int) -> int:
        """The number in the global batch of this rank's micro-batch."""
        return self.rank * self.accumulation + micro_step


Positions = tuple[NDArray[np.int64], NDArray[np.int64]]
"""One micro-batch of an order: positions in the epoch and the index rows of the samples there, each int64 [B]."""

Rows = NDArray[np.int64] | range
"""The index rows of a split, int64 [N]; or a range, where the row numbers alone would not fit into memory.
An order needs nothing else of size N."""


def _at(rows: Rows, positions: NDArray[np.int64]) -> NDArray[np.int64]:
    return rows.start + rows.step * positions if isinstance(rows, range) else rows[positions]


@dataclass(frozen=True)
class TrainOrder:
    """Shuffled micro-batches of one rank, `plan.accumulation` to a global batch; a part-filled last one is dropped."""

    rows: Rows  # to sample from; an epoch has as many samples as there are rows
    seed: int
    plan: BatchPlan
    # None takes every row once an epoch. Otherwise sums of the rows' weights up to each: sampling is with replacement,
    # with probabilities in proportion to the weights.
    cumulative_N: NDArray[np.float64] | None = None
    # The rows of each epoch, where they change; an epoch is as long as `rows` all the same: what there is more is left
    # out, what there is less begins again.
    rows_of: Callable[[int], NDArray[np.int64]] | None = None
    notes: tuple[str, ...] = ()  # lines for the log about how rows and weights came about

    def __post_init__(self) -> None:
        if len(self.rows) < self.plan.global_batch_size:
            raise ValueError(
                f"train.global_batch_size={self.plan.global_batch_size} is larger than the training split of "
                f"{len(self.rows)} images; lower it to {len(self.rows)} or less"
            )

    def __len__(self) -> int:
        """Global batches of an epoch."""
        return len(self.rows) // self.plan.global_batch_size

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Positions]:
        """This rank's micro-batches from global batch `start` to the epoch's end."""
        plan, size = self.plan, self.plan.per_device_batch_size
        share = plan.global_batch_size // plan.world_size
        mine = np.arange(plan.rank * share, (plan.rank + 1) * share, dtype=np.int64)
        step = max(1, _BLOCK // share)
        rows_of_epoch = self.rows if self.rows_of is None else self.rows_of(epoch)
        for block in range(start, len(self), step):
            firsts = np.arange(block, min(block + step, len(self)), dtype=np.int64) * plan.global_batch_size
            positions = (firsts[:, None] + mine).reshape(-1)
            rows = _at(rows_of_epoch, self._sampled(positions, epoch, len(rows_of_epoch)))
            for micro_start in range(0, len(rows), size):
                yield positions[micro_start : micro_start + size], rows[micro_start : micro_start + size]

    def _sampled(self, positions: NDArray[np.int64], epoch: int, num: int) -> NDArray[np.int64]:
        """Which of the epoch's `num` rows, counted from 0, it has at `positions`."""
        if self.cumulative_N is None:
            return shuffled(positions % num, num, seed=self.seed, epoch=epoch)
        point = uniform(self.seed, _WEIGHTED, epoch, positions.astype(np.uint64)) * self.cumulative_N[-1]
        # Without its last entry: a product rounded up to the whole sum still finds the last row.
        sampled: NDArray[np.int64] = np.searchsorted(self.cumulative_N[:-1], point, side="right")
        return sampled


@dataclass(frozen=True)
class EvalOrder:
    """Every row of a split once, in order, shared out without padding: ranks may differ in length or have none."""

    rows: Rows
    plan: BatchPlan

    def __len__(self) -> int:
        """Micro-batches of this rank."""
        first, end = self._shard()
        return -(-(end - first) // self.plan.per_device_batch_size)

    @property
    def num_common(self) -> int:
        """Micro-batches that every rank has: so many times, between two of them, ranks can ask each other something."""
        return -(-(len(self.rows) // self.plan.world_size) // self.plan.per_device_batch_size)

    def epoch(self, epoch: int = 0, start: int = 0) -> Iterator[Positions]:
        """This rank's micro-batches from its number `start` on; the same in every epoch."""
        first, end = self._shard()
        size = self.plan.per_device_batch_size
        for micro_start in range(first + start * size, end, size):
            positions = np.arange(micro_start, min(micro_start + size, end), dtype=np.int64)
            yield positions, _at(self.rows, positions)

    def _shard(self) -> tuple[int, int]:
        num, world = len(self.rows), self.plan.world_size
        return num * self.plan.rank // world, num * (self.plan.rank + 1) // world
