"""Which rank holds up the others, from what the ranks have written; and the sentence that names it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from distcxr import processes
from distcxr.runfolder.rank_files import RankFile

HUNG = ("stopped", "tracing", "disk", "zombie")
"""States that no process of a healthy run is in for long."""


@dataclass(frozen=True)
class Missing:
    """A rank that holds up the others.

    Attributes:
        file: None where it has written nothing in this launch.
        is_gone: it writes no more; else it lives and makes no progress.
    """

    rank: int
    file: RankFile | None
    is_gone: bool


def behind(files: Mapping[int, RankFile]) -> list[int]:
    """Of ranks that all live and make no progress, those that the others wait for; all where none stands out."""
    first = min((file.step, file.phase) for file in files.values())
    found = [rank for rank, file in files.items() if (file.step, file.phase) == first]
    busy = [rank for rank in found if not files[rank].waits]
    return busy or found


def sentence(missing: Sequence[Missing], mine: RankFile, world_size: int, limit_s: float) -> str:
    """Who it is, where it is and since when, as the rank sees it that has written `mine`."""
    if len(missing) == world_size > 1:
        text = f"no rank makes progress, and none is behind the others: {place(mine)}"
    else:
        text = "; ".join(_about(one, mine) for one in missing)
    return f"{text}. Nothing has moved for {limit_s:.0f} s (train.stall_s)"


def place(file: RankFile) -> str:
    """What a rank does: `step 12`, `validation of step 12`."""
    return f"{file.doing} {file.step}" if file.step else file.doing


def _about(one: Missing, mine: RankFile) -> str:
    file = one.file
    if file is None:
        return f"rank {one.rank} is missing in {place(mine)}: it has given no sign of life"
    process, state = f"process {file.pid} on {file.host}", state_of(file) if file.host == mine.host else ""
    if one.is_gone:
        shown = f"{process} is {state}" if state else process
        return (
            f"rank {one.rank} is missing in {place(mine)}: {shown}, last sign of life {file.written} in {place(file)}"
        )
    hung = f" is {state}" if state.startswith(HUNG) else ""
    workers = "".join(f", its worker process {pid} is {state}" for pid, state in file.workers.items())
    return f"rank {one.rank} makes no progress, {place(file)}: {process}{hung}{workers}"


def state_of(file: RankFile) -> str:
    """State of a rank's process on this machine."""
    if processes.started_at(file.pid) != file.started:
        return "gone"
    return processes.state(file.pid) or "gone"
