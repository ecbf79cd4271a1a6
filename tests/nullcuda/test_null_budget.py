"""A step's launches, copies, collectives and syncs are within what budget.toml grants them, and not far below it."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from nullcuda.scenario import Found

BUDGET: dict[str, dict[str, int]] = tomllib.loads(Path(__file__).with_name("budget.toml").read_text())
KEPT = 0.9
"""Share of a budget that has to be used, so that it stays an honest one."""


@pytest.fixture(scope="module")
def seen(run_scenario: object) -> Found:
    return run_scenario("densenet")  # type: ignore[operator,no-any-return]


def complaints(row: str, measured: dict[str, int]) -> list[str]:
    """A line for every count that budget.toml has to be changed for, or the code."""
    lines = []
    for name, granted in BUDGET[row].items():
        advice = f"write {name} = {measured[name]} into [{row}] of tests/nullcuda/budget.toml"
        if measured[name] > granted:
            lines.append(
                f"{row}: {measured[name]:,} {name} are over the budget of {granted:,}; if they are worth it, {advice}"
            )
        elif measured[name] < KEPT * granted:
            lines.append(f"{row}: {measured[name]:,} {name} are far below the budget of {granted:,}: {advice}")
    return lines


@pytest.mark.parametrize("row", [row for row in BUDGET if row != "step_of_a_rank"])
def test_one_process(row: str, seen: Found) -> None:
    measured = seen["one_process"][row]
    assert measured.keys() == BUDGET[row].keys()
    assert complaints(row, measured) == []


def test_one_rank_of_four_where_every_process_sees_one_device(seen: Found) -> None:
    measured = seen["one_rank_of_four"]["step_of_a_rank"]
    assert measured.keys() == BUDGET["step_of_a_rank"].keys()
    assert complaints("step_of_a_rank", measured) == []


def test_a_budget_is_exact_to_a_tenth() -> None:
    granted = BUDGET["step"]
    assert complaints("step", granted) == []
    (over,) = complaints("step", granted | {"syncs": granted["syncs"] + 1})
    assert "over the budget" in over and f"write syncs = {granted['syncs'] + 1} into [step]" in over
    (below,) = complaints("step", granted | {"launches": granted["launches"] // 2})
    assert "far below" in below and f"write launches = {granted['launches'] // 2} into [step]" in below
