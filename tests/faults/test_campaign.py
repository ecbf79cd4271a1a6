"""A short form of the campaign of faults: real ranks, one fault each, and the same command ends as if nothing was."""

from __future__ import annotations

import os

import pytest
from faults import campaign

CASES = {
    "kill_rank": (3, (2,)), "kill_all": (5, (1,)), "ask_to_stop": (8, (2,)), "damaged_checkpoint": (1, (1,)),
    "vanished_folder": (2, (1,)), "small_files": (4, (1,)), "full_disk": (6, (1,)), "stop_rank": (7, (2,)),
}  # fmt: skip
"""Kind: seed, and numbers of ranks."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> campaign.Place:
    return campaign.prepare(tmp_path_factory.mktemp("faults"), (1, 2))


@pytest.mark.slow
@pytest.mark.parametrize("kind", CASES)
def test_after_a_fault_the_same_command_ends_as_if_undisturbed(place: campaign.Place, kind: str) -> None:
    if kind == "full_disk" and os.geteuid():
        pytest.skip("mounting a small disk needs root")
    seed, worlds = CASES[kind]
    case, problems, _ = campaign.run_case(place, seed, [kind], worlds)
    assert problems == [], case.log.read_text()[-3000:] if case.log.exists() else ""
