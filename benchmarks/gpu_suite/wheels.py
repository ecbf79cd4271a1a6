"""Carries packages to a machine without a network: downloads them into folders of limited size, and installs them once.

    benchmarks/gpu_suite.sh prepare DIR       DIR/first  DIR/second-1  DIR/second-2

A wheel that is too large for a folder is cut into pieces, NAME.whl.1-of-3; each call hands what it finds in WHEELS to
the scratch folder, and a wheel is installed once all its pieces are there.
"""

from __future__ import annotations

import hashlib
import math
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from gpu_suite.fatbin import trim_wheel
from gpu_suite.settings import ROOT

CARRIED = 64 << 20
"""Bytes that a call may carry, the checkout included."""
_SPARE = 1 << 20
PYTHON = "3.12"
_PLATFORMS = ("manylinux2014_x86_64", *(f"manylinux_2_{minor}_x86_64" for minor in (34, 31, 28, 27, 24, 18, 17)))
GROUPS: dict[str, tuple[str, ...]] = {
    # What such a machine lacks for everything: it has torch, torchvision, accelerate, timm, numba and cuda-bindings.
    "first": (
        "pydantic==2.14.4", "pydantic-core==2.50.5", "annotated-types==0.8.0", "typing-inspection==0.4.5",
        "isal==1.9.1", "nvidia-libnvcomp-cu13==5.3.0.16", "imagecodecs==2026.10.10",
    ),
    # DALI with what it needs, and NCCL: 2.30 is the first that takes several ranks on a GPU.
    "second": (
        "nvidia-dali-cuda130==2.4.0", "nvidia-nvimgcodec-cu13==0.9.0.20", "nvidia-nvjpeg2k-cu13==0.11.0.51",
        "nvidia-nvjpeg==13.3.2.43", "nvidia-nvtiff-cu13==0.8.0.82", "nvtx==0.2.17", "libcst==1.9.0", "optree==0.20.0",
        "gast==0.7.0", "astunparse==1.6.3", "makefun==1.16.0", "nvidia-nccl-cu13==2.30.7",
    ),
}  # fmt: skip
_TRIMMED = ("second",)
"""Groups of which too much would be carried with every architecture's code: 456 MB in place of 117."""
_PIECE = re.compile(r"(?P<wheel>.+\.whl)\.(?P<number>\d+)-of-(?P<count>\d+)$")


def prepare(folder: Path, *, architecture: int | None) -> None:
    """Download every group and divide it into folders that a call can carry; prints what each takes.

    Args:
        architecture: the machine code that the large libraries keep, for example 90; None keeps all.

    Raises:
        ValueError: the checkout itself leaves no space.
    """
    space = CARRIED - _SPARE - checkout_bytes()
    if space < 8 << 20:
        raise ValueError(f"this checkout leaves {space >> 20} MiB of {CARRIED >> 20} for wheels")
    print(f"a call carries {CARRIED >> 20} MiB, this checkout {checkout_bytes() / 2**20:.1f} of them")
    for group, names in GROUPS.items():
        with tempfile.TemporaryDirectory(dir=folder.parent if folder.parent.exists() else None) as place:
            got = download(names, Path(place))
            if architecture and group in _TRIMMED:
                trimmed = Path(place) / "trimmed"
                trimmed.mkdir()
                digits = PYTHON.replace(".", "")
                got = [trim_wheel(wheel, trimmed, architecture=architecture, python=digits) for wheel in got]
            for name, size in divide(got, folder, group, space):
                print(
                    f"{folder / name}: {size / 2**20:.1f} MiB, with the checkout {(CARRIED - space + size) / 2**20:.1f}"
                )


def download(names: Sequence[str], folder: Path) -> list[Path]:
    """Wheels for the other machine's Python, without what they depend on."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--python-version", PYTHON, "--implementation", "cp", "--dest", str(folder)]
    command += [word for platform in _PLATFORMS for word in ("--platform", platform)]
    subprocess.run([*command, *names], check=True)
    return sorted(folder.glob("*.whl"))


def checkout_bytes() -> int:
    """What travels of this checkout: files that git tracks or does not ignore."""
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z", "-co", "--exclude-standard"], capture_output=True, check=False
    )
    names = listed.stdout.decode().split("\0") if listed.returncode == 0 else []
    files = [ROOT / name for name in names if name] or [file for file in ROOT.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files if file.is_file())


def divide(wheels: Sequence[Path], folder: Path, group: str, space: int) -> list[tuple[str, int]]:
    """Put wheels into as few folders as hold them: `group`, or `group-1`, `group-2`, ... where one is not enough.

    Returns:
        each folder's name and bytes.
    """
    total = sum(wheel.stat().st_size for wheel in wheels)
    count = max(1, math.ceil(total / space))
    share = math.ceil(total / count)
    names = [group] if count == 1 else [f"{group}-{number}" for number in range(1, count + 1)]
    for name in names:
        shutil.rmtree(folder / name, ignore_errors=True)
        (folder / name).mkdir(parents=True)
    sizes = dict.fromkeys(names, 0)
    for wheel in sorted(wheels, key=lambda one: one.stat().st_size):
        content = wheel.read_bytes()
        pieces: list[tuple[str, bytes]] = []
        while content:  # the shares fill up one after the other
            name = next(name for name in names if sizes[name] < share)
            piece, content = content[: share - sizes[name]], content[share - sizes[name] :]
            pieces.append((name, piece))
            sizes[name] += len(piece)
        for number, (name, piece) in enumerate(pieces, start=1):
            end = f".{number}-of-{len(pieces)}" if len(pieces) > 1 else ""
            (folder / name / f"{wheel.name}{end}").write_bytes(piece)
    return list(sizes.items())


def take(folders: Sequence[Path], scratch: Path) -> tuple[Path | None, str]:
    """Keep what the folders hold, and install all wheels that are whole, together and into a folder of its own.

    Together, because packages look for each other's libraries beside them; anew for another set, because pip replaces
    the folders that packages share. Nothing is done where the set has not changed.

    Returns:
        the folder to import from, None without any wheel, and a line for the log.

    Raises:
        ValueError: pip fails.
    """
    kept = scratch / "wheels"
    kept.mkdir(parents=True, exist_ok=True)
    for folder in folders:
        for file in sorted([*folder.glob("*.whl"), *folder.glob("*.whl.*-of-*")]):
            if not ((kept / file.name).exists() and (kept / file.name).stat().st_size == file.stat().st_size):
                shutil.copyfile(file, kept / file.name)
    missing = join(kept)
    wheels = sorted(kept.glob("*.whl"))
    note = f"; pieces are missing of {', '.join(missing)}" if missing else ""
    if not wheels:
        return None, f"no wheels{note}"
    key = "\n".join(f"{wheel.name} {wheel.stat().st_size}" for wheel in wheels)
    site = scratch / f"site-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    if site.exists():
        return site, f"{len(wheels)} wheels, installed before{note}"
    part = site.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile"]
    command += ["--no-cache-dir", "--disable-pip-version-check", "--target", str(part), *map(str, wheels)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"pip can't install the wheels of {kept}: {done.stderr.strip()[-800:]}")
    for earlier in scratch.glob("site-*"):
        if earlier != part:  # it has fewer wheels
            shutil.rmtree(earlier)
    part.rename(site)
    return site, f"{len(wheels)} wheels installed{note}"


def join(folder: Path) -> list[str]:
    """Make wheels of their pieces where all are there; returns the names of those that miss some."""
    pieces: dict[str, dict[int, Path]] = {}
    counts: dict[str, int] = {}
    for file in folder.glob("*.whl.*-of-*"):
        if match := _PIECE.match(file.name):
            pieces.setdefault(match["wheel"], {})[int(match["number"])] = file
            counts[match["wheel"]] = int(match["count"])
    for name, found in pieces.items():
        if len(found) == counts[name] and not (folder / name).exists():
            part = folder / f"{name}.part"
            with part.open("wb") as target:
                for number in sorted(found):
                    target.write(found[number].read_bytes())
            part.rename(folder / name)
    return sorted(name for name, found in pieces.items() if len(found) < counts[name])
