"""Which run gets which GPU and which cores."""

from __future__ import annotations

import pytest

from distcxr.jobs.slots import Slot, shared_machine, visible_gpus, whole_machine


def test_one_after_another_takes_every_gpu() -> None:
    assert whole_machine(None, ["0", "1", "2", "3"]) == [Slot(processes=4)]
    assert whole_machine(2, ["0", "1", "2", "3"]) == [Slot(processes=2)]
    assert whole_machine(None, []) == [Slot(processes=1)]
    with pytest.raises(ValueError, match="there are 1 GPUs"):
        whole_machine(2, ["0"])


def test_at_once_one_gpu_each_and_all_cores_shared_out() -> None:
    slots = shared_machine(None, ["4", "6"], [1, 3, 5, 7, 9])
    assert slots == [Slot(1, "4", (1, 3)), Slot(1, "6", (5, 7, 9))]


def test_more_runs_than_gpus_or_cores_share_them() -> None:
    slots = shared_machine(3, ["0", "1"], [0, 1])
    assert [slot.gpu for slot in slots] == ["0", "1", "0"]
    assert [slot.cores for slot in slots] == [(0,), (1,), (0,)]


def test_without_gpus_the_number_has_to_be_said() -> None:
    with pytest.raises(ValueError, match="--parallel 2"):
        shared_machine(None, [], [0, 1])
    assert [slot.gpu for slot in shared_machine(2, [], [0, 1])] == [None, None]


def test_gpus_are_those_that_the_user_made_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    monkeypatch.setattr("distcxr.jobs.slots._num_gpus", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5, GPU-abc")
    assert visible_gpus() == ["5", "GPU-abc"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert visible_gpus() == ["0", "1"]
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert visible_gpus() == []
