"""All that happens to jobs on a cluster, on simulated nodes. `make slurm` runs these; they take minutes."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import tiny
from slurm_cluster import Cluster, reason_against, short_folder
from slurm_jobs import ENDLESS, Place

from distcxr.runfolder.filenames import RESUME

VARIABLE = "DISTCXR_SLURM_ALL"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.environ.get(VARIABLE) != "1", reason=f"takes minutes: make slurm, or {VARIABLE}=1"),
]
ROOT = Path(__file__).parents[2]
TWO_RANKS = ("--nodes=1", "--gpus-per-node=2")


def comes_back(place: Place, name: str, disturb: Callable[[str], None], *flags: str) -> dict[str, str]:
    """Disturb a run after its first checkpoint: it must come back and end with the weights of an undisturbed one."""
    place.recipe(name, ENDLESS)
    job = place.submit(name, *(flags or TWO_RANKS))
    place.checkpoint(job, name)
    disturb(job)
    place.wait(job, name, lambda found: int(found["Restarts"]) > 0)
    end = place.end_soon(name)
    found = place.completed(job, name)
    assert place.differences({name: end}, ranks=2) == []
    return found


def test_one_node_two_ranks(place: Place) -> None:
    place.recipe("one-node", 10)
    job = place.submit("one-node", *TWO_RANKS)
    assert place.completed(job, "one-node")["Restarts"] == "0"
    output = place.log("one-node").read_text()
    assert "world size 2 (gloo)" in output and (place.folder / "one-node" / "report.html").exists()


def test_one_process_needs_no_launcher(place: Place) -> None:
    """Without GPUs the tasks of a node are its ranks."""
    comes_back(place, "requeued-cpu", lambda job: requeue(place, job), "--nodes=1", "--ntasks-per-node=2")
    place.recipe("one-process", 10)
    place.completed(place.submit("one-process", "--nodes=1"), "one-process")
    assert "world size 1 (none)" in place.log("one-process").read_text()


def requeue(place: Place, job: str) -> None:
    place.cluster.run("scontrol", "requeue", job)


def test_requeued_from_outside(place: Place) -> None:
    comes_back(place, "requeued", lambda job: requeue(place, job))
    assert "asked to stop" in place.log("requeued").read_text()


def test_preempted(place: Place) -> None:
    def urgent(_: str) -> None:
        place.cluster.run(
            "sbatch", "--partition=urgent", "--nodes=3", "--exclusive", "--output=/dev/null", "--wrap=sleep 3"
        )

    comes_back(place, "preempted", urgent)
    assert "asked to stop" in place.log("preempted").read_text()


def test_cancelled_stays_away_and_can_be_submitted_again(place: Place) -> None:
    place.recipe("cancelled", ENDLESS)
    job = place.submit("cancelled", *TWO_RANKS)
    place.checkpoint(job, "cancelled")
    place.cancel(job)
    time.sleep(10)  # a requeued job would wait for 6
    found = place.cluster.job(job)
    assert found["JobState"] == "CANCELLED" and found["Restarts"] == "0"
    assert (place.folder / "cancelled" / RESUME).exists(), "it is signalled early enough to save"
    end = place.end_soon("cancelled")
    place.completed(place.submit("cancelled", *TWO_RANKS), "cancelled")
    assert place.differences({"cancelled": end}, ranks=2) == []


def test_a_node_that_slurm_loses_leaves_the_run_to_another(place: Place) -> None:
    """slurmd dies, the ranks do not: the job starts elsewhere and must not train beside them."""
    killed: list[int] = []

    def kill_slurmd(job: str) -> None:
        node = place.cluster.job(job)["NodeList"]
        place.cluster.kill_daemon(int(node.removeprefix("node")))
        killed.append(int(node.removeprefix("node")))

    found = comes_back(place, "forgotten", kill_slurmd)
    place.cluster.cut_power(killed[0])
    place.cluster.boot(killed[0])
    assert found["NodeList"] != f"node{killed[0]}"
    assert "is still in use" in place.log("forgotten").read_text()


def test_a_node_that_is_back_before_it_is_missed(tmp_path: Path) -> None:
    """By SLURM's default a node is missed after five minutes; one that has rebooted by then is found out at once."""
    if (reason := reason_against()) is not None:
        pytest.skip(reason)
    folder = short_folder()
    tiny.phantom(tmp_path)
    tiny.recipe(tmp_path)
    with Cluster(folder, nodes=2, slurmd_timeout_s=300) as cluster:
        place = Place(cluster, tmp_path, ROOT)
        place.recipe("rebooted", ENDLESS)
        job = place.submit("rebooted", "--nodes=2", "--gpus-per-node=1")
        place.checkpoint(job, "rebooted")
        cluster.cut_power(2)
        cluster.boot(2, wait=False)
        place.wait(job, "rebooted", lambda found: int(found["Restarts"]) > 0)
        end = place.end_soon("rebooted")
        place.completed(job, "rebooted")
        assert place.differences({"rebooted": end}, ranks=2) == []
    shutil.rmtree(folder)


def test_too_many_restarts(place: Place) -> None:
    place.recipe("often", ENDLESS)
    job = place.submit("often", *TWO_RANKS, MAX_RESTARTS="0")
    place.checkpoint(job, "often")
    place.cluster.run("scancel", "--batch", "--signal=USR1", job)
    found = place.wait(job, "often", lambda found: found["JobState"] == "FAILED")
    assert found["Restarts"] == "0" and "came back 0 times" in place.log("often").read_text()


def test_submit_array_test_compare_and_status(place: Place) -> None:
    """Two of the four runs diverge: they are not tested, and the comparison of the others comes all the same."""
    place.recipe("array", 10)
    grid = ("--array", "optim.lr=1e-3,1e30", "augment.scale=[1,1],[0.9,1.1]", "--at-once", "2")
    data = f"data.root={place.folder / 'phantom'}"
    output = place.distcxr("submit", "array.yaml", data, *grid, "--gpus", "2", "--then-test")
    compare = next(line.split()[2].rstrip(",") for line in output.splitlines() if line.startswith("compare "))
    folders = [Path(line.split(maxsplit=2)[2]) for line in output.splitlines() if line.startswith("run folder")]
    assert len(folders) == 4
    shown = place.distcxr("status", "runs/sweeps")
    assert shown.count("not started") >= 2, shown
    deadline = time.monotonic() + 300
    while place.cluster.run("squeue", "-h", "-j", compare, check=False).stdout and time.monotonic() < deadline:
        time.sleep(0.5)
    assert place.cluster.job(compare)["JobState"] == "COMPLETED"
    for folder in folders:
        tested = "optim.lr=1e-3" in folder.name
        assert (place.folder / folder / "metrics_test.json").exists() == tested, output
        assert (place.folder / folder / "report.html").exists() == tested
    folder = place.folder / folders[0].parent
    found = json.loads((folder / "sweep.json").read_text())
    assert [run["reason"] is None for run in found["runs"]] == [True, True, False, False]
    assert all(
        re.match("failed at step .*: the loss is|.*weights are not finite", run["reason"]) for run in found["runs"][2:]
    )
    assert found["best"] in (folders[0].name, folders[1].name) and found["splits"] == ["val", "test"]
    assert (folder / "sweep.html").exists()
    output = (folder / f"slurm-{compare}.log").read_text()
    assert str(folders[0].parent / "sweep.html") in output and output.count("no figures: ") == 2
    shown = place.distcxr("status", "runs/sweeps")
    assert shown.count("finished") == 2 and shown.count("failed") == 2, shown


CACHED = ("data.loader=cache",)


def test_each_node_copies_the_cache_to_its_own_disk_once(place: Place) -> None:
    """The disks have one name on all nodes, and are none of each other's."""
    disk = place.folder / "disk"
    place.recipe("staged", 10)
    place.distcxr("cache", "staged.yaml", f"data.root={place.folder / 'phantom'}")
    site = f"LOCAL_DISK={disk}"
    flags = ("--nodes=2", "--gpus-per-node=2", "--nodelist=node[1-2]")
    with disks(place, disk, {1: "1m", 2: "1m"}):
        place.completed(place.submit("staged", *flags, words=CACHED, settings=site), "staged")
        output = place.log("staged").read_text()
        copied = sorted(re.findall(rf"{disk}/\S+ on (node\d): copied .* from {place.folder}/phantom", output))
        assert copied == ["node1", "node2"], output
        for node in (1, 2):
            assert "cache.json" in place.cluster.on_node(node, "find", str(disk))
        assert list(disk.iterdir()) == [], "nothing lies on the shared disk"
        place.recipe("again", 10)
        place.completed(place.submit("again", *flags, words=CACHED, settings=site), "again")
        output = place.log("again").read_text()
        assert ": copied" not in output and "made earlier is used" in output
    assert place.differences({"staged": 10, "again": 10}, ranks=4) == []


@pytest.mark.parametrize("wrong", ["full", "missing"])
def test_a_node_with_a_full_or_missing_disk_is_named(place: Place, wrong: str) -> None:
    disk, name = place.folder / f"disk-{wrong}", f"disk-is-{wrong}"
    place.recipe(name, 10)
    place.distcxr("cache", f"{name}.yaml", f"data.root={place.folder / 'phantom'}")
    sizes, site, reason = {1: "1m", 2: "64k"}, f"LOCAL_DISK={disk}", "is free in"
    if wrong == "missing":
        disk.mkdir()
        (disk / "node2").touch()
        sizes, site, reason = {}, f"LOCAL_DISK='{disk}/$SLURMD_NODENAME'", "Not a directory"
    with disks(place, disk, sizes):
        job = place.submit(name, "--nodes=2", "--gpus-per-node=2", "--nodelist=node[1-2]", words=CACHED, settings=site)
        found = place.wait(job, name, lambda found: found["JobState"] == "FAILED", 180)
    output = place.log(name).read_text()
    mistake = next(line for line in output.splitlines() if "error: data.cache.stage_to" in line)
    assert found["Restarts"] == "0" and "on node2" in mistake and str(disk) in mistake and reason in mistake, output
    assert "[rank" not in mistake and "Connection closed" not in output, "rank 0 reports it, and no rank anything else"
    assert "back into the queue" not in output and "a node is lost" not in output
    if wrong == "missing":
        assert list((disk / "node1").glob("*/cache.json")), "the first node has its own folder"


@contextmanager
def disks(place: Place, folder: Path, sizes: dict[int, str]) -> Iterator[None]:
    """Disks of their own for some nodes."""
    for node, size in sizes.items():
        place.cluster.mount_disk(node, folder, size)
    try:
        yield
    finally:
        for node in sizes:
            place.cluster.on_node(node, "umount", str(folder))


def test_sbatch_test_only(place: Place) -> None:
    output = place.distcxr("submit", "array.yaml", f"data.root={place.folder / 'phantom'}", "--dry-run")
    assert "to start at" in output and not list((place.folder / "runs").glob("array/slurm-*"))
