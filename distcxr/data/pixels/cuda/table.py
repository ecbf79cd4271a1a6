"""The table of a call's images, which kernels and inflater read: addresses and sizes on the device; and their resize.

    fields uint64 [F, B] | filter int32 [2 + taps, S] | filter | ...      one buffer, one copy to the device

The filters are the resize's, one for each length of side that occurs, so a set of X-rays of one size sends one.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distcxr.data.pixels.cuda.module import MAX_SHARED_BYTES, CudaKernels
from distcxr.data.pixels.resize import axis_filter


class Field(IntEnum):
    """A row of the table; kernels.cu has the same. Addresses are the device's, counts are bytes or pixels."""

    STREAM = 0
    STREAM_BYTES = 1
    ROWS = 2
    ROWS_BYTES = 3
    ADLER = 4
    HEIGHT = 5
    WIDTH = 6
    PIXELS = 7
    PITCH = 8
    ROW_FILTER = 9
    COLUMN_FILTER = 10


NO_ADLER = (1 << 64) - 1
"""In field ADLER: the rows need no check."""

TILE_BYTES = 33 * 36
"""Shared memory that a warp of `unfilter` needs."""

_RESIZE_THREADS = 256  # of a block


class Table(NamedTuple):
    """A table on the device. It may be freed as soon as the work that reads it is queued on the same stream."""

    memory: Tensor
    num_images: int

    def address(self, field: Field = Field.STREAM) -> int:
        """Address of a field's uint64 [B]; the first field's is the whole table's."""
        return self.memory.data_ptr() + 8 * field * self.num_images


def upload(fields: Mapping[Field, Sequence[int]], size: int, device: torch.device) -> Table:
    """Send the table of B images that are to be resized to `size`, asynchronously on the current stream.

    `fields` are those that the call's kernels read, HEIGHT and WIDTH among them, a value per image each; the filters'
    addresses are filled in here.
    """
    heights, widths = fields[Field.HEIGHT], fields[Field.WIDTH]
    num_images = len(heights)
    offset, num_bytes = {}, 8 * len(Field) * num_images
    for length in {*heights, *widths}:
        offset[length] = num_bytes
        num_bytes += _packed_filter(length, size).nbytes
    memory = torch.empty(num_bytes, dtype=torch.uint8, device=device)
    host = torch.empty(num_bytes, dtype=torch.uint8, pin_memory=device.type == "cuda")
    bytes_ = host.numpy()
    table_FB = bytes_[: 8 * len(Field) * num_images].view(np.uint64).reshape(len(Field), num_images)
    table_FB[:] = 0
    for field, values in fields.items():
        table_FB[field] = values
    table_FB[Field.ROW_FILTER] = [memory.data_ptr() + offset[length] for length in heights]
    table_FB[Field.COLUMN_FILTER] = [memory.data_ptr() + offset[length] for length in widths]
    for length, start in offset.items():
        packed = _packed_filter(length, size)
        bytes_[start : start + packed.nbytes] = packed.view(np.uint8).reshape(-1)
    memory.copy_(host, non_blocking=True)
    return Table(memory, num_images)


@functools.lru_cache(maxsize=256)
def _packed_filter(length: int, size: int) -> NDArray[np.int32]:
    """`axis_filter` as the resize kernel reads it, int32 [2 + taps, S]: start, count, weights."""
    start, count, weight = axis_filter(length, size)
    return np.ascontiguousarray(np.concatenate([start[None], count[None], weight.T]), dtype=np.int32)


def resize_on_gpu(images: Sequence[Tensor], size: int, kernels: CudaKernels) -> Tensor:
    """Resize images of any sizes, uint8 [H, W], the pixels of a row side by side, on the kernels' device, queued on its
    current stream: uint8 [B, size, size], equal to `resize_grey` of each."""
    assert images and all(image.dtype == torch.uint8 and image.dim() == 2 for image in images)
    assert all(image.stride(1) == 1 or image.shape[1] == 1 for image in images), "rows have to be contiguous"
    device = images[0].device
    table = upload(
        {
            Field.HEIGHT: [image.shape[0] for image in images],
            Field.WIDTH: [image.shape[1] for image in images],
            Field.PIXELS: [image.data_ptr() for image in images],
            Field.PITCH: [image.stride(0) for image in images],
        },
        size,
        device,
    )
    resized_BSS = torch.empty((len(images), size, size), dtype=torch.uint8, device=device)
    resize_table(table, max(image.shape[1] for image in images), resized_BSS, kernels)
    return resized_BSS


def resize_table(table: Table, widest: int, out_BSS: Tensor, kernels: CudaKernels) -> None:
    """Resize the images of a table into uint8 [B, S, S]; `widest` is their largest width in pixels."""
    size = out_BSS.shape[1]
    assert out_BSS.shape == (table.num_images, size, size) and out_BSS.is_contiguous()
    capacity = min(widest, MAX_SHARED_BYTES // 4)
    arguments = (table.address(), table.num_images, size, out_BSS.data_ptr(), capacity)
    kernels.launch("resize", (size, table.num_images), _RESIZE_THREADS, 4 * capacity, arguments)
