"""Builds the null CUDA for the torch that is installed: driver/*.cpp, and a stub for every other function torch links.

What a stub does: a few calls that only set something are ignored, all others are refused with an error, and both are
counted by name. So nothing that a program asks for is left out silently.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

_SOURCES = Path(__file__).with_name("driver")
_LIBRARY = "libcuda.so.1"  # what cuda.bindings and torch open the driver by
_MANAGEMENT = "libnvidia-ml.so.1"  # by which torch counts devices: a real one would count those of the machine
_LINKING = ("libtorch_cuda.so", "libtorch_cuda_linalg.so", "libtorch_python.so", "libc10_cuda.so", "libcaffe2_nvrtc.so")
_REPLACED = re.compile(r"(__cuda|cuda|cublas|cudnn|cusolver|cusparse|cufft|curand|nccl|cu)[A-Z]")
_LEFT_ALONE = re.compile("cuFile")  # reads files into a GPU; torch links it and does not call it
_IGNORED = re.compile(
    "cublasSet(Stream|PointerMode|Workspace).*|cublasLtMatmul(Desc|Preference)SetAttribute|"
    "cublasLtMatrixLayoutSetAttribute|cudnnSetTensorNdDescriptor|cudaDeviceEnablePeerAccess|"
    "cudaFuncSetAttribute|cudaProfilerSt(art|op)|cudaThreadExchangeStreamCaptureMode|cudaMemcpyToSymbol|"
    "ncclGroup(Start|End)|ncclComm(Abort|Finalize)"
)


def why_not() -> str | None:
    """Why it can't be built here; None where it can."""
    if sys.platform != "linux":
        return "the null CUDA is loaded as Linux loads libraries"
    if not (torch.version.cuda or "").startswith("13"):
        return f"the null CUDA stands in for CUDA 13, and this torch is built for {torch.version.cuda or 'CPUs alone'}"
    for tool in ("g++", "nm"):
        if shutil.which(tool) is None:
            return f"no {tool} to build the null CUDA with"
    missing = [header for header, folder in _headers().items() if not (folder / header).exists()]
    if missing:
        return f"no CUDA headers to build the null CUDA with: {', '.join(missing)}"
    return None


def build(folder: Path) -> Path:
    """The library, made in `folder`; takes some seconds."""
    sources = sorted(_SOURCES.glob("*.cpp"))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(lambda source: _compiled(source, folder), sources))
    stubs = folder / "stubs.cpp"
    stubs.write_text(_stubs(_linked() - _defined(objects)))
    library = folder / _LIBRARY
    _run(
        "g++", "-shared", *map(str, objects), str(_compiled(stubs, folder)), "-o", str(library),
        f"-Wl,-soname,{_LIBRARY}", f"-Wl,--version-script={_SOURCES / 'exports.map'}", "-ldl",
    )  # fmt: skip
    (folder / _MANAGEMENT).symlink_to(library.name)
    return library


def _headers() -> dict[str, Path]:
    """A header of each sort that is included, and the folder where torch's wheels put it."""
    site = Path(torch.__file__).parents[1]
    return {
        "cuda_runtime_api.h": site / "nvidia" / "cu13" / "include",
        "cudnn.h": site / "nvidia" / "cudnn" / "include",
        "nccl.h": site / "nvidia" / "nccl" / "include",
        "crt/host_defines.h": site / "triton" / "backends" / "nvidia" / "include",  # the wheel of the others has no crt
    }


def _compiled(source: Path, folder: Path) -> Path:
    made = folder / f"{source.stem}.o"
    options = ["-std=c++17", "-O1", "-fPIC", "-Wall", "-Wextra", "-Werror"]
    includes = [f"-isystem{place}" for place in _headers().values()]
    _run("g++", *options, *includes, "-c", str(source), "-o", str(made))
    return made


def _linked() -> set[str]:
    """Names of the CUDA functions that torch's libraries leave to others."""
    libraries = Path(torch.__file__).parent / "lib"
    names = {name for library in _LINKING for name in _symbols(libraries / library, "--dynamic", "--undefined-only")}
    return {name for name in names if _REPLACED.match(name) and not _LEFT_ALONE.match(name)}


def _defined(objects: list[Path]) -> set[str]:
    return {name for one in objects for name in _symbols(one, "--extern-only", "--defined-only")}


def _symbols(file: Path, *options: str) -> set[str]:
    lines = _run("nm", *options, str(file)).splitlines()
    return {line.split()[-1].split("@")[0] for line in lines if line.strip()}


def _stubs(names: set[str]) -> str:
    """C++ for functions declared without arguments, as theirs are not used."""
    lines = ['extern "C" {', "void null_cuda_ignored(const char* name);", "int null_cuda_refused(const char* name);"]
    for name in sorted(names):
        if name.endswith("String"):
            lines.append(f'const char* {name}() {{ return "an error of the null CUDA"; }}')
        elif _IGNORED.fullmatch(name):
            lines.append(f'int {name}() {{ null_cuda_ignored("{name}"); return 0; }}')
        else:
            lines.append(f'int {name}() {{ return null_cuda_refused("{name}"); }}')
    return "\n".join([*lines, "}", ""])


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
    return done.stdout
