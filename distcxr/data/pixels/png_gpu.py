"""`PngDecoder`: decodes and resizes PNG files on a GPU.

    CPU thread   chunks and CRCs checked ──► the Deflate stream, joined, in pinned memory
    GPU          copied ──► inflated by nvCOMP ──► Adler-32 checked, row filters undone ──► resized

The result equals `resize_grey(decode_grey(data), size)` bit for bit. Files that are not plain 8-bit
grey, or unusual in any way, are left to `decode_grey`: for them `prepare` returns None or `decode` a verdict.

With `inflate="cpu"` a CPU thread inflates, by ISA-L, and the GPU does the rest: where nvCOMP is missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distcxr.data.pixels.cuda.module import CudaKernels, cuda_kernels
from distcxr.data.pixels.cuda.nvcomp import NvComp, nvcomp
from distcxr.data.pixels.cuda.table import NO_ADLER, TILE_BYTES, Field, resize_table, upload
from distcxr.data.pixels.image_bytes import SIGNATURE
from distcxr.data.pixels.png import inflate_rows, walk_chunks

MAX_WARPS = 16
"""Of a block that undoes filters. In an image of 1,024 columns 16 groups of rows are under way without a wait."""

_ZLIB_HEADER, _ADLER = 2, 4  # bytes around a Deflate stream
_GAP = 64  # bytes between streams, for an inflater that reads whole words beyond the end of one


class Prepared(NamedTuple):
    """One image, ready for the GPU."""

    # uint8 [n] on the host, pinned where there is a GPU: the raw Deflate stream, or with `inflate="cpu"` the inflated
    # rows, [H * (1 + W)].
    bytes_: Tensor
    adler: int  # Adler-32 that the inflated rows must have; with `inflate="cpu"` it was checked
    height: int
    width: int


class PngDecoder:
    """Decodes plain grey PNGs on one GPU.

    Attributes:
        where: what inflates and what resizes, in one phrase for the log.

    Args:
        inflate: what undoes Deflate, nvCOMP on the GPU or ISA-L in the threads that call `prepare`.
        kernels, inflater: stand-ins, with which tests run all of it on a CPU.

    Raises ValueError: the kernels can't be compiled, or nvCOMP is missing or of a version that is not supported.
    """

    def __init__(
        self,
        image_size: int,
        device: torch.device,
        *,
        inflate: Literal["gpu", "cpu"],
        kernels: CudaKernels | None = None,
        inflater: NvComp | None = None,
    ) -> None:
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", torch.cuda.current_device())
        import distcxr.data.pixels.chunk_kernels  # noqa: F401  # compiles, before threads need it

        self._image_size = image_size
        self._device = device
        self._pinned = device.type == "cuda"
        self._kernels = kernels or cuda_kernels(device)
        self._inflater = (inflater or nvcomp()) if inflate == "gpu" else None
        by = self._inflater.name if self._inflater else "ISA-L on the CPU"
        self.where = f"inflated by {by}, row filters and resize on {self._kernels.where}"

    def prepare(self, data: bytes) -> Prepared | None:
        """Check a file and lay out what the GPU needs of it. Any number of threads may call this at once.

        Takes 0.06 ms of a core for an NIH X-ray, 0.01 of it with the GIL; 1.6 ms with `inflate="cpu"`.

        Returns None when the file is not for the GPU: not a PNG, not plain 8-bit grey, or something about its stream is
        unusual. `decode_grey` then decodes it, or raises the error. Raises UnreadableImage, with the message of
        `decode_grey`, where the chunks of this PNG are broken.
        """
        from distcxr.data.pixels.chunk_kernels import join_chunks

        if not data.startswith(SIGNATURE):
            return None
        on_gpu = self._inflater is not None
        stream = torch.empty(len(data), dtype=torch.uint8, pin_memory=on_gpu and self._pinned)
        shape = np.empty(2, dtype=np.int64)
        num_bytes = join_chunks(np.frombuffer(data, dtype=np.uint8), stream.numpy(), shape)
        if num_bytes <= _ZLIB_HEADER + _ADLER:
            walk_chunks(memoryview(data))  # raises the error, if there is one
            return None
        height, width = shape.tolist()
        if not _is_zlib(*stream[:_ZLIB_HEADER].tolist()):
            return None
        if on_gpu:
            adler = int.from_bytes(stream[num_bytes - _ADLER : num_bytes].numpy().tobytes())
            return Prepared(stream[_ZLIB_HEADER : num_bytes - _ADLER], adler, height, width)
        rows = _inflated(stream[:num_bytes].numpy(), height * (1 + width), self._pinned)
        return None if rows is None else Prepared(rows, NO_ADLER, height, width)

    def decode(self, images: Sequence[Prepared], out_BSS: Tensor) -> Tensor:
        """Decode and resize on the current stream of the device, asynchronously.

        One bad image never harms another; its own pixels are undefined. While it runs it takes what all streams and
        their rows take: 1.05 MB and the file's size for a 1024 x 1024 image.

        Args:
            images: what `prepare` returned, of any sizes.
            out_BSS: uint8 [B, S, S] on the device, contiguous, written.

        Returns int32 [B] on the device: 0 where the pixels are right; below 0, a verdict of kernels.cu, or above,
        nvCOMP's status, where `decode_grey` has to decode the file. Raises torch.OutOfMemoryError: the GPU's memory is
        too small for so many at once.
        """
        assert images and out_BSS.dtype == torch.uint8 and out_BSS.device == self._device
        assert out_BSS.shape == (len(images), self._image_size, self._image_size) and out_BSS.is_contiguous()
        rows_bytes = [image.height * (1 + image.width) for image in images]
        align = self._inflater.align if self._inflater else 1
        rows, rows_address = self._laid_out(rows_bytes, align)
        fields = {
            Field.HEIGHT: [image.height for image in images],
            Field.WIDTH: [image.width for image in images],
            Field.ROWS: rows_address,
            Field.ROWS_BYTES: rows_bytes,
            Field.ADLER: [image.adler for image in images],
            Field.PIXELS: [address + 1 for address in rows_address],
            Field.PITCH: [image.width + 1 for image in images],
        }
        sizes = [len(image.bytes_) for image in images]
        streams, streams_address = (rows, rows_address) if self._inflater is None else self._laid_out(sizes, align)
        for image, address in zip(images, streams_address, strict=True):
            start = address - streams.data_ptr()
            streams[start : start + len(image.bytes_)].copy_(image.bytes_, non_blocking=True)
        fields |= {Field.STREAM: streams_address, Field.STREAM_BYTES: sizes}
        table = upload(fields, self._image_size, self._device)

        verdicts_B = torch.empty(len(images), dtype=torch.int32, device=self._device)
        statuses, actual = 0, 0
        if self._inflater is not None:
            statuses_B = torch.empty_like(verdicts_B)
            actual_B = torch.zeros(len(images), dtype=torch.int64, device=self._device)  # until nvCOMP writes them
            self._inflater.inflate(table, max(rows_bytes), sum(rows_bytes), actual_B, statuses_B)
            statuses, actual = statuses_B.data_ptr(), actual_B.data_ptr()
        warps = min(MAX_WARPS, -(-max(image.height for image in images) // 32))
        arguments = (table.address(), len(images), statuses, actual, verdicts_B.data_ptr())
        self._kernels.launch("unfilter", (len(images), 1), 32 * warps, warps * TILE_BYTES, arguments)
        resize_table(table, max(image.width for image in images), out_BSS, self._kernels)
        return verdicts_B

    def _laid_out(self, sizes: Sequence[int], align: int) -> tuple[Tensor, list[int]]:
        """One block of device memory that holds each of `sizes` bytes, and the aligned address of each."""
        offsets, end = [], align
        for size in sizes:
            offsets.append(end)
            end += -(-(size + _GAP) // align) * align
        memory = torch.empty(end, dtype=torch.uint8, device=self._device)
        base = -(-memory.data_ptr() // align) * align - align
        return memory, [base + offset for offset in offsets]


def _is_zlib(first: int, second: int) -> bool:
    """Whether these two bytes begin a zlib stream that is Deflate, in a window it may have, without a dictionary."""
    return first & 15 == 8 and first >> 4 <= 7 and second & 32 == 0 and (256 * first + second) % 31 == 0


def _inflated(stream: NDArray[np.uint8], num_bytes: int, pinned: bool) -> Tensor | None:
    """The rows, their Adler-32 checked; None when there are more or fewer of them, or anything is wrong."""
    inflated = inflate_rows(stream, num_bytes)
    if inflated is None:
        return None
    rows = torch.empty(num_bytes, dtype=torch.uint8, pin_memory=pinned)
    np.copyto(rows.numpy(), np.frombuffer(inflated, dtype=np.uint8))
    return rows
