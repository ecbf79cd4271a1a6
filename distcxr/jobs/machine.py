"""`distcxr env`: what this machine and this installation have, and what is missing: what a bug report needs.

Names of machines, users and environment variables other than those listed here are left out.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from types import ModuleType

from packaging.requirements import Requirement

from distcxr.jobs.slots import usable_cores
from distcxr.launcher_flags import config_file
from distcxr.runfolder.storage import in_units
from distcxr.version import __version__

EXTRAS = {
    "dicom": "DICOM images",
    "dali": "data.loader=dali",
    "onnx": "distcxr export RUN model.onnx",
    "lora": "model.lora",
    "gpu": "data.loader=gpu: PNGs inflated and packs decoded on the GPU",
    "pack": "distcxr pack, data.source=pack",
    "trackers": "logging.trackers",
    "ui": "distcxr ui",
}
"""What each extra of the package is for."""

_VARIABLES = (
    "ACCELERATE_", "CUDA_", "DISTCXR_", "GLOO_", "MASTER_", "NCCL_", "NVIDIA_VISIBLE_DEVICES", "OMP_NUM_THREADS",
    "PYTORCH_", "RANK", "LOCAL_RANK", "SLURM_JOB_ID", "SLURM_NNODES", "SLURM_NTASKS", "TORCH_", "WORLD_SIZE",
)  # fmt: skip
"""Prefixes of the environment variables that change what a run does."""
_SAME_FOR_CUDA_12 = {"nvidia-dali-cuda130": "nvidia-dali-cuda120"}


def describe_machine() -> dict[str, dict[str, str]]:
    """Sections of figures and versions, in the order in which a reader needs them; all are text."""
    return {
        "distcxr": {"version": __version__, "installed at": str(Path(__file__).parents[1])},
        "system": _system(),
        "GPUs": _gpus(),
        "packages": _packages(),
        "environment": _environment(),
        "missing": _missing(),
    }


def _system() -> dict[str, str]:
    shm = Path("/dev/shm")
    return {
        "python": f"{platform.python_version()} ({sys.executable})",
        "platform": platform.platform(),
        "cores": f"{len(usable_cores())} usable of {os.cpu_count()}",
        "memory": in_units(_memory_bytes()),
        "/dev/shm": f"{in_units(shutil.disk_usage(shm).free)} free" if shm.is_dir() else "there is none",
        "SLURM": "yes" if shutil.which("sbatch") else "no",
    }


def _memory_bytes() -> int:
    """Of this machine, or of the container that this process is in."""
    most = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            return min(most, int(Path(path).read_text()))
        except (OSError, ValueError):  # "max"
            continue
    return most


def _torch() -> ModuleType | None:
    """PyTorch; None where it is not installed, or broken: then this command is needed most."""
    try:
        import torch
    except (ImportError, OSError):
        return None
    return torch


def _gpus() -> dict[str, str]:
    torch, found = _torch(), {"driver": _driver()}
    if torch is None:
        return found
    found["CUDA of PyTorch"] = torch.version.cuda or "none: a build for CPUs"
    if torch.cuda.is_available():
        found["NCCL"] = ".".join(map(str, torch.cuda.nccl.version()))
        for number in range(torch.cuda.device_count()):
            gpu = torch.cuda.get_device_properties(number)
            found[f"GPU {number}"] = (
                f"{gpu.name}, {in_units(gpu.total_memory)}, compute capability {gpu.major}.{gpu.minor}"
            )
    return found


def _driver() -> str:
    try:
        asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        answer = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=True).stdout
        return answer.split("\n")[0].strip() or "no answer from nvidia-smi"
    except FileNotFoundError:
        return "none: there is no nvidia-smi"
    except (OSError, subprocess.SubprocessError) as error:
        return f"nvidia-smi fails: {error}"


def _requirements() -> list[Requirement]:
    try:
        return [Requirement(line) for line in requires("distcxr") or []]
    except PackageNotFoundError:  # run from a folder, not installed
        return []


def _extra(requirement: Requirement) -> str:
    """The extra that a requirement belongs to; empty where everybody needs it."""
    return next((name for name in EXTRAS if requirement.marker and requirement.marker.evaluate({"extra": name})), "")


def _packages() -> dict[str, str]:
    """Installed ones of distcxr's requirements."""
    names = {one.name: one for one in _requirements() if one.marker is None or _extra(one)}
    return {name: found for name in names if (found := _version(name))}


def _version(name: str) -> str:
    """Of an installed package; empty where there is none."""
    try:
        return version(name)
    except PackageNotFoundError:
        return _version(_SAME_FOR_CUDA_12[name]) if name in _SAME_FOR_CUDA_12 else ""


def _missing() -> dict[str, str]:
    """What is not there or of another version than is supported, with what would give it."""
    found: dict[str, str] = {}
    for one in _requirements():
        extra, has = _extra(one), _version(one.name)
        if one.marker is not None and not extra:
            continue
        if has and not one.specifier.contains(has, prereleases=True):
            found[one.name] = f"{has} is not supported: pip install '{one.name}{one.specifier}'"
        elif not has:
            what = f"for {EXTRAS[extra]}: pip install 'distcxr[{extra}]'" if extra else f"pip install '{one}'"
            found[one.name] = f"not installed, {what}"
    torch = _torch()
    if torch is None:
        found.setdefault("torch", "can't be imported: python -c 'import torch' shows the reason")
    elif not torch.cuda.is_available():
        found["a GPU"] = _why_no_gpu(torch.version.cuda)
    return found


def _why_no_gpu(cuda: str | None) -> str:
    if cuda is None:
        return "PyTorch is a build for CPUs: pip install -r requirements/cuda13.txt"
    if shutil.which("nvidia-smi") is None:
        return "this machine has no NVIDIA driver, or the container does not see it (docker run --gpus all)"
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return "CUDA_VISIBLE_DEVICES is empty, which hides them"
    return f"PyTorch finds none; its CUDA {cuda} may be newer than the driver: requirements/cuda12.txt"


def _environment() -> dict[str, str]:
    """Variables, and Accelerate's own settings of this user, where there are any."""
    found = {name: os.environ[name] for name in sorted(os.environ) if name.startswith(_VARIABLES)}
    if path := config_file():
        found[str(path)] = "what `accelerate launch` does without flags; `distcxr train` does not read it"
    return found
