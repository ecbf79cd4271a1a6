"""Image files decoded in threads of this process: for a few images of anybody's, in a program that is not ours.

    requests ──► threads: file, grey pixels, remarks, resize ──► Pixels, in the order asked

The torch reader's worker processes start with a script's first lines, which a notebook does not have. Its pixels are
these, bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from distcxr.data.loader import Pixels, Request
from distcxr.data.pixels.decode import decode_grey, load_kernels
from distcxr.data.pixels.image_bytes import UnreadableImage, read_file
from distcxr.data.pixels.own_reader import OwnReader
from distcxr.data.pixels.remarks import remarks
from distcxr.data.pixels.resize import resize_grey
from distcxr.data.readers.prefetch import Job, PrefetchingReader

_Made = tuple[NDArray[np.uint8] | None, list[str]]
"""Pixels [S, S] and what is unusual of them; or None and why the file can't be read."""


class FileReader(PrefetchingReader[_Made, tuple[Request, list[_Made]]]):
    """A `PixelReader` of `files`, by their positions in that list.

    Attributes:
        remarks: by position, of the images read so far with anything unusual.
    """

    def __init__(
        self, files: Sequence[str], image_size: int, *, num_threads: int, prefetch: int = 2, pin_memory: bool,
        own: OwnReader | None = None,
    ) -> None:  # fmt: skip
        """Start the threads, which work `prefetch` requests ahead; `num_threads` 0 reads in the calling thread. `own`
        reads in place of our decoders, without remarks."""
        load_kernels()
        self.remarks: dict[int, list[str]] = {}
        self.where = f"images are decoded on the CPU by {num_threads} threads"
        self._files, self._image_size, self._pin_memory, self._own = files, image_size, pin_memory, own
        super().__init__(num_threads=num_threads, prefetch=prefetch, name="files")

    def _job(self, requests: list[Request]) -> Job[_Made]:
        return Job(requests, [partial(self._read, self._files[row]) for row in requests[0].tolist()])

    def _launch(self, requests: Sequence[Request], made: list[_Made]) -> tuple[Request, list[_Made]]:
        return requests[0], made

    def _collect(self, launched: tuple[Request, list[_Made]]) -> list[Pixels]:
        request, made = launched
        shape = (len(request), 1, self._image_size, self._image_size)
        pixels = torch.zeros(shape, dtype=torch.uint8, device="cpu", pin_memory=self._pin_memory)
        unreadable = []
        for position, (row, (image_SS, texts)) in enumerate(zip(request.tolist(), made, strict=True)):
            if image_SS is None:
                unreadable.append((position, texts[0]))
                continue
            pixels[position, 0] = torch.from_numpy(image_SS)
            if texts:
                self.remarks[row] = texts
        return [Pixels(pixels, tuple(unreadable))]

    def _read(self, file: str) -> _Made:
        try:
            if self._own is not None:
                return resize_grey(self._own(file), self._image_size), []
            data, _ = read_file(file)
            grey_HW = decode_grey(data)
        except UnreadableImage as error:
            return None, [str(error)]
        return resize_grey(grey_HW, self._image_size), remarks(data, grey_HW, self._image_size)
