"""`resize_grey` on the GPU, for many images at once: the same fixed-point sums, so the same pixels bit for bit."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from distcxr.data.pixels.cuda.module import MAX_SHARED_BYTES, CudaKernels
from distcxr.data.pixels.cuda.table import Field, Table, upload

_THREADS = 256


def resize_on_gpu(images: Sequence[Tensor], size: int, kernels: CudaKernels) -> Tensor:
    """Resize images of any sizes to squares of `size` pixels, asynchronously on the current stream.

    Args:
        images: uint8 [H, W] each, on the kernels' device, the pixels of a row side by side.

    Returns:
        uint8 [B, size, size], equal to `resize_grey` of each.
    """
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
    kernels.launch("resize", (size, table.num_images), _THREADS, 4 * capacity, arguments)
