"""torch's operations that only move bytes, carried out: by copies and fills in place of kernels that do nothing here.

With them, what was copied to a device can be followed through a run: pixels through a reader's gathering, sample ids
to the host, a sum of losses that nobody computed as the zero it began with. They are carried out late, as all copies
are. They change what is counted, so they are for following bytes, not for budgets.

Moves along the first dimension of contiguous tensors are covered; everything else goes to torch's own kernels.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import torch
from torch import Tensor

_Kernel = Any  # torch's own, of the same operation; called with the dispatch keys first

_made: list[torch.library.Library] = []  # a library's overrides end with it


def carry_out() -> None:
    """From now on, for the whole process."""
    if _made:
        return
    library = torch.library.Library("aten", "IMPL")
    for name, move in _MOVES.items():
        own = torch.library.get_kernel(f"aten::{name}", "CUDA")
        library.impl(name, functools.partial(move, own), "CUDA", with_keyset=True, allow_override=True)
    _made.append(library)


def _cat(own: _Kernel, keys: Any, tensors: list[Tensor], dim: int = 0) -> Tensor:
    parts = [tensor for tensor in tensors if tensor.shape != (0,)] or tensors[:1]
    if dim != 0 or not all(map(_has_rows, parts)) or len({part.dtype for part in parts}) > 1:
        return own.call_boxed(keys, tensors, dim)
    out = parts[0].new_empty(sum(map(len, parts)), *parts[0].shape[1:])
    start = 0
    for part in parts:
        out[start : start + len(part)].copy_(part)
        start += len(part)
    return out


def _index_select(own: _Kernel, keys: Any, source: Tensor, dim: int, index: Tensor) -> Tensor:
    if dim != 0 or not _has_rows(source) or index.dtype != torch.int64:
        return own.call_boxed(keys, source, dim, index)
    return _rows(source, index)


def _index(own: _Kernel, keys: Any, source: Tensor, indices: list[Tensor | None]) -> Tensor:
    rows = indices[0]
    if len(indices) > 1 or rows is None or rows.dim() != 1 or not _has_rows(source):
        return own.call_boxed(keys, source, indices)
    if rows.dtype == torch.bool:
        rows = rows.cpu().nonzero()[:, 0]
    return _rows(source, rows.to(source.device))


def _zero(own: _Kernel, keys: Any, tensor: Tensor) -> Tensor:
    if not tensor.is_contiguous():
        return own.call_boxed(keys, tensor)
    address, num_bytes = ctypes.c_void_p(tensor.data_ptr()), ctypes.c_size_t(tensor.nbytes)
    ctypes.CDLL(None).cudaMemsetAsync(address, 0, num_bytes, _stream(tensor))
    return tensor


def _isin(
    own: _Kernel, keys: Any, elements: Tensor, tested: Tensor, *, assume_unique: bool = False, invert: bool = False
) -> Tensor:
    """A comparison, but what is left out by it is moved: waits for the device, and answers on the CPU."""
    return torch.isin(elements.cpu(), tested.cpu(), assume_unique=assume_unique, invert=invert)


_MOVES = {
    "cat": _cat,
    "index_select": _index_select,
    "index.Tensor": _index,
    "zero_": _zero,
    "isin.Tensor_Tensor": _isin,
}


def _has_rows(tensor: Tensor) -> bool:
    return tensor.is_cuda and tensor.is_contiguous() and tensor.dim() > 0


def _rows(source: Tensor, index: Tensor) -> Tensor:
    """Rows of `source`, gathered on the device when their turn comes."""
    out = source.new_empty(len(index), *source.shape[1:])
    row_bytes = source[:1].nbytes if len(source) else 0
    addresses = [ctypes.c_void_p(tensor.data_ptr()) for tensor in (out, source, index)]
    sizes = ctypes.c_size_t(len(index)), ctypes.c_size_t(row_bytes)
    ctypes.CDLL(None).null_cuda_gather_rows(_stream(source), *addresses, *sizes)
    return out


def _stream(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(torch.cuda.current_stream(tensor.device).cuda_stream)
