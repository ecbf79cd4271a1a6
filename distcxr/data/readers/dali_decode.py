"""Images of a pack decoded by DALI on the GPU (nvJPEG2000), resized there by distcxr's own kernel.

    requests ──► threads of ours: read, compare checksums ──► DALI: decode ──► kernel: resize ──► Pixels

The pixels are those of `resize_grey`, bit for bit: a pack is lossless and the kernel computes what `resize_grey` does.
DALI is given codestreams with the right checksum, and a blank one instead of any other.

Shapes: B batch, S side of the square output.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from distcxr.data.pixels import htj2k
from distcxr.data.pixels.image_bytes import Source, UnreadableImage, read_file
from distcxr.data.readers.dali_reader import INPUT, DaliReader, Fed

Resize = Callable[[Sequence[Tensor]], Tensor]
"""B images uint8 [H, W] of any size, on the device -> uint8 [B, S, S]."""

_BLANK_SIDE = 32


class DaliDecoder(DaliReader):
    """A `PixelReader` on NVIDIA DALI for the images of a pack.

    Decoded images stay on the GPU until they are resized: up to `prefetch` requests of them, 1 MB for an X-ray of
    1024 px. It is made as a `DaliReader` is, with `Pack.parts`, and raises ImportError, too, where what compiles the
    kernel is not installed.
    """

    def _start(self) -> None:
        blank = htj2k.encode_htj2k(np.zeros((_BLANK_SIDE, _BLANK_SIDE), dtype=np.uint8))
        self._nothing = np.frombuffer(blank, dtype=np.uint8)
        self._resize = self._resizer()
        super()._start()

    def _resizer(self) -> Resize:
        """The kernel of the GPU; tests on a CPU, where DALI decodes slowly, have one of their own."""
        from distcxr.data.pixels.cuda.module import cuda_kernels
        from distcxr.data.pixels.cuda.table import resize_on_gpu

        assert self._device_id is not None
        size, kernels = self._image_size, cuda_kernels(torch.device("cuda", self._device_id))
        return lambda images: resize_on_gpu(images, size, kernels)

    def _where(self) -> str:
        device = "CPU" if self._device_id is None else f"GPU (cuda:{self._device_id})"
        return (
            f"images are read by {self._num_threads} thread{'s' * (self._num_threads > 1)} of distcxr, decoded by DALI "
            f"and resized by distcxr on the {device}"
        )

    def _blank(self, reason: str | None = None) -> Fed:
        return Fed(self._nothing, _NO_RIM, reason)

    def _fetch(self, file: Source) -> Fed:
        """Runs in our threads; never raises for an image: one that can't be read becomes a black one."""
        try:
            data = read_file(file)[0]
            htj2k.check_header(data)
        except UnreadableImage as error:
            return self._blank(str(error))
        return Fed(np.frombuffer(data, dtype=np.uint8), _NO_RIM)

    def _build(self) -> Any:
        """The pipeline: from codestreams, uint8 [bytes], to uint8 [H, W, 1]."""
        from nvidia.dali import fn, types
        from nvidia.dali.pipeline import Pipeline

        device = "cpu" if self._device_id is None else "mixed"  # its first stage, parsing, is the threads' work
        threads, prefetch = self._num_threads, self._prefetch
        pipeline = Pipeline(self._max_batch_size, threads, self._device_id, prefetch_queue_depth=prefetch)
        with pipeline:
            encoded = fn.external_source(name=INPUT, device="cpu", no_copy=True)
            pipeline.set_outputs(fn.decoders.image(encoded, device=device, output_type=types.GRAY))
        pipeline.build()
        return pipeline

    def _finished(self, output: Any, batch: list[Fed]) -> Tensor:
        """Resized out of DALI's buffers; what could not be read is blank already."""
        images = [from_dlpack(output[position]).squeeze(-1) for position in range(len(batch))]
        return self._resize(images).view(len(batch), 1, self._image_size, self._image_size)


_NO_RIM = np.zeros((4, 0), dtype=np.uint8)
