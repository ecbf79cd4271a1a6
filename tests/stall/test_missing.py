"""Who holds up the others, and the sentence that names it."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from distcxr import processes
from distcxr.runfolder.rank_files import RankFile, path_of, read_rank_file, write_rank_file
from distcxr.stall.missing import Missing, behind, sentence

DATA, STEP, VALIDATION = 1, 2, 3


def file(rank: int, step: int = 12, phase: int = STEP, **more: Any) -> RankFile:
    given: dict[str, Any] = {
        "pid": 4242, "host": "node7", "started": 5, "doing": "step", "beats": 3, "written": "2026-11-28 14:03:12",
    } | more  # fmt: skip
    return RankFile(rank=rank, step=step, phase=phase, **given)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ([file(0), file(1, phase=DATA), file(2)], [1]),  # the others are in its gradients' exchange
        ([file(0, step=13, phase=DATA), file(1, phase=VALIDATION), file(2, step=13)], [1]),
        ([file(0), file(1, waits=True), file(2, waits=True)], [0]),
        ([file(0), file(1)], [0, 1]),
        ([file(0, waits=True), file(1, waits=True)], [0, 1]),
    ],
)
def test_who_is_behind(files: list[RankFile], expected: list[int]) -> None:
    assert behind({one.rank: one for one in files}) == expected


def test_sentences() -> None:
    mine, end = file(0, host="node1"), ". Nothing has moved for 120 s (train.stall_s)"
    gone = Missing(1, file(1, step=11), is_gone=True)
    assert sentence([gone], mine, 4, 120) == (
        f"rank 1 is missing in step 12: process 4242 on node7, last sign of life 2026-11-28 14:03:12 in step 11{end}"
    )
    assert sentence([Missing(3, None, is_gone=True)], replace(mine, step=0, doing="start-up"), 4, 120) == (
        f"rank 3 is missing in start-up: it has given no sign of life{end}"
    )
    waiting = file(2, phase=DATA, doing="waiting for the images of step", workers={"77": "stopped (T)"})
    assert sentence([Missing(2, waiting, is_gone=False)], mine, 4, 120) == (
        "rank 2 makes no progress, waiting for the images of step 12: process 4242 on node7, its worker process 77 is "
        f"stopped (T){end}"
    )
    all_of_them = [Missing(rank, file(rank), is_gone=False) for rank in (0, 1)]
    assert sentence(all_of_them, mine, 2, 120).startswith("no rank makes progress, and none is behind the others: step")
    assert sentence(all_of_them[:1], mine, 1, 120).startswith("rank 0 makes no progress, step 12")


def test_a_process_on_this_machine_is_looked_at() -> None:
    me = {"pid": os.getpid(), "host": "here", "started": processes.started_at(os.getpid())}
    gone = Missing(1, file(1, **me), is_gone=True)
    assert f"process {os.getpid()} on here is running (R), last" in sentence([gone], file(0, host="here"), 2, 1)
    later = Missing(1, file(1, **me | {"started": 0}), is_gone=True)  # another process has its number
    assert f"process {os.getpid()} on here is gone, last" in sentence([later], file(0, host="here"), 2, 1)


def test_files_of_ranks(tmp_path: Path) -> None:
    assert read_rank_file(tmp_path, 1) is None
    full = file(1, workers={"77": "stopped (T)"})
    write_rank_file(tmp_path, full)
    size = path_of(tmp_path, 1).stat().st_size
    assert read_rank_file(tmp_path, 1) == full
    short = file(1, doing="x")
    write_rank_file(tmp_path, short)
    assert read_rank_file(tmp_path, 1) == short and path_of(tmp_path, 1).stat().st_size == size
    write_rank_file(tmp_path, file(1, workers={str(pid): "disk sleep (D)" for pid in range(10_000, 10_300)}))
    assert path_of(tmp_path, 1).stat().st_size == size and read_rank_file(tmp_path, 1) == file(1)
    path_of(tmp_path, 1).write_text('{"rank": 1}')
    assert read_rank_file(tmp_path, 1) is None
