"""Waiting for a rank that works on its host: without a collective, which would time out and end the run."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from pathlib import Path

import pytest
import tiny
import torch
import torch.distributed as dist

from distcxr import process_group

SLOW_S = 0.7


@tiny.worlds(2)
def test_no_collective_runs_while_a_rank_works(
    tmp_path: Path, world_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = tiny.runtime(tiny.recipe(tmp_path))
    begun: list[float] = []
    for name in ("all_gather_object", "broadcast_object_list"):
        collective = getattr(dist, name)

        def noted(*args: object, _collective: object = collective, **more: object) -> object:
            begun.append(time.time())  # one clock for both ranks
            return _collective(*args, **more)  # type: ignore[operator]

        monkeypatch.setattr(torch.distributed, name, noted)

    def work(rank: int) -> float:
        if runtime.rank == rank:
            time.sleep(SLOW_S)
        return time.time()

    done = runtime.done_by_all(lambda: work(1))
    last = torch.tensor(done, dtype=torch.float64)
    dist.all_reduce(last, dist.ReduceOp.MAX)
    assert begun[0] >= last.item()
    decided = runtime.decided_by_main(lambda: work(0))
    assert begun[1] >= decided
    started = time.monotonic()
    work(1)
    runtime.wait_for_all()
    assert time.monotonic() - started >= SLOW_S - 0.01


@pytest.mark.parametrize(("stall_s", "minutes"), [(None, 10), (120.0, 10), (900.0, 30)])
def test_a_collective_waits_longer_than_a_stall_lasts(stall_s: float | None, minutes: int) -> None:
    assert process_group.collective_timeout(stall_s) == timedelta(minutes=minutes)


@tiny.worlds(2)
def test_the_time_out_is_that_of_the_group(tmp_path: Path, world_size: int) -> None:
    """Accelerate would hand on none that equals its own default, and gloo's thirty minutes would stand."""
    dist.destroy_process_group()
    os.environ["MASTER_PORT"] = str(int(os.environ["MASTER_PORT"]) + 1)
    runtime = tiny.runtime(tiny.recipe(tmp_path))
    group = dist.group.WORLD
    assert group is not None and group._get_backend(runtime.device).options._timeout == timedelta(minutes=10)


@tiny.worlds(2)
def test_without_nccl_there_is_no_flight_record(tmp_path: Path, world_size: int) -> None:
    assert not process_group.write_flight_record(tmp_path / "record") and not (tmp_path / "record").exists()


@tiny.worlds(2)
def test_a_rank_that_never_comes_is_named(world_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_group, "LONGEST_WAIT_S", 0.5)
    if dist.get_rank() == 0:
        with pytest.raises(RuntimeError, match=r"waited for rank 1 for 0 minutes; the longest wait is 0"):
            process_group.wait_for_all()


@tiny.worlds(2, 4)
def test_rank_0_leaves_last(world_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its process may hold the store that the others ask."""
    rank, store, left = dist.get_rank(), process_group._get_default_store(), []
    monkeypatch.setattr(dist, "destroy_process_group", lambda: left.append(store.add("test/left", 1)))
    process_group.leave()
    if rank == 0:
        names = [key for key in ("distcxr/0/left",) if store.check([key])]
        assert names and store.add(names[0], 0) == world_size - 1
    assert left


@tiny.worlds(2)
def test_buffers_of_every_dtype_come_from_rank_0(world_size: int) -> None:
    rank = dist.get_rank()
    tensors = [
        torch.full((2, 3), float(rank)),
        torch.tensor(rank),
        torch.full((4,), rank + 0.5),
        torch.tensor(rank == 1),
    ]
    process_group.broadcast_from_main(tensors)
    assert [tensor.flatten()[0].item() for tensor in tensors] == [0.0, 0, 0.5, False]
    assert tensors[0].shape == (2, 3)


@tiny.worlds(1)
def test_an_unknown_backend_is_named(world_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", os.environ | {"WORLD_SIZE": "2", "RANK": "0", "DISTCXR_BACKEND": "mpi"})
    monkeypatch.setattr(dist, "is_initialized", lambda: False)
    with pytest.raises(ValueError, match=r"DISTCXR_BACKEND=mpi: give nccl or gloo"):
        process_group.join(torch.device("cpu"))
