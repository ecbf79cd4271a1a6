"""Compiles the kernels of kernels.cu for a GPU and launches them on torch's stream.

NVRTC and the driver are called through `cuda.bindings`, which torch's CUDA builds bring along, so neither a compiler
nor a package is needed that training does without. Compiling takes a second and is done once per process and kind of
GPU.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch

SOURCE = Path(__file__).with_name("kernels.cu")
KERNELS = ("unfilter", "resize")
MAX_SHARED_BYTES = 48 << 10
"""Dynamic shared memory that every GPU gives a block without an attribute being set."""


class CudaKernels:
    """The compiled kernels, on one NVIDIA GPU; tests have others, on a CPU.

    Attributes:
        where: what runs them, for the log.
    """

    def __init__(self, device: torch.device) -> None:
        assert device.type == "cuda" and device.index is not None
        torch.cuda.init()  # type: ignore[no-untyped-call]
        self._device = device
        major, minor = torch.cuda.get_device_capability(device)
        compiled = compile_for(10 * major + minor)  # first: its error names the remedy where `cuda.bindings` is missing
        from cuda.bindings import driver

        self.where = f"{device} ({compiled.architecture})"
        image = np.frombuffer(compiled.image, dtype=np.uint8)
        # The context that torch uses, too. A thread that has made no CUDA call yet has none that is current.
        self._context = _checked(driver.cuDevicePrimaryCtxRetain(_checked(driver.cuDeviceGet(device.index))))
        _checked(driver.cuCtxPushCurrent(self._context))
        try:
            module = _checked(driver.cuModuleLoadData(image.ctypes.data))
            self._functions = {name: _checked(driver.cuModuleGetFunction(module, name.encode())) for name in KERNELS}
        except RuntimeError as error:
            raise ValueError(
                f"the driver of {device} does not take the kernels compiled for it ({error}): update it, or take a "
                "build of torch for the CUDA version that `nvidia-smi` shows"
            ) from error
        finally:
            _checked(driver.cuCtxPopCurrent())

    def launch(
        self, kernel: str, grid: tuple[int, int], threads: int, shared_bytes: int, arguments: Sequence[int]
    ) -> None:
        """Run a kernel on the current stream, asynchronously.

        Args:
            kernel: one of KERNELS.
            grid: blocks along x and y.
            threads: of a block.
            shared_bytes: dynamic shared memory of a block, at most MAX_SHARED_BYTES.
            arguments: 64 bits each, addresses on the device and numbers.
        """
        from cuda.bindings import driver

        assert shared_bytes <= MAX_SHARED_BYTES
        values = np.array(arguments, dtype=np.uint64)  # the driver copies them before it returns
        addresses = values.ctypes.data + 8 * np.arange(len(values), dtype=np.uint64)
        stream = torch.cuda.current_stream(self._device).cuda_stream
        _checked(driver.cuCtxPushCurrent(self._context))
        try:
            _checked(
                driver.cuLaunchKernel(
                    self._functions[kernel], *grid, 1, threads, 1, 1, shared_bytes, stream, addresses.ctypes.data, 0
                )
            )
        finally:
            _checked(driver.cuCtxPopCurrent())


def cuda_kernels(device: torch.device) -> CudaKernels:
    """The kernels for a GPU, the current one where the device names none; compiled at the first call.
    Raises ValueError: they can't be compiled or loaded; names what to install."""
    return _of_gpu(torch.cuda.current_device() if device.index is None else device.index)


@functools.cache
def _of_gpu(index: int) -> CudaKernels:
    return CudaKernels(torch.device("cuda", index))


class Compiled(NamedTuple):
    """kernels.cu for one kind of GPU."""

    image: bytes  # what the driver loads
    architecture: str  # sm_90 for machine code, compute_90 for PTX
    log: str  # the compiler's messages, most often none


def find_compiler() -> tuple[ModuleType, list[int]]:
    """NVRTC's bindings, and the compute capabilities it compiles for; no GPU is needed.
    Raises ValueError: they are missing; names what to install."""
    try:
        from cuda.bindings import nvrtc

        return nvrtc, [int(number) for number in _checked(nvrtc.nvrtcGetSupportedArchs())]
    except (ImportError, RuntimeError) as error:  # the latter when its shared library is not there
        raise ValueError(
            f"the CUDA kernels can't be compiled: {error}. Install torch's CUDA build (its wheels bring NVRTC and "
            "cuda-bindings), or take a loader that decodes on the CPU"
        ) from error


@functools.cache
def compile_for(capability: int) -> Compiled:
    """Compile kernels.cu for a compute capability, 90 for 9.0.

    To machine code where this NVRTC knows the GPU, because any driver of the same major CUDA version takes that; for a
    GPU that is newer, to PTX, which its driver compiles.

    Raises ValueError: NVRTC is missing, fails, or knows no GPU as old as this one.
    """
    nvrtc, known = find_compiler()
    if capability < min(known):
        raise ValueError(
            f"this CUDA has no compiler for GPUs of capability {capability / 10:.1f}, but from {min(known) / 10:.1f} "
            "on: install requirements/cuda12.txt, or take a loader that decodes on the CPU"
        )
    exact = capability in known
    newest = max(number for number in known if number <= capability)
    architecture = f"sm_{capability}" if exact else f"compute_{newest}"
    program = _checked(nvrtc.nvrtcCreateProgram(SOURCE.read_bytes(), SOURCE.name.encode(), 0, [], []))
    options = [f"--gpu-architecture={architecture}".encode(), b"--std=c++17"]
    (status,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
    log_bytes = bytes(_checked(nvrtc.nvrtcGetProgramLogSize(program)))  # filled in place, as the image
    _checked(nvrtc.nvrtcGetProgramLog(program, log_bytes))
    log = log_bytes.rstrip(b"\0").decode().strip()
    if int(status) != 0:
        raise ValueError(
            f"the CUDA kernels can't be compiled for {architecture}: {log}. Take a loader that decodes on the CPU"
        )
    kind = "CUBIN" if exact else "PTX"
    image = bytes(_checked(getattr(nvrtc, f"nvrtcGet{kind}Size")(program)))
    _checked(getattr(nvrtc, f"nvrtcGet{kind}")(program, image))
    _checked(nvrtc.nvrtcDestroyProgram(program))
    return Compiled(image, architecture, log)


def _checked(answer: tuple[Any, ...]) -> Any:
    """What a call of `cuda.bindings` returned besides its status; RuntimeError when that is not success."""
    status, *values = answer
    if int(status) != 0:
        raise RuntimeError(f"CUDA returned {status.name}")
    return values[0] if len(values) == 1 else values
