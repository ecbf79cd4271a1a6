"""A scenario: parts that run one after the other in one process under the null CUDA, and what each found, as JSON.

`found` runs one from a test; `main` is the other end, in the process. An import of torch costs more than most parts do.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import pytest

_TESTS = Path(__file__).parents[1]
_TIMEOUT_S = 240
_NOT_FOR_IT = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "CUDA_VISIBLE_DEVICES", "ACCELERATE_USE_CPU")
_LAST_LINES = 30
_EXPECTED_WARNINGS = (
    "Synchronization debug mode is a prototype feature",
    "Warning only once for all operators",  # of moves.py, which overrides some
    "`torch.jit.script_method` is deprecated",  # of torch.compile itself, as in pyproject.toml
)

Part = Callable[[Path], Any]


class Found:
    """What the parts of a scenario found, by the names of their functions; a part that failed fails who asks for it."""

    def __init__(self, parts: dict[str, dict[str, Any]]) -> None:
        self._parts = parts

    def __getitem__(self, part: str) -> Any:
        answer = self._parts[part]
        if "error" in answer:
            pytest.fail(answer["error"], pytrace=False)
        return answer["found"]


def environment(library: Path, devices: int, **more: str) -> dict[str, str]:
    """Of a process under the null CUDA with so many devices."""
    kept = {name: value for name, value in os.environ.items() if name not in _NOT_FOR_IT}
    paths = [str(_TESTS), str(_TESTS.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    return kept | {
        "LD_PRELOAD": str(library),
        "LD_LIBRARY_PATH": str(library.parent),
        "NULLCUDA_DEVICES": str(devices),
        "PYTHONPATH": os.pathsep.join(paths),
        "OMP_NUM_THREADS": "1",
        **more,
    }


def found(scenario: str, folder: Path, library: Path, devices: int = 1, **more: str) -> Found:
    """Run `nullcuda.<scenario>` with the data in `folder`.

    Args:
        library: of `build.build`.
        more: environment variables.
    """
    with tempfile.TemporaryDirectory(prefix="nullcuda_") as own:
        out = Path(own) / "found.json"
        done = subprocess.run(
            [sys.executable, "-m", f"nullcuda.{scenario}", str(folder), own, str(out)],
            env=environment(library, devices, **more), capture_output=True, text=True, timeout=_TIMEOUT_S,
        )  # fmt: skip
        if done.returncode != 0 or not out.exists():
            last = "\n".join(done.stderr.splitlines()[-_LAST_LINES:])
            pytest.fail(f"{scenario} ended with code {done.returncode}:\n{last}", pytrace=False)
        return Found(json.loads(out.read_text()))


def main(prepare: Callable[[Path, Path], None], parts: Sequence[Part]) -> NoReturn:
    """Run the parts, each in a folder of its own beside a link to the data, and write what they found.

    Args:
        prepare: called first, with the folder of the data and one of the process's own.
    """
    data, own, out = map(Path, sys.argv[1:])
    warnings.simplefilter("error")
    for message in _EXPECTED_WARNINGS:
        warnings.filterwarnings("ignore", re.escape(message))
    try:
        prepare(data, own)
        out.write_text(json.dumps({part.__name__: _answer(part, data, own) for part in parts}))
    except BaseException:
        traceback.print_exc()
        leave(1)
    leave(0)


def _answer(part: Part, data: Path, own: Path) -> dict[str, Any]:
    folder = own / part.__name__
    folder.mkdir()
    (folder / "phantom").symlink_to(data / "phantom")
    try:
        return {"found": part(folder)}
    except Exception:
        return {"error": traceback.format_exc()}


def leave(code: int) -> NoReturn:
    """At once: NCCL's watchdog would wait for ranks that do not exist."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
