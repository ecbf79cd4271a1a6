"""Batches out of the arrays of a ChestMNIST file: pixels that are decoded already, resized where the recipe wants.

    requests ──► threads: rows of the arrays, resize ──► Pixels, in the order asked

Shapes: B batch, N images of a split, S side of the arrays' images.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from distcxr.data.index import SampleIndex
from distcxr.data.loader import Pixels, Request
from distcxr.data.pixels.decode import load_kernels
from distcxr.data.pixels.resize import resize_grey
from distcxr.data.readers.prefetch import Job, PrefetchingReader
from distcxr.data.sources.chestmnist import SPLITS, array_rows, read_array


class ArrayReader(PrefetchingReader[Pixels, list[Pixels]]):
    """A `PixelReader` on the arrays of a ChestMNIST file. No image of an array is ever unreadable.

    Arrays that the file holds unpacked are mapped, and ranks share their memory. Packed ones, as MedMNIST's are, are
    read whole by each rank: 88 MB at 28 px, 5.6 GB at 224. To resize an image from 28 px to 224 takes 0.1 ms.
    """

    def __init__(
        self, index: SampleIndex, image_size: int, *, num_threads: int, prefetch: int = 2, pin_memory: bool
    ) -> None:
        """Open the arrays of an index from `read_chestmnist`; each thread works `prefetch` requests ahead.
        Raises ValueError: an array is not there, is not uint8 [N, S, S], or has another length than its labels."""
        load_kernels()
        self._image_size, self._pin_memory = image_size, pin_memory
        self._split, self._row = array_rows(index)
        self._arrays = [self._open(index, number) for number in range(len(SPLITS))]
        side = self._arrays[0].shape[1]
        mapped = "mapped" if isinstance(self._arrays[0], np.memmap) else "in memory"
        self.where = f"decoded images of {side} x {side} pixels come from {index.root}, {mapped}"
        super().__init__(num_threads=num_threads, prefetch=max(1, num_threads * prefetch), name="arrays")

    def close(self) -> None:
        """Stop the threads and let go of the arrays; the reader can't be used again."""
        super().close()
        self._arrays = []

    def _job(self, requests: list[Request]) -> Job[Pixels]:
        return Job(requests, [partial(self._make, request) for request in requests])

    def _collect(self, launched: list[Pixels]) -> list[Pixels]:
        return launched

    def _make(self, request: Request) -> Pixels:
        size = self._image_size
        pixels = torch.empty(len(request), 1, size, size, dtype=torch.uint8, pin_memory=self._pin_memory)
        positions = zip(self._split[request].tolist(), self._row[request].tolist(), strict=True)
        for image_SS, (split, row) in zip(pixels.numpy()[:, 0], positions, strict=True):
            image_SS[:] = resize_grey(self._arrays[split][row], size)
        return Pixels(pixels, ())

    def _open(self, index: SampleIndex, number: int) -> NDArray[np.uint8]:
        name = f"{SPLITS[number]}_images"
        array = read_array(index.root, name)
        num = int(np.count_nonzero(self._split == number))
        if array.dtype != np.uint8 or array.ndim != 3 or array.shape != (num, *array.shape[1:2] * 2):
            raise ValueError(
                f"{index.root}: {name} is {array.dtype} {list(array.shape)}; grey uint8 images for the {num:,} rows of "
                f"{SPLITS[number]}_labels, [{num}, S, S], are expected"
            )
        return array.view(np.uint8)
