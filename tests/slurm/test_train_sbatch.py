"""slurm/train.sbatch on a real SLURM of simulated nodes: what brings a run back, and that nothing is lost by it."""

from __future__ import annotations

import pytest
from slurm_jobs import ENDLESS, TWO_NODES, Place


@pytest.mark.slow
def test_a_time_limit_and_a_lost_node_leave_the_weights_as_they_would_be(place: Place) -> None:
    cluster = place.cluster
    place.recipe("limited", ENDLESS)
    job = place.submit("limited", *TWO_NODES, "--time=2", "--signal=B:USR1@55")
    place.wait(job, "limited", lambda found: int(found["Restarts"]) > 0 and place.newest("limited") > 0, 300)
    ends = {"limited": place.end_soon("limited")}
    place.completed(job, "limited")
    output = place.log("limited").read_text()
    assert "asked to stop (STOP): saved" in output and "back into the queue" in output and "macro of" in output

    place.recipe("lost", ENDLESS)
    job = place.submit("lost", *TWO_NODES)
    place.checkpoint(job, "lost")
    first = cluster.job(job)["NodeList"]
    cluster.cut_power(2)
    ends["lost"] = place.end_soon("lost")
    found = place.completed(job, "lost")
    assert first == "node[1-2]" and found["NodeList"] == "node[1,3]" and int(found["Restarts"]) > 0
    cluster.boot(2)
    assert place.differences(ends, ranks=4) == []


def test_a_wrong_recipe_ends_at_once_and_does_not_come_back(place: Place) -> None:
    place.recipe("wrong", 10)
    job = place.submit("wrong", *TWO_NODES, words=("train.epoch=3",))
    found = place.wait(job, "wrong", lambda found: found["JobState"] == "FAILED", 60)
    assert found["Restarts"] == "0" and found["ExitCode"] == "2:0"
    assert place.log("wrong").read_text().count("did you mean 'epochs'?") == 1


@pytest.mark.slow
def test_a_run_that_fails_in_training_does_not_come_back(place: Place) -> None:
    """Its data is found to be wrong by the ranks alone, on both nodes, which all answer still."""
    place.recipe("failing", 10)
    job = place.submit("failing", *TWO_NODES, words=("data.root=nowhere",))
    found = place.wait(job, "failing", lambda found: found["JobState"] == "FAILED", 120)
    output = place.log("failing").read_text()
    assert found["Restarts"] == "0" and "error: " in output and "nowhere" in output and "does not answer" not in output
