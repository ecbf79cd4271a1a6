"""A rank that is stopped, in real processes: the others name it and end, and the same command resumes and ends."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file

from distcxr import exit_codes
from distcxr.runfolder.filenames import RANKS, STALLED, STALLED_MARK

_FORKSERVER = multiprocessing.get_context("forkserver")
_STALL_S = 4
_STOPPED = "stopped"
"""Holds when, and which process."""


def stop(folder: Path, pid: int | None = None) -> None:
    """Stop a process, this one by default, once."""
    if not (folder / _STOPPED).exists():
        (folder / _STOPPED).write_text(f"{time.time()} {pid or os.getpid()}")
        os.kill(pid or os.getpid(), signal.SIGSTOP)


def in_a_step(folder: Path) -> None:
    from distcxr.engine import fit as fitting

    step = fitting.train_step

    def stopping(run: object, batches: Sequence[object]) -> torch.Tensor:
        if run.state.step == 4:  # type: ignore[attr-defined]
            stop(folder)
        return step(run, batches)  # type: ignore[arg-type]

    fitting.train_step = stopping  # type: ignore[assignment]


def in_validation(folder: Path) -> None:
    from distcxr.engine import evaluate as evaluating

    binary_logits = evaluating.binary_logits

    def stopping(*arguments: object) -> torch.Tensor:
        stop(folder)
        return binary_logits(*arguments)  # type: ignore[arg-type]

    evaluating.binary_logits = stopping  # type: ignore[assignment]


def in_a_checkpoint(folder: Path) -> None:
    save = torch.save

    def stopping(*arguments: object) -> None:
        if Path(getattr(arguments[1], "name", arguments[1])).parent.name.startswith(".last-00000003"):  # type: ignore[arg-type]
            stop(folder)
        save(*arguments)  # type: ignore[arg-type]

    torch.save = stopping  # type: ignore[assignment]


def at_start_up(folder: Path) -> None:
    import distcxr.process_group as process_group

    join = process_group.join

    def stopping(*arguments: object) -> None:
        time.sleep(1)  # its first sign of life
        stop(folder)
        join(*arguments)  # type: ignore[arg-type]

    process_group.join = stopping  # type: ignore[assignment]


def in_its_worker(folder: Path) -> None:
    from distcxr.engine import fit as fitting

    step = fitting.train_step

    def stopping(run: object, batches: Sequence[object]) -> torch.Tensor:
        if run.state.step == 4:  # type: ignore[attr-defined]
            stop(folder, multiprocessing.active_children()[0].pid)
        return step(run, batches)  # type: ignore[arg-type]

    fitting.train_step = stopping  # type: ignore[assignment]


def rank_main(
    rank: int, world_size: int, port: int, folder: Path, words: list[str], before: Callable[[Path], None] | None
) -> None:
    """One rank, as a launcher starts it; `before` has it stop somewhere."""
    errors = folder / "attempt_0" / str(rank)
    errors.mkdir(parents=True, exist_ok=True)
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_WORLD_SIZE=str(world_size),
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), ACCELERATE_USE_CPU="true", OMP_NUM_THREADS="1",
        TORCHELASTIC_ERROR_FILE=str(errors / "error.json"),
    )  # fmt: skip
    with (folder / f"screen{rank}.txt").open("w") as screen:
        os.dup2(screen.fileno(), 2)
    sys.path.insert(0, str(Path(tiny.__file__).parent))
    os.chdir(folder)
    from distcxr.launch import main

    if before is not None:
        before(folder)
    torch.set_num_threads(1)
    sys.exit(main(words))


class World:
    """Ranks of a launch."""

    def __init__(self, folder: Path, world_size: int, words: Sequence[str]) -> None:
        self.folder, self.world_size = folder, world_size
        self.words = ["tiny.yaml", "data.root=phantom", f"train.stall_s={_STALL_S}", *words]

    def start(self, victim: int | None, before: Callable[[Path], None] | None = None) -> list[BaseProcess]:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        processes = [
            _FORKSERVER.Process(
                target=rank_main,
                args=(rank, self.world_size, port, self.folder, self.words, before if rank == victim else None),
            )
            for rank in range(self.world_size)
        ]
        for process in processes:
            process.start()
        return processes

    def stalls(self, victim: int, before: Callable[[Path], None], *, alone: bool = True) -> list[str]:
        """Messages of the ranks that end by themselves: those beside the `victim`, or with it if it is not `alone`."""
        processes = self.start(victim, before)
        others = [process for rank, process in enumerate(processes) if rank != victim or not alone]
        try:
            for process in others:
                process.join(60)
            ended_s = time.time()
            assert [process.exitcode for process in others] == [exit_codes.STALLED] * len(others), self.screens()
        finally:
            for process in processes:
                process.kill()
                process.join()
        stopped_s = float((self.folder / _STOPPED).read_text().split()[0])
        assert ended_s - stopped_s < 3 * _STALL_S, f"{ended_s - stopped_s:.1f} s"
        messages = [
            json.loads((self.folder / "attempt_0" / str(rank) / "error.json").read_text())["message"]["message"]
            for rank in range(self.world_size)
            if rank != victim or not alone
        ]
        assert len(set(messages)) == 1
        speaker = 1 if victim == 0 and alone else 0
        assert (self.folder / f"screen{speaker}.txt").read_text().splitlines()[-1].endswith(f"error: {messages[0]}")
        return messages

    def ends(self) -> None:
        """The same command again, to its end."""
        processes = self.start(None)
        for process in processes:
            process.join(120)
        assert [process.exitcode for process in processes] == [0] * self.world_size, self.screens()

    def screens(self) -> str:
        return "\n".join(path.read_text() for path in sorted(self.folder.glob("screen*.txt")))

    @property
    def victim_pid(self) -> int:
        return int((self.folder / _STOPPED).read_text().split()[1])


COMMON = ("train.max_steps=6", "checkpoint.every=3st", "eval.every=900ep", "eval.splits=[]", "output=run")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny.phantom(tmp_path)
    tiny.recipe(tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("world_size", "victim", "before", "place"),
    [
        (2, 1, in_a_step, "step 5"),
        (2, 1, in_validation, "validation of step 3"),
        (2, 0, in_a_checkpoint, "step [45]"),  # the write of step 3 is beside the training
        (4, 2, in_a_step, "step 5"),
    ],
)
def test_a_stopped_rank_is_named_by_the_others(
    folder: Path, world_size: int, victim: int, before: Callable[[Path], None], place: str
) -> None:
    """And the same command ends as a run that nothing has disturbed."""
    more = ["eval.every=1ep"] if before is in_validation else []
    world = World(folder, world_size, [*COMMON, *more])
    message = world.stalls(victim, before)[0]
    assert re.match(f"rank {victim} is missing in {place}: process {world.victim_pid} on ", message), message
    assert "is stopped (T), last sign of life 20" in message
    assert f"for {_STALL_S} s (train.stall_s); run/{STALLED} has every rank's stacks" in message
    account = (folder / "run" / STALLED).read_text()
    assert all(f"stacks of rank {rank}\n" in account for rank in range(world_size)), account
    assert (
        account.count('launch.py", line') == world_size - 1
        and f"none: process {world.victim_pid} is stopped" in account
    )
    assert (folder / "run" / STALLED_MARK).exists()
    if world_size == 2 and before is in_a_step:
        world.ends()
        World(folder, world_size, [*COMMON, "output=straight"]).ends()
        one, other = (
            load_file(folder / name / "checkpoints" / "last-00000006" / "model.safetensors")
            for name in ("run", "straight")
        )
        assert all(torch.equal(one[key], other[key]) for key in one | other)


def test_a_rank_that_stops_before_there_is_a_run_folder_is_named(folder: Path) -> None:
    message = World(folder, 2, COMMON).stalls(1, at_start_up)[0]
    assert message.startswith("rank 1 is missing in start-up: process "), message
    assert "is stopped (T), last sign of life 20" in message and not (folder / "run").exists()
    assert "stacks of rank 0" in (folder / "screen0.txt").read_text()


def test_a_stopped_worker_is_named_with_its_rank(folder: Path) -> None:
    world = World(folder, 2, [*COMMON, "data.num_workers=1", "data.prefetch=1"])
    message = world.stalls(1, in_its_worker, alone=False)[0]
    assert message.startswith("rank 1 makes no progress, waiting for the images of step "), message
    assert f"its worker process {world.victim_pid} is stopped (T). Nothing" in message
    assert f"worker processes: {world.victim_pid} stopped (T)" in (folder / "run" / STALLED).read_text()
    os.kill(world.victim_pid, signal.SIGCONT)
    assert not (folder / "run" / RANKS / "rank2").exists()
