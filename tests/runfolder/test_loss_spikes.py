"""A spike is a loss far above those before it; what falls, scatters or begins is none."""

from __future__ import annotations

import math

import numpy as np
import pytest

from distcxr.runfolder.loss_spikes import Spike, find_spikes, typical_loss


def columns(losses: list[float | None]) -> dict[str, list[float | None]]:
    return {"step": [float(step) for step in range(1, len(losses) + 1)], "loss": losses}


def test_a_spike_is_found_with_its_step_and_what_is_typical() -> None:
    losses: list[float | None] = [0.2 + 0.001 * (step % 7) for step in range(60)]
    losses[40], losses[50] = 0.9, None
    assert find_spikes(columns(losses)) == [Spike(41, 0.9, pytest.approx(0.203))]
    assert str(Spike(41, 0.9, 0.2)) == "0.9, 4.5 times the median of the steps before (0.2)"
    assert str(Spike(41, 0.9, 0.0)) == "0.9, above the median of the steps before (0)"


@pytest.mark.parametrize("kind", ["falls", "normal", "heavy", "few", "none"])
def test_no_false_alarm(kind: str) -> None:
    rng = np.random.default_rng(0)
    losses = {
        "falls": [0.7 * math.exp(-step / 300) for step in range(2000)],
        "normal": np.abs(0.2 + 0.05 * rng.normal(size=5000)).tolist(),
        "heavy": np.exp(0.4 * rng.normal(size=5000)).tolist(),  # a small batch of a rare finding, with a high weight
        "few": [0.1] * 19 + [9.0],
        "none": [],
    }[kind]
    assert find_spikes(columns(losses)) == []


def test_a_loss_that_stays_high_becomes_typical() -> None:
    losses: list[float | None] = [0.1] * 100 + [1.0] * 100
    found = [spike.step for spike in find_spikes(columns(losses))]
    assert found[0] == 101 and len(found) <= 50
    assert typical_loss([0.1] * 100, 0.25) is None and typical_loss([0.1] * 100, 0.35) == 0.1
