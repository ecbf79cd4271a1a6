"""The device that a run computes on: what it is, whether it has the recipe's precision, and how it computes."""

from __future__ import annotations

import ctypes
import platform
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from distcxr.recipe import Recipe


def device_name(device: torch.device) -> str:
    """The GPU's or CPU's product name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def check_device(recipe: Recipe, device: torch.device) -> None:
    """Raise ValueError for a device that does not have the recipe's precision."""
    precision = recipe.train.precision
    if device.type == "cpu":
        if precision == "fp16":
            raise ValueError("train.precision=fp16 needs a GPU; on a CPU use bf16 or no")
        return
    name, capability = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
    if capability < (7, 5) and (torch.version.cuda or "").startswith("13"):
        raise ValueError(
            f"{name} (compute capability {capability[0]}.{capability[1]}) has no kernels in CUDA 13 builds of "
            "PyTorch: install the CUDA 12 ones with `pip install -r requirements/cuda12.txt`"
        )
    if precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ValueError(f"{name} has no bfloat16; use train.precision=fp16")


def use_arithmetic(recipe: Recipe) -> None:
    """Compute float32 products as the recipe has them, for the whole process."""
    torch.set_float32_matmul_precision("high" if recipe.train.tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = recipe.train.tf32
    torch.backends.cudnn.benchmark = not recipe.train.deterministic


_turns = threading.RLock()
"""The settings are the process's: of two threads the second would take the first one's for the program's own."""


@contextmanager
def arithmetic_of(recipe: Recipe) -> Iterator[None]:
    """What `start_runtime` sets for the whole process, for the time of the block: float32 products as the recipe has
    them, and cuDNN's trials. An autocast of the program around it has no effect within. Threads take turns."""
    cudnn = torch.backends.cudnn
    with _turns, torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
        try:
            precision = torch.get_float32_matmul_precision()
        except RuntimeError:  # set through PyTorch's newer names, which can't be read back through this one: left alone
            yield
            return
        before = cudnn.allow_tf32, cudnn.benchmark
        use_arithmetic(recipe)
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(precision)
            cudnn.allow_tf32, cudnn.benchmark = before


def keep_freed_memory() -> None:
    """Have the C library keep memory that tensors free, for the next ones.

    It returns large blocks to the kernel at once, and gets every page of them anew, zeroed: 17,500 page faults a step
    of DenseNet-121 with 16 images, a tenth of its time. Where there is no glibc nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of <malloc.h>
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(mmap_threshold, 2**30)
