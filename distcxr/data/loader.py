"""`Loader`: makes batches of an order of samples and a `PixelReader`, and joins labels and augmentation parameters.

    order (positions) ──► Request (sample ids) ──► PixelReader ──► Pixels ──► Batch
                          what to read             torch, dali, cache         + labels, mask, augmentation parameters

A `PixelReader` only turns sample ids into uint8 pixels, in the order asked; it alone knows where their bytes
are. Order, labels, augmentation parameters and the handling of bad files are here, so every reader gives the same
batches.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distcxr.data.batch import Batch
from distcxr.data.index import SampleIndex
from distcxr.data.laterals import side_by_side, with_laterals
from distcxr.data.metadata import metadata_of
from distcxr.data.order import EvalOrder, TrainOrder

_BLOCK = 16
"""Micro-batches for which augmentation parameters are made at once: one by one, that would cost more than anything but
the copy of the pixels when these come from memory."""

AugmentParameters = Callable[[int, NDArray[np.int64]], Tensor]
"""(epoch, positions int64 [B]) -> float32 [B, P]."""


Request = NDArray[np.int64]
"""Samples of one micro-batch to read, in order: rows of the index, [B]."""


class Pixels(NamedTuple):
    """The answer to a request."""

    pixels: Tensor  # uint8 [B, 1, S, S], pinned or on the GPU where that helps; 0 for a file that can't be read
    unreadable: tuple[tuple[int, str], ...]  # (position in the batch, reason) of each such file


class PixelReader(Protocol):
    """Turns requests into pixels, in order, reading ahead as it likes.

    `read` may be called again once its iterator is used up or closed; closing it early leaves nothing running.
    A file that can't be decoded is reported in `Pixels.unreadable`, it never raises; a reader that itself breaks
    (a worker killed) raises RuntimeError within seconds.
    """

    where: str
    """One line for the start-up message: which device decodes, with how many workers or threads."""

    def read(self, requests: Iterable[Request]) -> Generator[Pixels]: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Loader:
    """Batches of one split, read by `reader` in the order that `order` gives.

    Train and validation may share a reader, one epoch iterator at a time, so that the memory of two pipelines does
    not add up. The loader does not close it.
    """

    index: SampleIndex
    order: TrainOrder | EvalOrder
    reader: PixelReader
    augment: AugmentParameters
    metadata: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Length of an epoch: global batches in training, this rank's micro-batches in evaluation."""
        return len(self.order)

    def epoch(self, epoch: int, start: int = 0) -> Generator[Batch]:
        """Micro-batches of an epoch, from `start` (counted as `len` counts) to its end."""
        ahead: deque[tuple[Request, Tensor]] = deque()  # what the reader was asked for and has not answered

        def requests() -> Iterator[Request]:
            micro_batches = self.order.epoch(epoch, start)
            while block := list(islice(micro_batches, _BLOCK)):
                positions = np.concatenate([positions for positions, _ in block])
                parameters, done = self.augment(epoch, positions), 0
                for _, sample_id in block:
                    ahead.append((sample_id, parameters[done : done + len(sample_id)]))
                    done += len(sample_id)
                    yield request(self.index, sample_id, self.metadata)

        with closing(self.reader.read(requests())) as answers:
            for answer in answers:
                sample_id, augment = ahead.popleft()
                yield make_batch(self.index, sample_id, answer, augment, self.metadata)


def request(index: SampleIndex, sample_id: NDArray[np.int64], metadata: tuple[str, ...]) -> Request:
    """What a reader is asked for, for `make_batch`."""
    return with_laterals(index, sample_id) if "lateral" in metadata else sample_id


def make_batch(
    index: SampleIndex, sample_id: NDArray[np.int64], answer: Pixels, augment: Tensor, metadata: tuple[str, ...]
) -> Batch:
    """What a reader made of a request, with labels, parameters and metadata; no label is known of a bad file."""
    pixels, bad = answer
    if "lateral" in metadata:
        pixels, bad = side_by_side(index, sample_id, pixels, bad)
    mask = index.mask_NC[sample_id]
    if bad:
        mask[[position for position, _ in bad]] = 0
    return Batch(
        pixels=pixels,
        targets=torch.from_numpy(index.targets_NC[sample_id]),
        mask=torch.from_numpy(mask),
        sample_id=torch.from_numpy(sample_id),
        augment=augment,
        metadata=metadata_of(index, sample_id, metadata),
        unreadable=tuple((int(sample_id[position]), reason) for position, reason in bad),
    )
