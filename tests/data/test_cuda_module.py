"""`CudaKernels` without a GPU: `cuda.bindings` over a driver of the tests, which runs the kernels on the CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from host_kernels import HEADER, compiled

from distcxr.data.pixels.cuda.module import MAX_SHARED_BYTES, SOURCE, CudaKernels, compile_for

TESTS = Path(__file__).parents[1]

# In a process of its own, which finds that driver before any other.
SCRIPT = """
import sys, types
import numpy as np, torch
from host_kernels import HostInflater
from distcxr.phantom.png_encoder import encode_png
from distcxr.data.pixels.cuda import module
from distcxr.data.pixels.decode import decode_grey
from distcxr.data.pixels.png_gpu import PngDecoder
from distcxr.data.pixels.resize import resize_grey

image = open(sys.argv[1], "rb").read()
module.compile_for = lambda capability: module.Compiled(image, f"sm_{capability}", "")
torch.cuda.init = lambda: None
torch.cuda.get_device_capability = lambda device: (9, 0)
torch.cuda.current_stream = lambda device: types.SimpleNamespace(cuda_stream=0x77)
kernels = module.cuda_kernels(torch.device("cuda", 3))
assert kernels.where == "cuda:3 (sm_90)"
decoder = PngDecoder(40, torch.device("cpu"), inflate="gpu", kernels=kernels, inflater=HostInflater())
file = encode_png(np.random.default_rng(1).integers(0, 256, (90, 70)).astype(np.uint8))
out_BSS = torch.empty((2, 40, 40), dtype=torch.uint8)
assert decoder.decode([decoder.prepare(file)] * 2, out_BSS).tolist() == [0, 0]
assert (out_BSS.numpy() == resize_grey(decode_grey(file), 40)).all()
module.compile_for = lambda capability: module.Compiled(b"no machine code", "sm_90", "")
try:
    module.CudaKernels(torch.device("cuda", 3))
except ValueError as error:
    assert "cuda:3 does not take the kernels" in str(error) and "CUDA_ERROR_INVALID_PTX" in str(error), error
else:
    raise AssertionError("a module that does not load went unnoticed")
print("all of it")
"""


def test_kernels_are_loaded_and_launched_as_the_driver_wants(tmp_path: Path) -> None:
    """On torch's stream, in the primary context, every argument in its place."""
    pytest.importorskip("cuda.bindings.driver", reason="no cuda.bindings, which torch's CUDA builds bring")
    try:
        image = compile_for(90).image
    except ValueError as error:
        pytest.skip(str(error))
    (tmp_path / "libcuda.so.1").symlink_to(compiled(HEADER.with_name("driver.cpp")))
    (tmp_path / "image").write_bytes(image)
    environ = os.environ | {
        "LD_LIBRARY_PATH": str(tmp_path),
        "HOST_KERNELS": str(compiled(SOURCE)),
        "PYTHONPATH": str(TESTS),
    }
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "image")]
    done = subprocess.run(command, cwd=TESTS.parent, env=environ, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout == "all of it\n", done.stderr


def test_without_cuda_bindings_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a ValueError, which `data.loader=auto` takes for a loader that is not there."""
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    compile_for.cache_clear()
    with pytest.raises(ValueError, match=r"can't be compiled: .*Install torch's CUDA build"):
        CudaKernels(torch.device("cuda", 0))


def test_a_launch_asks_for_no_more_shared_memory_than_every_gpu_has() -> None:
    from distcxr.data.pixels.cuda.table import TILE_BYTES
    from distcxr.data.pixels.png_gpu import MAX_WARPS

    assert MAX_WARPS * TILE_BYTES <= MAX_SHARED_BYTES and 32 * MAX_WARPS <= 1024
