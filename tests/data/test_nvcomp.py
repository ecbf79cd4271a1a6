"""nvCOMP without a GPU: which versions are accepted, and that it is called as its header declares."""

from __future__ import annotations

import contextlib
import ctypes
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from host_kernels import HostKernels

from distcxr.data.pixels.cuda.nvcomp import NvComp, nvcomp
from distcxr.data.pixels.cuda.table import Field, upload
from distcxr.data.pixels.png_gpu import PngDecoder


class FakeLibrary:
    """A library that reports some version."""

    def __init__(self, version: int, status: int = 0) -> None:
        self.version, self.status = version, status

    def nvcompGetProperties(self, properties: Any) -> int:
        properties._obj.version = self.version
        return self.status

    def nvcompBatchedDeflateDecompressGetRequiredAlignments(self, options: Any, needed: Any) -> int:
        needed._obj.input, needed._obj.output, needed._obj.temp = 4, 32, 8
        return 0


@pytest.mark.parametrize("version", [5100, 5300, 5900])
def test_versions_of_one_interface_are_taken(version: int) -> None:
    taken = NvComp(FakeLibrary(version))
    assert taken.name == f"nvCOMP 5.{version // 100 % 10}" and taken.align == 32


@pytest.mark.parametrize(
    ("version", "name"), [(2600, "2.6"), (4200, "4.2"), (5000, "5.0"), (6000, "6.0"), (6100, "6.1")]
)
def test_other_versions_are_refused_by_name(version: int, name: str) -> None:
    with pytest.raises(ValueError, match=rf"nvCOMP {name} is installed.*>=5\.1,<6.*data\.gpu\.inflate=cpu"):
        NvComp(FakeLibrary(version))


def test_without_nvcomp_a_decoder_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    nvcomp.cache_clear()
    monkeypatch.setitem(sys.modules, "nvidia", None)
    with pytest.raises(ValueError, match=r"not installed: install \"nvidia-libnvcomp-cu1\d>=5.*data\.gpu\.inflate=cpu"):
        PngDecoder(8, torch.device("cpu"), inflate="gpu", kernels=HostKernels())
    PngDecoder(8, torch.device("cpu"), inflate="cpu", kernels=HostKernels())


def test_a_library_that_does_not_load_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = types.ModuleType("nvidia")
    fake.libnvcomp = types.SimpleNamespace(load_library=lambda: None)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "nvidia", fake)
    with pytest.raises(ValueError, match="does not load: reinstall"):
        nvcomp.__wrapped__()


def test_the_real_library_answers_without_a_gpu() -> None:
    pytest.importorskip("nvidia.libnvcomp", reason="no nvCOMP: pip install 'distcxr[gpu]'")
    library = nvcomp()
    assert re.fullmatch(r"nvCOMP 5\.\d", library.name)
    assert library.align >= 16 and library.align & (library.align - 1) == 0
    for num_images in (1, 64, 1000):
        longest = 1024 * 1025
        assert 0 <= library.temp_bytes(num_images, longest, num_images * longest) < num_images * longest


# What nvCOMP's header declares, done without a GPU: "inflating" copies a stream, and every argument is checked.
STAND_IN = r"""
#include <cstring>
typedef struct CUstream_st* cudaStream_t;  // the header leaves it out where there is no CUDA
#include "nvcomp.h"
#include "nvcomp/deflate.h"
static bool plain(const nvcompBatchedDeflateDecompressOpts_t& options)
{
    for (char reserved : options.reserved) if (reserved) return false;
    return options.backend == NVCOMP_DECOMPRESS_BACKEND_DEFAULT && options.sort_before_hw_decompress == 0;
}
extern "C" {
nvcompStatus_t nvcompGetProperties(nvcompProperties_t* properties)
{
    *properties = {NVCOMP_VER, 13000};
    return nvcompSuccess;
}
nvcompStatus_t nvcompBatchedDeflateDecompressGetRequiredAlignments(
    nvcompBatchedDeflateDecompressOpts_t, nvcompAlignmentRequirements_t* needed)
{
    *needed = {8, 64, 16};
    return nvcompSuccess;
}
nvcompStatus_t nvcompBatchedDeflateDecompressGetTempSizeAsync(
    size_t num, size_t longest, nvcompBatchedDeflateDecompressOpts_t options, size_t* temp_bytes, size_t total)
{
    if (!plain(options)) return nvcompErrorInternal;
    *temp_bytes = num * 1000000 + longest * 1000 + total;
    return nvcompSuccess;
}
nvcompStatus_t nvcompBatchedDeflateDecompressAsync(
    const void* const* from, const size_t* from_bytes, const size_t* space, size_t* actual, size_t num, void* temp,
    size_t temp_bytes, void* const* to, nvcompBatchedDeflateDecompressOpts_t options, nvcompStatus_t* statuses,
    cudaStream_t stream)
{
    if (!plain(options)) return nvcompErrorInternal;
    if ((size_t)stream != 0x1234) return nvcompErrorCudaError;
    std::memset(temp, 7, temp_bytes);
    for (size_t i = 0; i < num; ++i) {
        statuses[i] = from_bytes[i] > space[i] ? nvcompErrorOutputBufferTooSmall : nvcompSuccess;
        actual[i] = from_bytes[i];
        if (!statuses[i]) std::memcpy(to[i], from[i], from_bytes[i]);
    }
    return nvcompSuccess;
}
}
"""


def test_it_is_called_as_its_header_declares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ctypes checks nothing: a stand-in, compiled with the header of the installed nvCOMP, gets all it should."""
    nvidia = pytest.importorskip("nvidia.libnvcomp", reason="no nvCOMP: pip install 'distcxr[gpu]'")
    include = Path(nvidia.__file__).parent / "include"
    if shutil.which("g++") is None:
        pytest.skip("no C++ compiler")
    (tmp_path / "stand_in.cpp").write_text(STAND_IN)
    command = ["g++", "-shared", "-fPIC", "-w", f"-I{include}", "-o", str(tmp_path / "it.so")]
    done = subprocess.run([*command, str(tmp_path / "stand_in.cpp")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

    library = NvComp(ctypes.CDLL(str(tmp_path / "it.so")))
    assert library.align == 64
    assert library.temp_bytes(3, 50, 7) == 3_050_007
    streams = [torch.arange(n, dtype=torch.uint8) for n in (10, 33, 20)]
    rows = [torch.zeros(n, dtype=torch.uint8) for n in (10, 40, 19)]
    fields = {
        Field.STREAM: [stream.data_ptr() for stream in streams],
        Field.STREAM_BYTES: [len(stream) for stream in streams],
        Field.ROWS: [row.data_ptr() for row in rows],
        Field.ROWS_BYTES: [len(row) for row in rows],
        Field.HEIGHT: [1, 1, 1],
        Field.WIDTH: [1, 1, 1],
    }
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: types.SimpleNamespace(cuda_stream=0x1234))
    actual_B, statuses_B = torch.empty(3, dtype=torch.int64), torch.empty(3, dtype=torch.int32)
    library.inflate(upload(fields, 1, torch.device("cpu")), 40, 69, actual_B, statuses_B)
    assert actual_B.tolist() == [10, 33, 20] and statuses_B.tolist() == [0, 0, 15]
    np.testing.assert_array_equal(rows[0], streams[0])
    np.testing.assert_array_equal(rows[1][:33], streams[1])
    assert not rows[1][33:].any() and not rows[2].any()


def test_a_launch_that_fails_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="nvcompGetProperties returned 10"):
        NvComp(FakeLibrary(5100, status=10))
