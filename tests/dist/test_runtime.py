"""Decisions that ranks share, and which rank logs what."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import tiny
from rich.console import Console

from distcxr.logs import start_logging


@tiny.worlds(1, 2)
def test_what_is_wrong_on_one_rank_is_raised_on_all(tmp_path: Path, world_size: int) -> None:
    runtime = tiny.runtime(tiny.recipe(tmp_path))
    assert runtime.done_by_all(lambda: runtime.rank) == runtime.rank
    last = world_size - 1

    def fail_on_the_last() -> None:
        if runtime.rank == last:
            raise ValueError(f"rank {last} has no disk")

    with pytest.raises(ValueError, match=f"rank {last} has no disk"):
        runtime.done_by_all(fail_on_the_last)

    def fail_on_all() -> None:
        raise ValueError(f"rank {runtime.rank}")

    with pytest.raises(ValueError, match="rank 0"):
        runtime.done_by_all(fail_on_all)
    assert runtime.done_by_all(lambda: 3) == 3


@pytest.mark.parametrize(("rank", "expected"), [("0", ["line", "of any", "wrong"]), ("3", ["of any", "wrong"])])
def test_which_rank_logs_what(
    rank: str, expected: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root, distcxr = logging.getLogger(), logging.getLogger("distcxr")
    kept, levels = root.handlers[:], (root.level, distcxr.level)
    monkeypatch.setenv("RANK", rank)
    try:
        start_logging(Console())
        logger = logging.getLogger("distcxr.test")
        logger.info("line")
        logger.info("of any", extra={"from_any_rank": True})
        logger.error("wrong")
    finally:
        root.handlers[:] = kept
        root.setLevel(levels[0])
        distcxr.setLevel(levels[1])
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(maxsplit=1)[1].removeprefix(f"[rank {rank}] ") for line in lines] == expected
