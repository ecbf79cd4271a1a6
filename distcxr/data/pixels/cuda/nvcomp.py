"""Inflates many raw Deflate streams at once on a GPU, by nvCOMP through ctypes."""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import torch
from torch import Tensor

from distcxr.data.pixels.cuda.table import Field, Table

OLDEST, BELOW = 5100, 6000
"""Versions with this C API, major * 1000 + minor * 100: 6.0 renamed a function and gave it another argument."""

_DEFAULT_BACKEND = 0  # Blackwell's decompression engine where it is and takes the buffers, else CUDA kernels
_WITHOUT = "or set data.gpu.inflate=cpu, which does without it"


class _Options(ctypes.Structure):
    """`nvcompBatchedDeflateDecompressOpts_t`; fields that a version does not know have to be 0."""

    _fields_ = (("backend", ctypes.c_int), ("sort", ctypes.c_int), ("reserved", ctypes.c_char * 56))


class _Properties(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("cudart_version", ctypes.c_uint32))


class _Alignments(ctypes.Structure):
    _fields_ = (("input", ctypes.c_size_t), ("output", ctypes.c_size_t), ("temp", ctypes.c_size_t))


class NvComp:
    """Inflates raw Deflate streams by nvCOMP 5; tests have an inflater on a CPU.

    By its documentation it detects only some broken streams. So the rows' Adler-32 is checked, too, and `PngDecoder`
    gives it only streams of files in which every chunk has the right CRC: damage on a disk or network is found before.
    What nvCOMP does with a stream that was built to be broken is undefined.

    Attributes:
        name: for the log.
        align: bytes; streams and rows have to begin at a multiple of it.
    """

    def __init__(self, library: Any) -> None:
        """Take the loaded libnvcomp; ValueError where its version is not supported."""
        self._library = library
        properties, needed = _Properties(), _Alignments()
        self._call("nvcompGetProperties", ctypes.byref(properties))
        version = properties.version
        self.name = f"nvCOMP {version // 1000}.{version % 1000 // 100}"
        if not OLDEST <= version < BELOW:
            raise ValueError(
                f"{self.name} is installed, but only 5.1 to 5.x are supported: install "
                f'"{_package()}>=5.1,<6", {_WITHOUT}'
            )
        function = "nvcompBatchedDeflateDecompressGetRequiredAlignments"
        self._call(function, _Options(_DEFAULT_BACKEND), ctypes.byref(needed))
        self.align = max(int(needed.input), int(needed.output), 16)  # 16, though 4 are asked for: whole vector loads

    def temp_bytes(self, num_images: int, longest: int, total: int) -> int:
        """Device memory that nvCOMP needs besides; asks no device."""
        found = ctypes.c_size_t()
        self._call(
            "nvcompBatchedDeflateDecompressGetTempSizeAsync",
            ctypes.c_size_t(num_images),
            ctypes.c_size_t(longest),
            _Options(_DEFAULT_BACKEND),
            ctypes.byref(found),
            ctypes.c_size_t(total),
        )
        return int(found.value)

    def inflate(self, table: Table, longest: int, total: int, actual_B: Tensor, statuses_B: Tensor) -> None:
        """Inflate from field STREAM to field ROWS, asynchronously on the current stream.

        Args:
            longest, total: the largest of ROWS_BYTES, and their sum.
            actual_B: int64 [B] on the table's device, written: how many bytes a stream inflated to.
            statuses_B: int32 [B], written: 0, or a positive number where a stream is broken or longer than ROWS_BYTES.

        RuntimeError where nvCOMP can't be launched.
        """
        device = table.memory.device
        num_bytes = self.temp_bytes(table.num_images, longest, total)
        # torch's blocks begin at multiples of 512 bytes, more than any alignment asked for.
        temp = torch.empty(max(num_bytes, 1), dtype=torch.uint8, device=device)
        with torch.cuda.device(device):
            self._call(
                "nvcompBatchedDeflateDecompressAsync",
                ctypes.c_void_p(table.address(Field.STREAM)),
                ctypes.c_void_p(table.address(Field.STREAM_BYTES)),
                ctypes.c_void_p(table.address(Field.ROWS_BYTES)),
                ctypes.c_void_p(actual_B.data_ptr()),
                ctypes.c_size_t(table.num_images),
                ctypes.c_void_p(temp.data_ptr()),
                ctypes.c_size_t(num_bytes),
                ctypes.c_void_p(table.address(Field.ROWS)),
                _Options(_DEFAULT_BACKEND),
                ctypes.c_void_p(statuses_B.data_ptr()),
                ctypes.c_void_p(torch.cuda.current_stream(device).cuda_stream),
            )

    def _call(self, function: str, *arguments: Any) -> None:
        status = getattr(self._library, function)(*arguments)
        if status != 0:
            raise RuntimeError(f"nvCOMP's {function} returned {status}")


@functools.cache
def nvcomp() -> NvComp:
    """The installed nvCOMP.
    Raises ValueError: it is missing, or of a version that is not supported; names what to install."""
    try:
        from nvidia import libnvcomp
    except ImportError as error:
        raise ValueError(f'nvCOMP is not installed: install "{_package()}>=5.1,<6", {_WITHOUT}') from error
    library = libnvcomp.load_library()
    if library is None:
        raise ValueError(f'the nvCOMP that is installed does not load: reinstall "{_package()}>=5.1,<6", {_WITHOUT}')
    return NvComp(library)


def _package() -> str:
    """nvCOMP's C library for the CUDA that torch was built with."""
    return f"nvidia-libnvcomp-cu{(torch.version.cuda or '13').split('.')[0]}"
