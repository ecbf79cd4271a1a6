"""The files that every case reads, and what is known about the machine."""

from __future__ import annotations

import datetime
import functools
import os
import platform
import random
import re
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

PHANTOM_SIZE = 1024
_VERSIONS = ("torch", "torchvision", "pillow", "numpy", "numba", "isal", "nvidia-dali-cuda130", "nvidia-dali-cuda120")


def pick_files(root: Path, num: int, batch_size: int) -> tuple[str, ...]:
    """`num` readable PNGs of `root`, spread evenly over it, in an order that is always the same.

    Fewer where there are fewer; always a multiple of `batch_size`, so that whole batches make whole rounds.

    Raises:
        ValueError: there are not enough for one batch.
    """
    from distcxr.data.pixels.decode import decode_grey
    from distcxr.data.pixels.image_bytes import UnreadableImage, read_file

    found = sorted(file for folder in sorted(root.absolute().glob("images*")) for file in folder.rglob("*.png"))
    if len(found) < batch_size:
        raise ValueError(
            f"{root} holds {len(found)} PNGs in images*/, fewer than one batch of {batch_size}: give another --root, "
            "or a smaller --batch"
        )
    picked = []
    for file in found[:: max(1, len(found) // num)]:
        try:
            decode_grey(read_file(file)[0])
        except UnreadableImage:
            continue  # DALI's own reader would die of it
        picked.append(str(file))
        if len(picked) == num:
            break
    picked = picked[: len(picked) // batch_size * batch_size]
    if not picked:
        raise ValueError(f"{root} holds fewer than {batch_size} PNGs that can be read")
    random.Random(0).shuffle(picked)
    return tuple(picked)


def draw_phantoms(folder: Path, num: int) -> Path:
    """`num` synthetic X-rays of 1024 px where there are no real ones, half a second each; returns their folder."""
    from distcxr.phantom.writing import write_phantom

    out = folder / f"phantom{num}"
    write_phantom(out, images=num, size=PHANTOM_SIZE)
    return out


def native_size(files: tuple[str, ...]) -> int:
    """Side of the files' images in pixels (the median width)."""
    widths = sorted(int.from_bytes(Path(file).read_bytes()[16:20]) for file in files)  # IHDR's first field
    return widths[len(widths) // 2]


def num_gpus() -> int:
    """GPUs that torch can use; torch is only asked, for 2 s, where there might be one."""
    if not (Path("/dev/nvidiactl").exists() or shutil.which("nvidia-smi")):
        return 0
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


@functools.cache
def host_facts() -> dict[str, Any]:
    """When and on what a row was measured; the same in every row of a run."""
    return {
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "gpu": _gpu_name(),
        "busy_before": _busy(),
        "versions": {"python": platform.python_version(), **dict(_installed())},
    }


def _busy() -> float:
    """Share of the cores that others keep busy, looked at for half a second while nothing is measured."""
    import psutil

    return round(float(psutil.cpu_percent(0.5)) / 100, 2)


def _installed() -> list[tuple[str, str]]:
    found = []
    for name in _VERSIONS:
        try:
            found.append((name, metadata.version(name)))
        except metadata.PackageNotFoundError:
            continue
    return found


def _cpu_name() -> str:
    """The processor's name; its family and model where a virtual machine hides the rest."""
    text = Path("/proc/cpuinfo").read_text()
    fields = {key.strip(): value.strip() for key, value in re.findall(r"^([^:\n]+):(.*)$", text, re.MULTILINE)}
    numbers = f"(family {fields.get('cpu family', '?')}, model {fields.get('model', '?')})"
    return f"{fields.get('model name', platform.machine())} {numbers}"


def _gpu_name() -> str | None:
    if not num_gpus():
        return None
    import torch

    return torch.cuda.get_device_name(0)
