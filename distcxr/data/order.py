"""Which draw comes when: pure functions of (seed, epoch, position), with no random state and no padding.

Global batch k of an epoch is positions `k*G : (k+1)*G` of the epoch's shuffled split, whatever the number of
ranks; rank r takes its contiguous slice of it, cut into micro-batches. So 1, 2 and 4 ranks see the same global
batches, and a resumed run starts at any global batch without replaying what came before.

Shapes: B micro-batch, N samples of the split.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 8


def hash64(*words: int | NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Mix integers into 64 well-spread bits (the splitmix64 finaliser, chained over the words).

    Args:
        words: integers or uint64 arrays that broadcast together; the order of the words matters.

    Returns:
        uint64 array of the broadcast shape.

    Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
    """
    state = np.zeros((), dtype=np.uint64)
    with np.errstate(over="ignore"):  # wrapping at 64 bits is the point
        for word in words:
            state = (state + np.asarray(word).astype(np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = state ^ (state >> np.uint64(31))
    return np.asarray(state, dtype=np.uint64)


def shuffled(positions: NDArray[np.int64], num: int, *, seed: int, epoch: int) -> NDArray[np.int64]:
    """Where the epoch's shuffle sends `positions`: one permutation of `range(num)`, evaluated point by point.

    A Feistel network permutes the next power of four; a value outside `range(num)` walks on until it is inside
    (under four steps on average). Nothing of size `num` is ever built.

    Args:
        positions: int64 [B], each in `range(num)`.

    Returns:
        int64 [B], distinct for distinct positions.
    """
    assert num > 0
    half_bits = np.uint64(max(1, ((num - 1).bit_length() + 1) // 2))
    mask = np.uint64((1 << int(half_bits)) - 1)
    keys = hash64(seed, epoch, np.arange(_ROUNDS, dtype=np.uint64))
    values = positions.astype(np.uint64)
    walking = np.ones(values.shape, dtype=bool)
    while walking.any():
        left, right = values[walking] >> half_bits, values[walking] & mask
        for key in keys:
            left, right = right, left ^ (hash64(int(key), right) & mask)
        values[walking] = (left << half_bits) | right
        walking = values >= num
    return values.astype(np.int64)


@dataclass(frozen=True)
class BatchPlan:
    """How one global batch is shared out: `per_device_batch_size x accumulation x world_size = global_batch_size`.

    Raises:
        ValueError: when the sizes do not divide, naming the values that do.
    """

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


Draws = tuple[NDArray[np.int64], NDArray[np.int64]]
"""One micro-batch of an order: positions in the epoch and the index rows drawn there, each int64 [B]."""


@dataclass(frozen=True)
class TrainOrder:
    """Shuffled micro-batches of one rank, `plan.accumulation` to a global batch; a part-filled last one is dropped.

    Attributes:
        rows: int64 [N], the index rows of the split.
    """

    rows: NDArray[np.int64]
    seed: int
    plan: BatchPlan

    def __post_init__(self) -> None:
        if len(self.rows) < self.plan.global_batch_size:
            raise ValueError(
                f"train.global_batch_size={self.plan.global_batch_size} is larger than the training split of "
                f"{len(self.rows)} images; lower it to {len(self.rows)} or less"
            )

    def __len__(self) -> int:
        """Global batches of an epoch."""
        return len(self.rows) // self.plan.global_batch_size

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Draws]:
        """This rank's micro-batches from global batch `start` to the epoch's end."""
        plan = self.plan
        share = plan.global_batch_size // plan.world_size
        for global_batch in range(start, len(self)):
            first = global_batch * plan.global_batch_size + plan.rank * share
            for micro_start in range(first, first + share, plan.per_device_batch_size):
                positions = np.arange(micro_start, micro_start + plan.per_device_batch_size, dtype=np.int64)
                yield positions, self.rows[shuffled(positions, len(self.rows), seed=self.seed, epoch=epoch)]


@dataclass(frozen=True)
class EvalOrder:
    """Every row of a split once, in order, shared out without padding: ranks may differ in length or have none."""

    rows: NDArray[np.int64]
    plan: BatchPlan

    def __len__(self) -> int:
        """Micro-batches of this rank."""
        first, end = self._shard()
        return -(-(end - first) // self.plan.per_device_batch_size)

    def epoch(self, epoch: int = 0, start: int = 0) -> Iterator[Draws]:
        """This rank's micro-batches from its number `start` on; the same in every epoch."""
        first, end = self._shard()
        size = self.plan.per_device_batch_size
        for micro_start in range(first + start * size, end, size):
            positions = np.arange(micro_start, min(micro_start + size, end), dtype=np.int64)
            yield positions, self.rows[positions]

    def _shard(self) -> tuple[int, int]:
        num, world = len(self.rows), self.plan.world_size
        return num * self.plan.rank // world, num * (self.plan.rank + 1) // world
