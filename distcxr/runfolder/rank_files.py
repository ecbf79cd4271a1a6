"""A small file for each rank of a running launch: where it is, and that it lives. The others read it when they wait.

    RUN/.ranks/rank0   {"rank": 0, "pid": 4242, "host": "node7", "doing": "step", "step": 12, "beats": 17, ...}

A file and not the store of the process group, which hangs with the rank that holds it. Each rank rewrites its own, in
place: another name every few seconds would be work for the servers of a shared file system.
"""

from __future__ import annotations

import json
import os
import shutil
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from distcxr.runfolder import filenames

_SIZE = 2048  # of every file, so that a write never leaves a part of the one before
_TRIES = 3


@dataclass(frozen=True)
class RankFile:
    """What a rank's file holds.

    Attributes:
        started: of its process, as `processes.started_at`.
        doing, step, phase: what its main thread does, of which update; phases of an update are in order.
        beats: how often it was written: a rank with a number that no longer grows is dead, or stopped.
        written: date and time by its own clock.
        idle_s: since its main thread made progress.
        is_stuck: whether that is longer than it ever takes.
        waits: whether its main thread waits for other ranks, as far as that can be seen.
        is_leaving: whether it has left its account of a stall, and is about to end.
        workers: states of its worker processes that hang, by process id: stopped, or in a read that does not return.
    """

    rank: int
    pid: int
    host: str
    started: int | None
    doing: str
    step: int
    phase: int
    beats: int
    written: str
    idle_s: float = 0.0
    is_stuck: bool = False
    waits: bool = False
    is_leaving: bool = False
    workers: dict[str, str] = field(default_factory=dict)


def forget_earlier(run_folder: Path) -> None:
    """Remove what the ranks of an earlier launch have left; on one rank, before any writes."""
    shutil.rmtree(run_folder / filenames.RANKS, ignore_errors=True)


def path_of(folder: Path, rank: int) -> Path:
    """Where a rank's file is."""
    return folder / f"rank{rank}"


def write_rank_file(folder: Path, content: RankFile) -> None:
    """Write it in place, with one call, which readers see whole.

    Raises:
        OSError: it can't be written.
    """
    text = json.dumps(asdict(content))
    if len(text) > _SIZE:  # of very many workers
        text = json.dumps(asdict(content) | {"workers": {}})
    descriptor = os.open(path_of(folder, content.rank), os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, text.encode().ljust(_SIZE))
    finally:
        os.close(descriptor)


def read_rank_file(folder: Path, rank: int) -> RankFile | None:
    """What a rank has written; None where it has not, or where it can't be read."""
    for _ in range(_TRIES):
        with suppress(OSError, ValueError, TypeError):
            found: dict[str, Any] = json.loads(path_of(folder, rank).read_bytes())
            return RankFile(**found)
    return None
