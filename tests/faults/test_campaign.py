"""A short form of the campaign of faults: real ranks, one fault each, and the same command ends as if nothing was."""

from __future__ import annotations

import os

import pytest
from faults import campaign, preparing
from faults.case import Place
from faults.required import problems_of_message

CASES = {
    "kill_rank": (3, (2,)), "kill_all": (5, (1,)), "ask_to_stop": (8, (2,)), "damaged_checkpoint": (1, (1,)),
    "vanished_folder": (2, (1,)), "kill_build": (9, (1,)), "small_files": (4, (1,)), "full_disk": (6, (1,)),
    "stop_rank": (7, (2,)),
}  # fmt: skip
"""Kind: seed, and numbers of ranks."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return preparing.prepare(tmp_path_factory.mktemp("faults"), (1, 2), launch=False)


@pytest.mark.slow
@pytest.mark.parametrize("kind", CASES)
def test_after_a_fault_the_same_command_ends_as_if_undisturbed(place: Place, kind: str) -> None:
    if kind == "full_disk" and os.geteuid():
        pytest.skip("mounting a small disk needs root")
    seed, worlds = CASES[kind]
    case, problems, _ = campaign.run_case(place, seed, [kind], worlds)
    assert problems == [], case.log.read_text()[-3000:] if case.log.exists() else ""


def test_an_end_needs_cause_and_remedy_in_its_last_lines() -> None:
    """What every kind of the campaign is held to."""
    whole = "error: /disk: 3 MB are free, 9 MB are needed; free some, and the same command resumes"
    assert problems_of_message(whole, [1]) == []
    assert problems_of_message("", [0, -9]) == []
    assert "no remedy" in problems_of_message("error: /disk: it is full", [1])[0]
    assert "no reason" in problems_of_message(whole + "\n." * 5, [1])[0]
    assert problems_of_message("Traceback (most recent call last)\n" + whole, [1]) == ["a traceback"]
