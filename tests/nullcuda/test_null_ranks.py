"""Rank 2 of four pretended ranks: it touches its own device alone, and no step waits."""

from __future__ import annotations

import pytest
from nullcuda.one_rank_of_four import RANK, WORLD_SIZE
from nullcuda.parts import READERS
from nullcuda.scenario import Found


@pytest.fixture(scope="module")
def seen(run_scenario: object) -> Found:
    return run_scenario("one_rank_of_four", devices=WORLD_SIZE)  # type: ignore[operator,no-any-return]


@pytest.mark.parametrize("step", ["step_bf16", "step_fp16", "step_skipping", "step_with_carried_moments"])
def test_a_step_waits_for_nothing(step: str, seen: Found) -> None:
    """And warns of nothing: of an input of one channel, DDP would."""
    figures = seen[step]
    assert figures["launches"] > 100 and figures["collectives"] >= 2
    assert figures["syncs"] == figures["copies_to_host"] == figures["copies_to_device"] == 0


def test_fit_to_the_end(seen: Found) -> None:
    assert seen["fitted"]["step"] == seen["fitted"]["expected"]


def test_evaluation(seen: Found) -> None:
    assert seen["evaluated"]["num_scored"] == seen["evaluated"]["expected"]


@pytest.mark.parametrize("reader", READERS)
def test_batches_arrive_as_they_were_read(reader: str, seen: Found) -> None:
    found = seen["readers"][reader]
    assert found["num_batches"] == 14 and found["is_in_order"]
    assert found["num_wrong_pixels"] == found["num_wrong_labels"] == 0
    assert found["warnings"] == []


def test_no_other_rank_s_device_was_touched(seen: Found) -> None:
    """By anything above: tensors, launches, streams, events, pinned memory, NCCL, kernels of our own."""
    calls = seen["devices"]
    assert list(calls) == [str(RANK)]
    assert {"launch", "memory", "pinned memory", "copy", "stream", "NCCL communicator"} <= calls[str(RANK)].keys()


def test_a_planted_thread_is_found_on_device_0(seen: Found) -> None:
    assert list(seen["planted_thread"]) == ["0", str(RANK)]
