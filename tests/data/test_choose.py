"""Which reader is chosen, with how many workers, and the line that says why."""

from __future__ import annotations

import logging
import os
import sys
from contextlib import closing
from pathlib import Path
from typing import Literal

import pytest
import torch

from distcxr.data.loader import PixelReader
from distcxr.data.loaders import choose
from distcxr.data.loaders.choose import choose_reader, thread_budget
from distcxr.data.loaders.dali import DaliReader
from distcxr.data.loaders.torch import TorchReader


@pytest.mark.parametrize(
    ("cpus", "world", "environ", "budget"),
    [
        (16, 1, {}, 16),
        (16, 4, {}, 4),
        (2, 2, {}, 1),
        (1, 4, {}, 1),
        (8, 4, {"SLURM_CPUS_PER_TASK": "8", "SLURM_STEP_TASKS_PER_NODE": "4(x2)"}, 8),  # one task per rank
        (64, 4, {"SLURM_CPUS_PER_TASK": "8", "SLURM_TASKS_PER_NODE": "4"}, 8),  # not bound to its CPUs
        (32, 4, {"SLURM_CPUS_PER_TASK": "32", "SLURM_STEP_TASKS_PER_NODE": "1(x2)"}, 8),  # one task per node
        (64, 4, {"SLURM_CPUS_PER_TASK": "32"}, 8),
    ],
)
def test_thread_budget(
    cpus: int, world: int, environ: dict[str, str], budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cpus)))
    monkeypatch.setattr(choose, "_cgroup_cpus", lambda: None)
    assert thread_budget(world, environ) == budget


def test_thread_budget_minds_the_containers_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "membership").write_text("0::/a/b\n")
    (tmp_path / "a" / "cpu.max").write_text("600000 100000\n")
    (tmp_path / "a" / "b" / "cpu.max").write_text("max 100000\n")
    limit = choose._cgroup_cpus(tmp_path, tmp_path / "membership")
    assert limit == 6
    (tmp_path / "cpu" / "job").mkdir(parents=True)
    (tmp_path / "cpu" / "job" / "cpu.cfs_quota_us").write_text("250000\n")
    (tmp_path / "cpu" / "job" / "cpu.cfs_period_us").write_text("100000\n")
    (tmp_path / "membership").write_text("4:memory:/job\n1:cpu:/job\n")
    assert choose._cgroup_cpus(tmp_path, tmp_path / "membership") == 2.5
    (tmp_path / "cpu" / "job" / "cpu.cfs_quota_us").write_text("-1\n")
    assert choose._cgroup_cpus(tmp_path, tmp_path / "membership") is None
    monkeypatch.setattr(choose, "_cgroup_cpus", lambda: 6.0)
    assert [thread_budget(world, {}) for world in (1, 2, 4, 8)] == [6, 3, 1, 1]


def pick(
    loader: Literal["auto", "torch", "dali"], *, num_workers: int | None = None, world: int = 1, device: str = "cpu"
) -> PixelReader:
    return choose_reader(
        loader,
        image_size=32,
        max_batch_size=4,
        num_workers=num_workers,
        device=torch.device(device),
        prefetch=2,
        local_world_size=world,
    )


def test_auto_says_what_it_took_and_why(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(choose, "thread_budget", lambda world: 4 // world)
    with caplog.at_level(logging.INFO, logger="distcxr"):
        assert isinstance(pick("auto"), TorchReader)
        assert "loader torch (without a GPU, DALI" in caplog.text and "4 worker processes (Pillow)" in caplog.text
        pick("torch", world=4)
        assert "loader torch (as asked)" in caplog.text and "in the calling process" in caplog.text
        with closing(pick("dali", num_workers=3)) as dali:
            assert isinstance(dali, DaliReader)
        assert "DALI, 3 threads (DALI has no GPU PNG decoder); resized on the CPU" in caplog.text


def test_dali_missing_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    with pytest.raises(ValueError, match=r"nvidia-dali-cuda130.*nvidia-dali-cuda120.*data.loader=torch"):
        pick("dali")
    with caplog.at_level(logging.INFO, logger="distcxr"):
        assert isinstance(pick("auto", device="cuda:0"), TorchReader)
    assert "loader torch (DALI does not work here: " in caplog.text and "nvidia.dali" in caplog.text


def test_auto_trains_on_when_dali_can_not_use_the_gpu(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> PixelReader:
        raise RuntimeError("CUDA driver version is insufficient")

    monkeypatch.setattr(choose, "_dali", fail)
    with caplog.at_level(logging.INFO, logger="distcxr"):
        assert isinstance(pick("auto", device="cuda:0"), TorchReader)
    assert "loader torch (DALI does not work here: CUDA driver version" in caplog.text
    with pytest.raises(ValueError, match=r"DALI does not work here .CUDA driver version"):
        pick("dali", device="cuda:0")


def test_auto_takes_dali_for_a_gpu(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    asked: list[tuple[object, ...]] = []

    def on_the_cpu(*arguments: object) -> PixelReader:
        asked.append(arguments)
        return DaliReader(32, max_batch_size=4, num_threads=1, device_id=None)

    monkeypatch.setattr(choose, "_dali", on_the_cpu)
    monkeypatch.setattr(choose, "thread_budget", lambda world: 8 // world)
    with caplog.at_level(logging.INFO, logger="distcxr"), closing(pick("auto", world=2, device="cuda:1")) as reader:
        assert isinstance(reader, DaliReader)
    assert asked == [(32, 4, 4, 2, 1)]
    assert "loader dali (a GPU trains and DALI is installed)" in caplog.text
