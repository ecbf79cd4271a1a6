"""Checks the machine: versions, missing packages, and whether distcxr's own kernels compile, load and are right.

python -m gpu_suite.preflight versions --json FILE [--needed MODULE ...]
python -m gpu_suite.preflight kernels --json FILE
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

NEEDED = (
    "torch", "torchvision", "accelerate", "timm", "numpy", "pandas", "sklearn", "yaml", "pydantic", "safetensors",
    "PIL", "isal", "numba", "rich", "jinja2", "tensorboard", "pytest", "psutil", "matplotlib", "cuda.bindings",
)  # fmt: skip
OPTIONAL = ("nvidia.dali", "nvidia.libnvcomp", "imagecodecs", "torchmetrics", "triton", "lightning")
_DISTRIBUTIONS = {
    "sklearn": "scikit-learn", "yaml": "pyyaml", "PIL": "pillow", "cuda.bindings": "cuda-bindings",
    "nvidia.dali": "nvidia-dali-cuda130", "nvidia.libnvcomp": "nvidia-libnvcomp-cu13",
}  # fmt: skip
_HOPPER = 90  # compiled for where there is no GPU

Row = dict[str, Any]


def main() -> int:
    """Look, write the rows, and end with 1 where something needed is missing or wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=("versions", "kernels"))
    parser.add_argument("--needed", nargs="+", default=NEEDED, metavar="MODULE")
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    rows = versions(args.needed) if args.what == "versions" else kernels()
    args.json.write_text(json.dumps(rows, indent=1))
    for row in rows:
        print(row)
    return int(any(row["status"] == "wrong" for row in rows))


def versions(needed: tuple[str, ...]) -> list[Row]:
    """A row for the machine and one for every module."""
    command = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,pcie.link.gen.max", "--format=csv,noheader"]
    try:
        machine = subprocess.run(command, capture_output=True, text=True, timeout=30).stdout.strip()
    except (OSError, subprocess.TimeoutExpired) as error:
        machine = str(error)
    rows = [_row("nvidia-smi", "", "shows", machine)]
    for name in dict.fromkeys([*needed, *OPTIONAL]):
        started = time.monotonic()
        try:
            importlib.import_module(name)
        except Exception as error:  # a package may fail in any way: this is where it is found out
            rows.append(_row(name, "", "wrong" if name in needed else "missing", f"{type(error).__name__}: {error}"))
        else:
            rows.append(_row(name, _version(name), "there", f"{time.monotonic() - started:.1f} s"))
    return rows


def kernels() -> list[Row]:
    """A row for each thing that has to work before anything else is tried."""
    import torch

    from distcxr.data.pixels.cuda.module import compile_for
    from distcxr.data.pixels.decode import load_kernels

    started = time.monotonic()
    load_kernels()
    rows = [_row("numba kernels", "", "there", f"{time.monotonic() - started:.1f} s")]
    on_gpu = torch.cuda.is_available()
    major, minor = torch.cuda.get_device_capability() if on_gpu else divmod(_HOPPER, 10)
    try:
        compiled = compile_for(10 * major + minor)
        rows.append(_row("CUDA kernels compile", compiled.architecture, "there", compiled.log))
    except ValueError as error:
        return [*rows, _row("CUDA kernels compile", f"sm_{major}{minor}", "wrong", str(error))]
    if not on_gpu:
        return rows
    for inflate in ("cpu", "gpu"):
        command = [sys.executable, "benchmarks/gpu_sanitize.py", "--inflate", inflate]
        done = subprocess.run(command, capture_output=True, text=True)
        last = (done.stdout + done.stderr).strip().splitlines()[-1:]
        # nvCOMP may be missing, as the row notes; what the CPU inflates has to work everywhere.
        bad = "wrong" if inflate == "cpu" else "missing"
        rows.append(_row(f"decode, inflated by the {inflate}", "", bad if done.returncode else "there", " ".join(last)))
    return rows


def _row(name: str, version: str, status: str, note: str) -> Row:
    return {"name": name, "version": version, "status": status, "note": note}


def _version(module: str) -> str:
    try:
        return metadata.version(_DISTRIBUTIONS.get(module, module))
    except metadata.PackageNotFoundError:
        return str(getattr(sys.modules[module], "__version__", ""))


if __name__ == "__main__":
    sys.exit(main())
