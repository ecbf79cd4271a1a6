"""A training job of several ranks in real processes, without the seconds that their imports take.

The ranks are forked from a server that has imported torch. What a launcher does is done here: when a rank fails the
others get SIGTERM, and SIGKILL after a while. Jobs that are about the launcher itself run the command as a user does.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing import resource_tracker
from pathlib import Path
from types import MappingProxyType
from typing import Any

os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # as launch.py; ranks are forked where torch is loaded already

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [
        "torch",
        "torch.distributed",
        "accelerate",
        "timm",
        "distcxr.engine.main",
        "distcxr.cli",
        "distcxr.data.pixels.kernels",
    ]
)
_TOKEN = re.compile(rb'(?<=-)[0-9a-f]{8}(?=\.)|(?<="sha256": ")[0-9a-f]{64}(?=",\n "content")')


@dataclass
class Job:
    """One launch of a recipe.

    Attributes:
        words: what `launch.py` takes.
        output: file that all ranks write to, standard error included.
        limits: resource limits of the ranks, such as RLIMIT_FSIZE, by number.
        environ: variables of the ranks; None removes one.
        verb: another than `train`, with its words.
        grace_s: what the others have once a rank has failed: `accelerate launch` gives 30.
        clock_jump: after how many seconds the wall clock, `time.time`, jumps, and by how many.
    """

    words: Sequence[str]
    world_size: int
    output: Path
    limits: Mapping[int, int] = field(default_factory=dict)
    environ: Mapping[str, str | None] = field(default_factory=dict)
    verb: str = "train"
    grace_s: float = 8.0
    clock_jump: tuple[float, float] | None = None
    ranks: list[Any] = field(default_factory=list)

    def start(self) -> Job:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.ranks = [
            SERVER.Process(target=_rank, args=(rank, self.world_size, port, replace(self, ranks=[])))
            for rank in range(self.world_size)
        ]
        for process in self.ranks:
            process.start()
        return self

    def pids(self) -> list[int]:
        return [process.pid for process in self.ranks]

    def wait(self, within_s: float) -> list[int | None]:
        """Exit codes of the ranks; None for one that was still there when the time was up, and was killed."""
        deadline, asked = time.monotonic() + within_s, False
        while any(process.is_alive() for process in self.ranks):
            if time.monotonic() > deadline:
                break
            if not asked and any(process.exitcode not in (None, 0) for process in self.ranks):
                for process in self.ranks:
                    if process.is_alive():
                        process.terminate()
                asked, deadline = True, min(deadline, time.monotonic() + self.grace_s)
            time.sleep(0.02)
        hung = [process.is_alive() for process in self.ranks]
        for process in self.ranks:
            if process.is_alive():
                process.kill()
            process.join()
        return [
            None if late and not asked else process.exitcode for late, process in zip(hung, self.ranks, strict=True)
        ]

    def text(self) -> str:
        return self.output.read_text(errors="replace") if self.output.exists() else ""


def _rank(rank: int, world_size: int, port: int, job: Job) -> None:
    os.setsid()
    _without_inherited_tracker()
    log = os.open(job.output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_WORLD_SIZE=str(world_size),
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), ACCELERATE_USE_CPU="true", OMP_NUM_THREADS="1",
    )  # fmt: skip
    for name, value in job.environ.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    for number, most in job.limits.items():
        resource.setrlimit(number, (most, most))
    import torch

    torch.set_num_threads(1)
    if job.clock_jump:
        _jump(*job.clock_jump)
    code = _command(job)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _without_inherited_tracker() -> None:
    """Forget multiprocessing's resource tracker: the campaign's would remove what a rank leaves, only hours later.

    A rank has one of its own, which lives and dies as in a real run.
    """
    tracker: Any = resource_tracker._resource_tracker  # type: ignore[attr-defined]
    os.close(tracker._fd)
    tracker._fd = tracker._pid = None


def _command(job: Job) -> int:
    if job.verb == "train":
        from distcxr.launch import main

        return main(job.words)
    from distcxr.cli import main as other

    sys.argv = ["distcxr", job.verb, *job.words]
    return other()


def _jump(after_s: float, by_s: float) -> None:
    """Python's own wall clock; what compiled code reads stays as it is."""
    real, started_s = time.time, time.monotonic()
    time.time = lambda: real() + (by_s if time.monotonic() - started_s > after_s else 0.0)


def start_launcher(
    words: Sequence[str],
    world_size: int,
    output: Path,
    before: Sequence[str] = (),
    environ: Mapping[str, str] = MappingProxyType({}),
) -> subprocess.Popen[bytes]:
    """The job as a user starts it, with `distcxr train`; `before` it a command that starts that, such as strace."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("ACCELERATE_", "DISTCXR_"))}
    with output.open("ab") as log:
        return subprocess.Popen(
            [*before, sys.executable, "-m", "distcxr.cli", "train", *words, "--processes", str(world_size)],
            env=kept | {"OMP_NUM_THREADS": "1"} | environ, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip


def descendants(pid: int) -> list[int]:
    """Processes that a process has started, and those that they have."""
    found = []
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            pids = [int(word) for word in children.read_text().split()]
        except OSError:
            continue
        for child in pids:
            found += [child, *descendants(child)]
    return found


def result(folder: Path) -> dict[str, Any]:
    """What a run ends with, to compare: the weights bit for bit, the metrics, the losses of every step."""
    from safetensors.torch import load_file

    last = sorted((folder / "checkpoints").glob("last-????????"))[-1]
    kept: dict[str, Any] = {"last": last.name}
    for name in (last.name, "best"):
        tensors = load_file(folder / "checkpoints" / name / "model.safetensors")
        kept[f"weights of {name}"] = {key: tensor.numpy().tobytes() for key, tensor in sorted(tensors.items())}
    kept["metrics"] = json.loads((folder / "metrics_val.json").read_text())
    kept["predictions"] = (folder / "predictions_val.csv").read_bytes()
    rows = [line.split(",") for line in (folder / "steps.csv").read_text().splitlines()]
    losses = rows[0].index("loss")
    kept["losses"] = [(row[0], row[losses]) for row in rows[1:]]
    return kept


def files_of(folder: Path) -> dict[str, bytes]:
    """What a build ends with: every file of the store, without random names and the checksum of those."""
    return {
        _TOKEN.sub(b"", path.relative_to(folder).as_posix().encode()).decode(): (
            _TOKEN.sub(b"", path.read_bytes()) if path.suffix == ".json" else path.read_bytes()
        )
        for path in folder.rglob("*")
        if path.is_file()
    }


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """What two results do not have in common."""
    return [name for name in one | other if one.get(name) != other.get(name)]
