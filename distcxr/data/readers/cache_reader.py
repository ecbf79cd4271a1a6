"""Batches out of the decoded cache: one copy from its memory map, or none where the GPU holds the images.

    requests ──► rows of the cache ──► gather into a new (pinned) tensor ──► Pixels
                                  └──► index_select in the device's memory ──┘

Shapes: B batch, S side, K images in the device's memory.
"""

from __future__ import annotations

import weakref
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distcxr.data.loader import Pixels, Request
from distcxr.data.readers.prefetch import Job, PrefetchingReader
from distcxr.data.store.cache_format import DecodedCache
from distcxr.data.store.store_files import UNREADABLE, StoreError, shown_size

_UPLOAD_IMAGES = 256
_ALIGNMENT = 64


class CacheReader(PrefetchingReader["_Gathered", list["_Gathered"]]):
    """A `PixelReader` on the decoded cache. Damage to it is a RuntimeError, where it is read.

    With a GPU, a thread gathers ahead into pinned memory, of which PyTorch keeps a block back until the copy out of
    it is done. Without, the caller gathers: the copy is all there is to do, and a thread would only add handing over.
    """

    def __init__(
        self,
        cache: DecodedCache,
        *,
        device: torch.device,
        resident: Literal["host", "device"] = "host",
        device_gb: float | None = None,
        prefetch: int = 2,
        max_batch_size: int,
        first_rows: NDArray[np.int64],
    ) -> None:
        """With `resident="device"`, copy the images there, which reads and checks all of them.

        Args:
            cache: opened for the index; `close` closes it.
            device_gb: GB (10^9 bytes) of the device's memory that images may take; None takes what all need.
            prefetch: requests gathered ahead, with a GPU.
            first_rows: rows of the index that go into the device's memory first where not all fit.

        Raises:
            StoreError: the device has too little free memory.
            RuntimeError: the cache is damaged.
        """
        self._cache, self._device = cache, device
        self._max_batch_size = max_batch_size
        self._unreadable = cache.entries["state"] == UNREADABLE
        self._any_unreadable = bool(self._unreadable.any())
        self._pin = device.type == "cuda"
        self._blocks = _Blocks(max(max_batch_size, _UPLOAD_IMAGES), cache.image_size**2)
        self._slot = np.full(len(cache.entries), -1)  # position of a cache row in `_resident`
        self._resident = torch.empty(0, cache.image_size**2, dtype=torch.uint8, device=device)
        self.where = f"decoded images come from {cache.files[0]}"
        if resident == "device":
            self._upload(device_gb, first_rows)
            every = "all " if (self._slot[cache.row_of] >= 0).all() else ""
            held = f"{every}{len(self._resident):,} of {len(np.unique(cache.row_of)):,}"
            self.where += f", {held} held in the memory of {device}"
        super().__init__(num_threads=int(self._pin), prefetch=prefetch, name="cache", device=self._resident.device)

    def close(self) -> None:
        """Stop the thread, free the device's memory and close the cache; the reader can't be used again."""
        super().close()
        self._resident = self._resident[:0].clone()
        self._cache.close()

    def _job(self, requests: list[Request]) -> Job[_Gathered]:
        return Job(requests, [partial(self._gather, request) for request in requests])

    def _collect(self, launched: list[_Gathered]) -> list[Pixels]:
        return [self._assemble(gathered) for gathered in launched]

    def _gather(self, sample_id: NDArray[np.int64]) -> _Gathered:
        """The host's part of a request."""
        assert 0 < len(sample_id) <= self._max_batch_size
        rows = self._cache.row_of[sample_id]
        if len(self._resident):
            slots = self._slot[rows]
            here, away = np.flatnonzero(slots >= 0), np.flatnonzero(slots < 0)
            return _Gathered(rows, slots[here], np.argsort(np.concatenate([here, away])), self._on_host(rows[away]))
        return _Gathered(rows, None, None, self._on_host(rows))

    def _on_host(self, rows: NDArray[np.int64]) -> Tensor:
        if self._pin:
            pixels = torch.empty(len(rows), self._cache.image_size**2, dtype=torch.uint8, pin_memory=True)
        else:
            pixels = torch.from_numpy(self._blocks.take(len(rows)))
        if len(rows):
            self._cache.gather(rows, pixels.numpy())
        return pixels

    def _assemble(self, gathered: _Gathered) -> Pixels:
        rows, slots, positions, pixels = gathered
        if slots is not None and positions is not None:
            on_device = self._resident.index_select(0, self._to_device(slots))
            if len(pixels):
                both = torch.cat([on_device, pixels.to(self._device, non_blocking=True)])
                on_device = both.index_select(0, self._to_device(positions))
            pixels = on_device
        bad = np.flatnonzero(self._unreadable[rows]).tolist() if self._any_unreadable else ()
        return Pixels(
            pixels.view(len(rows), 1, self._cache.image_size, self._cache.image_size),
            tuple((position, self._cache.reason(int(rows[position]))) for position in bad),
        )

    def _to_device(self, numbers: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(numbers).to(self._device, non_blocking=True)

    def _upload(self, device_gb: float | None, first_rows: NDArray[np.int64]) -> None:
        """Fill `_resident` [K, S*S] and `_slot`: `first_rows` first, then the others as the index has them."""
        row_bytes = self._cache.image_size**2
        both = np.concatenate([self._cache.row_of[first_rows], self._cache.row_of])
        rows = both[np.sort(np.unique(both, return_index=True)[1])]
        if device_gb is not None:
            rows = rows[: int(device_gb * 1e9 / row_bytes)]
        self._check_free(len(rows) * row_bytes)
        self._resident = torch.empty(len(rows), row_bytes, dtype=torch.uint8, device=self._device)
        for start in range(0, len(rows), _UPLOAD_IMAGES):
            part = rows[start : start + _UPLOAD_IMAGES]
            self._resident[start : start + len(part)].copy_(self._on_host(part), non_blocking=True)
        self._slot[rows] = np.arange(len(rows))

    def _check_free(self, needed: int) -> None:
        if self._device.type != "cuda":
            return
        free = torch.cuda.mem_get_info(self._device)[0]
        if needed > free:
            raise StoreError(
                f"data.cache.resident=device needs {shown_size(needed)} and {self._device} has {shown_size(free)} "
                "free, and the network needs memory, too: set data.cache.device_gb to what images may take"
            )


class _Blocks:
    """Ordinary memory for batches, used again once nobody has the batch any more.

    Left to malloc, the heap grew by 300 MB with batches of 256 at 224 px, and each page of a fresh mapping would cost
    a fault. Blocks start at a multiple of 64 bytes, as `DecodedCache.gather` likes it.
    """

    def __init__(self, rows: int, row_bytes: int) -> None:
        self._rows, self._row_bytes = rows, row_bytes
        self._free: list[NDArray[np.uint8]] = []

    def take(self, rows: int) -> NDArray[np.uint8]:
        """uint8 [rows, row bytes]; the block is free again when this array is gone, which torch.from_numpy holds."""
        if self._free:
            block = self._free.pop()  # the last one given back: parts of it are still in the processor's cache
        else:
            block = np.empty(self._rows * self._row_bytes + _ALIGNMENT, dtype=np.uint8)
            block = block[-block.ctypes.data % _ALIGNMENT :]
        array = block[: rows * self._row_bytes].reshape(rows, self._row_bytes)
        weakref.finalize(array, self._free.append, block).atexit = False
        return array


class _Gathered(NamedTuple):
    """What the host has to hand over of one request."""

    rows: NDArray[np.int64]  # of the cache, [B]
    slots: NDArray[np.int64] | None  # where those are that the device holds
    positions: NDArray[np.int64] | None  # the order that undoes "device first, then host"
    pixels: Tensor  # uint8 [images, S*S] of those that are not on the device, all if slots is None
