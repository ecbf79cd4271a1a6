"""The GPU's half of the PNG decoder on a CPU: kernels.cu compiled by g++, and an inflater with nvCOMP's contract."""

from __future__ import annotations

import atexit
import ctypes
import functools
import shutil
import subprocess
import tempfile
import zlib
from collections.abc import Sequence
from enum import IntEnum
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from distcxr.data.pixels.cuda.module import SOURCE
from distcxr.data.pixels.cuda.table import Field, Table
from distcxr.data.pixels.png_gpu import PngDecoder

HEADER = Path(__file__).parent / "cuda_host" / "cuda_host.h"
CANNOT_DECOMPRESS = 12  # nvcompErrorCannotDecompress
_MOST_ARGUMENTS = 8


class Verdict(IntEnum):
    """Of kernels.cu on an image."""

    GOOD = 0
    WRONG_LENGTH = -1
    UNKNOWN_FILTER = -2
    WRONG_ADLER = -3


class HostKernels:
    """`Kernels` on the CPU: the threads of a block are fibers, barriers and shuffles mean what they mean on a GPU.

    Args:
        source: a CUDA C file.
        descending: whether the threads of a block take their turns from the last to the first.
    """

    where = "the CPU"

    def __init__(self, source: Path = SOURCE, *, descending: bool = False) -> None:
        self._library = ctypes.CDLL(str(compiled(source)))
        self._descending = descending

    def launch(
        self, kernel: str, grid: tuple[int, int], threads: int, shared_bytes: int, arguments: Sequence[int]
    ) -> None:
        assert len(arguments) <= _MOST_ARGUMENTS
        values = (ctypes.c_uint64 * _MOST_ARGUMENTS)(*arguments)
        message = ctypes.create_string_buffer(500)
        address = ctypes.cast(getattr(self._library, kernel), ctypes.c_void_p)
        self._library.launch_on_host(
            address, *map(ctypes.c_uint, (*grid, threads, shared_bytes)), values, ctypes.c_int(self._descending),
            message, ctypes.c_size_t(len(message)),
        )  # fmt: skip
        if message.value:
            raise RuntimeError(f"{kernel}: {message.value.decode()}")


class HostInflater:
    """`Inflater` by zlib: a status for each stream, and how many bytes it really has, as nvCOMP reports them."""

    name = "zlib on the CPU"
    align = 8

    def inflate(self, table: Table, longest: int, total: int, actual_B: Tensor, statuses_B: Tensor) -> None:
        num = table.num_images
        fields_FB = np.ctypeslib.as_array((ctypes.c_uint64 * (len(Field) * num)).from_address(table.address()))
        for image, column in enumerate(fields_FB.reshape(len(Field), num).T.tolist()):
            capacity = column[Field.ROWS_BYTES]
            assert column[Field.STREAM] % self.align == column[Field.ROWS] % self.align == 0
            assert capacity <= longest <= total
            stream = ctypes.string_at(column[Field.STREAM], column[Field.STREAM_BYTES])
            inflater = zlib.decompressobj(wbits=-15)
            try:
                rows = inflater.decompress(stream, capacity + 1)
                good = inflater.eof and len(rows) <= capacity
            except zlib.error:
                rows, good = b"", False
            ctypes.memmove(column[Field.ROWS], rows, min(len(rows), capacity))
            statuses_B[image] = 0 if good else CANNOT_DECOMPRESS
            actual_B[image] = len(rows) if good else 0


def host_decoder(image_size: int, inflate: Literal["gpu", "cpu"] = "gpu") -> PngDecoder:
    """A `PngDecoder` on the CPU; skips the test where there is no C++ compiler."""
    return PngDecoder(image_size, torch.device("cpu"), inflate=inflate, kernels=HostKernels(), inflater=HostInflater())


@functools.cache
def compiled(source: Path) -> Path:
    """A shared library of a CUDA C file, or of a C++ file, built once per session; skips without a compiler."""
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    folder = Path(tempfile.mkdtemp(prefix="distcxr_kernels_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    library = folder / f"{source.stem}.so"
    options = "-std=c++17 -O2 -U_FORTIFY_SOURCE -shared -fPIC -Wall -Wextra -Wno-unknown-pragmas -Werror".split()
    options += ["-include", str(HEADER)] if source.suffix == ".cu" else []
    command = [compiler, *options, "-x", "c++", str(source), "-o", str(library), "-ldl"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return library
