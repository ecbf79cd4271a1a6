"""One process: no step waits for the device, what a run keeps arrives whole, readers reuse no memory too early."""

from __future__ import annotations

import pytest
from nullcuda.parts import READERS
from nullcuda.scenario import Found

STEPS = ("step_bf16", "step_fp16", "step_fp32", "step_skipping", "step_skipping_fp16", "step_of_pairs")


@pytest.fixture(scope="module")
def seen(run_scenario: object) -> Found:
    return run_scenario("one_process")  # type: ignore[operator,no-any-return]


@pytest.mark.parametrize("step", STEPS)
def test_a_step_waits_for_nothing(step: str, seen: Found) -> None:
    """Two micro-batches with an average of the weights, or SGD; torch, asked to raise where it waits, did not."""
    figures = seen[step]
    assert figures["launches"] > 100
    assert figures["syncs"] == figures["copies_to_host"] == figures["copies_to_device"] == 0


def test_carried_moments_cost_a_step_nothing(seen: Found) -> None:
    figures = seen["step_with_carried_moments"]
    assert figures["carried"] == figures["before"] and figures["carried"]["syncs"] == 0


def test_a_planted_sync_is_found(seen: Found) -> None:
    assert seen["planted_sync"] == {"syncs": 1, "raised": "called a synchronizing CUDA operation"}


def test_fit_and_a_resumed_fit(seen: Found) -> None:
    """On the device are the checkpoint's weights and their average, bit for bit, though the copies were late."""
    found = seen["fit_and_resume"]
    assert found["begun_at"] == 4 and found["ended_at"] == found["expected_end"] == 9
    assert found["steps"] == [str(step) for step in range(1, 10)]
    assert found["differing"] == []


def test_evaluation_gathers_every_sample_and_waits_a_fixed_number_of_times(seen: Found) -> None:
    val, train = seen["evaluated"]["val"], seen["evaluated"]["train"]
    assert val["is_whole"] and train["is_whole"] and 0 < val["num_samples"] < train["num_samples"] / 3
    assert val["syncs"] == train["syncs"] and val["copies_to_host"] == train["copies_to_host"]


@pytest.mark.parametrize("reader", READERS)
def test_batches_arrive_as_they_were_read(reader: str, seen: Found) -> None:
    """Every copy is as late as CUDA allows: memory that a reader used again too early would show in the pixels."""
    found = seen["readers"][reader]
    assert found["num_batches"] == 28 and found["is_in_order"]
    assert found["num_wrong_pixels"] == found["num_wrong_labels"] == 0
    assert found["warnings"] == []


def test_a_planted_early_reuse_is_found(seen: Found) -> None:
    found = seen["planted_reuse"]
    assert found["num_batches"] == 28 and found["num_wrong_labels"] == 0
    assert found["num_wrong_pixels"] > 28


def test_nothing_was_asked_for_that_is_not_there(seen: Found) -> None:
    assert seen["calls"] == {}
