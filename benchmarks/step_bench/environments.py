"""An environment for each loop of others: its packages in their pinned versions, everything else this interpreter's."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from step_bench.loops import Loop

DEFAULT = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "distcxr-bench"
PIP_TIMEOUT_S = 180
_READY = "ready"


class Unavailable(Exception):
    """A loop's package can't be had here; the message is the reason."""


@dataclass(frozen=True)
class Python:
    """An interpreter for a loop; `note` is empty for the pinned one."""

    path: str
    note: str = ""


def python_for(loop: Loop, environments: Path) -> Python:
    """The interpreter of the loop's environment, which is made where it is not there yet.

    Without a network, a package that this interpreter has in another version is taken from it.

    Raises:
        Unavailable: pip can't install it, and this interpreter has none.
    """
    if not loop.pins:
        return Python(sys.executable)
    folder = environments / name_of(loop.pins, site_folders())
    try:
        if not (folder / _READY).exists():
            make(folder, loop.pins, site_folders())
        return Python(str(folder / "bin" / "python"))
    except Unavailable as error:
        if importlib.util.find_spec(loop.package) is None:
            raise
        return Python(sys.executable, f"this interpreter's, for {loop.pins[0]} can't be installed: {error}")


def name_of(pins: tuple[str, ...], sites: list[str]) -> str:
    """The folder of an environment: another one for other pins, another Python or other packages below it."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    digest = hashlib.sha256("\n".join([version, *pins, *sites]).encode()).hexdigest()[:10]
    return f"{pins[0].replace('==', '-')}-{digest}"


def site_folders() -> list[str]:
    """Where this interpreter has its installed packages."""
    return [folder for folder in sys.path if Path(folder).name in ("site-packages", "dist-packages")]


def make(folder: Path, pins: tuple[str, ...], sites: list[str]) -> None:
    """Make an environment; a folder without its last file, from a program that was stopped, is made anew.

    Raises:
        Unavailable: with pip's reason.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f"{folder.name}-", suffix=".part", dir=folder.parent))
    except OSError as error:
        raise Unavailable(f"{folder.parent}: {error.strerror}") from None
    try:
        _run([sys.executable, "-m", "venv", "--without-pip", str(part)])
        python = str(part / "bin" / "python")
        # Whatever lies below, the pinned version has to be in here: so pip looks at nothing that is installed.
        _run([
            sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--ignore-installed",
            "--only-binary", ":all:", "--no-compile", "--quiet", "--disable-pip-version-check", "--no-input",
            "--retries", "0", "--timeout", "15", *pins,
        ])  # fmt: skip
        below = next(part.glob("lib/python*/site-packages")) / "below.pth"
        below.write_text("\n".join(sites) + "\n")
        (part / _READY).write_text("\n".join(pins) + "\n")
        shutil.rmtree(folder, ignore_errors=True)
        part.rename(folder)
    except OSError as error:
        raise Unavailable(f"{folder}: {error.strerror}") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PIP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise Unavailable(f"no answer within {PIP_TIMEOUT_S} s") from None
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if "error" in line.lower()] or lines or [f"status {done.returncode}"]
        raise Unavailable(errors[-1].strip())
