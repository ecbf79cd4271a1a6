"""The settings of a call of the suite, from its arguments and the environment."""

from __future__ import annotations

import datetime
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LIMITS_S = {
    "preflight": 110, "tests": 310, "sanitize": 170, "decode": 310, "step": 420, "runs": 360, "dali": 300, "ranks": 240,
}  # fmt: skip
"""Seconds of each part, in the order in which they run. `preflight tests` take 7 minutes, `sanitize decode` 8."""
PARTS = tuple(LIMITS_S)

_PROBE = """
import json, platform, torch
gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
card = torch.cuda.get_device_name(0) if gpus else None
print(json.dumps({"card": card, "gpus": gpus, "torch": torch.__version__, "python": platform.python_version()}))
"""


@dataclass(frozen=True)
class Settings:
    """One call.

    Attributes:
        results: folder of what comes out: few files, complete after every step.
        scratch: folder of what is kept between calls on one machine: installed wheels, images, run folders.
        parts: names of the parts to run, in order.
        limits_s: seconds of each part.
        dry: tiny sizes, to show that the suite itself works; always so without a GPU.
        force: run parts that have finished, too.
        wheels: folders with wheels to install, as `prepare` makes them.
        nih_root: folder with real images.
        machine: `card` (None without a GPU), `gpus`, and the versions of `torch` and `python`.
        site: folder of the installed wheels, if there are any.
    """

    results: Path
    scratch: Path
    parts: tuple[str, ...]
    limits_s: Mapping[str, float]
    dry: bool
    force: bool
    wheels: tuple[Path, ...]
    nih_root: Path | None
    machine: Mapping[str, Any]
    site: Path | None = None
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def on_gpu(self) -> bool:
        return bool(self.machine["gpus"])

    @property
    def work(self) -> Path:
        """Where steps put what nobody collects."""
        return self.scratch / "work"

    def variables(self) -> dict[str, str]:
        """The environment of a step: this checkout and the carried wheels in front, no pytest plug-ins."""
        paths = [ROOT / "benchmarks", ROOT, *([self.site] if self.site else [])]
        before = self.environment.get("PYTHONPATH", "").split(os.pathsep)
        python_path = os.pathsep.join([*map(str, paths), *(path for path in before if path not in map(str, paths))])
        return {
            **self.environment, "PYTHONPATH": python_path.rstrip(os.pathsep), "PYTHONUNBUFFERED": "1",
            "PYTHONFAULTHANDLER": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            **({"DISTCXR_NIH_ROOT": str(self.nih_root)} if self.nih_root else {}),
        }  # fmt: skip


def read_settings(results: Path | None, environment: Mapping[str, str]) -> Settings:
    """The settings of a call.

    Raises:
        ValueError: a part or a limit that does not exist, a folder that is not there, or a Python without torch.
    """
    parts = tuple(environment.get("PARTS", " ".join(PARTS)).split())
    if unknown := [part for part in parts if part not in PARTS]:
        raise ValueError(f"PARTS: {' '.join(unknown)} unknown; known are {' '.join(PARTS)}")
    limits_s = {part: _seconds(environment, part) for part in PARTS}
    wheels = tuple(Path(folder).resolve() for folder in environment.get("WHEELS", "").split(os.pathsep) if folder)
    root = environment.get("DISTCXR_NIH_ROOT")
    for folder in (*wheels, *([Path(root)] if root else [])):
        if not folder.is_dir():
            raise ValueError(f"{folder} is not a folder")
    machine = probe(environment)
    dry = environment.get("DRY", "") not in ("", "0") or not machine["gpus"]
    scratch = Path(environment.get("SCRATCH") or Path(tempfile.gettempdir()) / f"distcxr-gpu-suite-{os.getuid()}")
    day = f"{datetime.date.today().isoformat()}_{slug(machine['card'])}"
    default = scratch / f"dry_{day}" if dry else ROOT / "benchmarks" / "results" / day
    return Settings(
        results=(results or default).resolve(), scratch=scratch.resolve(), parts=parts, limits_s=limits_s, dry=dry,
        force=environment.get("FORCE", "") not in ("", "0"), wheels=wheels,
        nih_root=Path(root).resolve() if root else None, machine=machine, environment=dict(environment),
    )  # fmt: skip


def probe(environment: Mapping[str, str]) -> dict[str, Any]:
    """The GPU as torch sees it, asked by a process of its own: this one shall never hold a part of its memory.

    Raises:
        ValueError: torch can't be imported or asked.
    """
    asked = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, text=True, env=dict(environment))
    if asked.returncode:
        raise ValueError(f"{sys.executable} has no working torch: {asked.stderr.strip()[-500:]}")
    found: dict[str, Any] = json.loads(asked.stdout.splitlines()[-1])
    return found


def slug(card: str | None) -> str:
    """A card's name as a part of a folder's: `h100-80gb-hbm3`."""
    name = re.sub(r"^nvidia\W+", "", (card or "no gpu").lower())
    return re.sub(r"\W+", "-", name).strip("-")


def _seconds(environment: Mapping[str, str], part: str) -> float:
    name = f"LIMIT_{part.upper()}"
    text = environment.get(name, str(LIMITS_S[part]))
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0
    if seconds <= 0:
        raise ValueError(f"{name}={text}: give seconds, more than 0")
    return seconds
