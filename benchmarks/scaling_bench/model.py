"""The model of a training step's time on N GPUs.

    step = data + scalar + buffers + drag * c * (forward + backward + update) + exposed + straggler

    all_reduce(n)  = latency + 2 (N-1)/N * n / bandwidth
    latency        one node:      2 (N-1) * inside
                   several (M):   the smaller of a ring,  2 (N-1)/N * ((N-M) * inside + M * between),
                                  and a tree,             2 * (ceil(log2 M) * between + (GPUs of a node - 1) * inside)
    bandwidth      one node: inside; several: the smaller of inside and what all network cards of a node carry together
    scalar         all_reduce(4 bytes): the known labels of the global batch, before the forward pass
    buffers        all_reduce(BatchNorm's buffers) / 2: DDP's broadcast before the forward pass
    exposed        (1 - overlap) * all + overlap * rest, where
                   all  = the sum of all_reduce over the buckets,
                   rest = what is left of it after the backward pass if bucket i is sent as soon as it is full and
                          bucket i-1 has arrived: end_i = max(end_(i-1), full_i) + all_reduce(bucket_i)
    straggler      c * deviation of a step * the expected largest of N normal samples: all wait for the slowest
    drag           a rank computes this much slower beside others on its node than alone
    c              ranks of a node / ranks it has devices for: 1 on GPUs; on a CPU, where ranks share cores

When gradients are full comes from one device: the time at which the backward pass had made each of them, scaled with
the batch; any bucket size follows from it. Forward and backward of a batch b are `floor + slope * b`: in strong scaling
b shrinks and the floor (kernel launches) stays.

Assumed, and worth a doubt: the network is nobody else's, every link is as fast as the next, NCCL's choice is no worse
than ring or tree, the step's deviations are independent and normal (a node that is always slow is not), loading stays
as it was with a full node, and validation and checkpoints are left out. Sending bfloat16 costs no time of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

MIB = 2**20
DEFAULT_BUCKET_MB, FIRST_BUCKET_BYTES = 25, MIB  # PyTorch's own; with any other size the first bucket has that size
SCALAR_BYTES = 4


@dataclass(frozen=True)
class Link:
    """A way between two devices: seconds a message takes however small it is, and bytes a second."""

    latency_s: float
    bytes_per_s: float


@dataclass(frozen=True)
class Cluster:
    """Nodes of `node_gpus` devices; `between.bytes_per_s` is what all network cards of a node carry together."""

    node_gpus: int
    inside: Link
    between: Link

    def all_reduce_s(self, num_bytes: float, num_gpus: int) -> float:
        """Seconds of one all-reduce that nothing else is in the way of."""
        if num_gpus == 1:
            return 0.0
        nodes = math.ceil(num_gpus / self.node_gpus)
        inside, between = self.inside, self.between
        if nodes == 1:
            latency_s, bytes_per_s = 2 * (num_gpus - 1) * inside.latency_s, inside.bytes_per_s
        else:
            around = (num_gpus - nodes) * inside.latency_s + nodes * between.latency_s
            ring = 2 * (num_gpus - 1) / num_gpus * around
            hops = math.ceil(math.log2(nodes)) * between.latency_s
            tree = 2 * (hops + (self.node_gpus - 1) * inside.latency_s)
            latency_s, bytes_per_s = min(ring, tree), min(inside.bytes_per_s, between.bytes_per_s)
        return latency_s + 2 * (num_gpus - 1) / num_gpus * num_bytes / bytes_per_s


@dataclass(frozen=True)
class Line:
    """Seconds of a pass over a batch: `floor_s + slope_s * batch`."""

    floor_s: float
    slope_s: float

    def at(self, batch: float) -> float:
        """Seconds for a batch."""
        return self.floor_s + self.slope_s * batch


@dataclass(frozen=True)
class Bucket:
    """Gradients that are sent together, in bytes of float32, and the second of the backward pass they are all there."""

    full_s: float
    num_bytes: int


@dataclass(frozen=True)
class Model:
    """All that was measured of a recipe on a device, and what follows from it.

    Attributes:
        batch: images of a device in weak scaling; all images of the global batch in strong scaling.
        gradients: (share of the backward pass, bytes) of each gradient, in the order they are made.
        deviation: standard deviation of a step's time, as a share of it.
        devices: ranks that a node has devices for.
        assumed: names of the attributes that nothing was measured for.
    """

    batch: int
    data_s: float
    forward: Line
    backward: Line
    update_s: float
    gradients: tuple[tuple[float, int], ...]
    buffer_bytes: int
    deviation: float
    overlap: float
    drag: float
    devices: int
    assumed: tuple[str, ...] = ()

    def compute_s(self, batch: float) -> float:
        """Forward, backward and update of a device that is alone."""
        return self.forward.at(batch) + self.backward.at(batch) + self.update_s

    def buckets(self, batch: float, bucket_mb: int) -> list[Bucket]:
        """As DDP fills them: in the order of the gradients, closed when they have reached their size."""
        backward_s = self.backward.at(batch)
        limit = FIRST_BUCKET_BYTES if bucket_mb == DEFAULT_BUCKET_MB else bucket_mb * MIB
        filled, found = 0, []
        for share, num_bytes in self.gradients:
            filled += num_bytes
            if filled >= limit:
                found.append(Bucket(share * backward_s, filled))
                filled, limit = 0, bucket_mb * MIB
        if filled:
            found.append(Bucket(backward_s, filled))
        return found

    def step(
        self, num_gpus: int, cluster: Cluster, *, strong: bool = False,
        bucket_mb: int = DEFAULT_BUCKET_MB, compressed: bool = False,
    ) -> Step | None:  # fmt: skip
        """A step of `num_gpus`; None where the global batch has no image for each of them."""
        batch = self.batch / num_gpus if strong else float(self.batch)
        if batch < 1:
            return None
        crowd = max(1.0, min(num_gpus, cluster.node_gpus) / self.devices)
        slower = crowd * (self.drag if num_gpus > 1 else 1.0)
        slowed = replace(
            self,
            forward=Line(self.forward.floor_s * slower, self.forward.slope_s * slower),
            backward=Line(self.backward.floor_s * slower, self.backward.slope_s * slower),
            update_s=self.update_s * slower,
        )
        bits = 0.5 if compressed else 1.0

        def reduce_s(num_bytes: float) -> float:
            return crowd * cluster.all_reduce_s(num_bytes, num_gpus)

        buckets = slowed.buckets(batch, bucket_mb)
        takes_s = [reduce_s(bucket.num_bytes * bits) for bucket in buckets]
        rest_s = left_over(buckets, takes_s, slowed.backward.at(batch)) if num_gpus > 1 else 0.0
        return Step(
            batch=batch, num_gpus=num_gpus, data_s=self.data_s, compute_s=slowed.compute_s(batch),
            before_s=reduce_s(SCALAR_BYTES) + reduce_s(self.buffer_bytes) / 2,
            exchange_s=sum(takes_s), rest_s=rest_s,
            exposed_s=(1 - self.overlap) * sum(takes_s) + self.overlap * rest_s,
            straggler_s=crowd * self.deviation * self.compute_s(batch) * largest_of(num_gpus),
        )  # fmt: skip


@dataclass(frozen=True)
class Step:
    """Where the time of a predicted step goes; `exchange_s` is the whole of it, `exposed_s` what training waits for."""

    batch: float
    num_gpus: int
    data_s: float
    compute_s: float
    before_s: float
    exchange_s: float
    rest_s: float
    exposed_s: float
    straggler_s: float

    @property
    def total_s(self) -> float:
        """Seconds from one update to the next."""
        return self.data_s + self.before_s + self.compute_s + self.exposed_s + self.straggler_s

    @property
    def img_per_s(self) -> float:
        """Of all devices together."""
        return self.batch * self.num_gpus / self.total_s


def left_over(buckets: Sequence[Bucket], seconds: Sequence[float], backward_s: float) -> float:
    """What is still being exchanged after the backward pass, if buckets are sent one after the other."""
    end_s = 0.0
    for bucket, takes_s in zip(buckets, seconds, strict=True):
        end_s = max(end_s, bucket.full_s) + takes_s
    return max(0.0, end_s - backward_s)


def largest_of(num: int) -> float:
    """The expected largest of `num` samples of a standard normal (Blom 1958)."""
    return NormalDist().inv_cdf((num - 0.375) / (num + 0.25)) if num > 1 else 0.0
