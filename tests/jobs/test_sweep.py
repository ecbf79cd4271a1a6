"""The runs of a sweep: their turns, their failures, what is skipped, and that none outlives the sweep."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest
import tiny

from distcxr.cli import main
from distcxr.jobs import sweep_runner as sweeps
from distcxr.jobs.grid import Planned, plan
from distcxr.jobs.slots import Slot
from distcxr.jobs.sweep_runner import Job, Sweep

ROOT = Path(__file__).parents[2]
# What a run does instead of training: says which part of the machine it has, and ends as its seed says.
CHILD = """
import json, os, sys, time
seed = int(sys.argv[1])
print("12:00:00 epoch 0  step 3/9  loss 0.5", flush=True)
json.dump({"gpu": os.environ.get("CUDA_VISIBLE_DEVICES"), "threads": os.environ.get("OMP_NUM_THREADS"),
           "began": time.time()}, open("said.json", "w"))
if seed == 1:
    print("12:00:01 error: the loss is nan at step 3", flush=True)
    sys.exit(2)
if seed == 2:
    os.kill(os.getpid(), 9)
if seed == 3 and not os.path.exists("RESUME"):
    open("RESUME", "w").close()
    sys.exit(0)
if seed == 3:
    os.remove("RESUME")
if seed >= 20:
    with open("starts", "a") as file:
        file.write("x")
    if os.path.getsize("starts") < seed - 18:
        print("12:00:01 error: rank 1 is missing in step 3", flush=True)
        sys.exit(75)
if seed == 9:
    time.sleep(600)
time.sleep(0.3)
json.dump({"ended": time.time()} | json.load(open("said.json")), open("said.json.new", "w"))
os.replace("said.json.new", "said.json")
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    def command(planned: Planned, slot: Slot) -> list[str]:
        code = f"import os; os.chdir({str(planned.folder)!r})\n{CHILD}"
        return [sys.executable, "-c", code, str(planned.recipe.seed)]

    monkeypatch.setattr(sweeps, "command", command)
    monkeypatch.setattr(sweeps, "_POLL_S", 0.02)


def grid(folder: Path, *assignments: str) -> list[Planned]:
    recipe = folder / "a.yaml"
    recipe.write_text("model: {weights: none}\n")
    return plan([recipe], assignments, folder / "out")


def go(runs: Sequence[Planned], *slots: Slot) -> list[Job]:
    jobs = [Job(run) for run in runs]
    Sweep(jobs, slots or (Slot(1),)).run(lambda jobs: None)
    return jobs


def said(job: Job) -> dict[str, float]:
    found: dict[str, float] = json.loads((job.planned.folder / "said.json").read_text())
    return found


def test_failures_are_explained_and_the_others_go_on(tmp_path: Path) -> None:
    jobs = go(grid(tmp_path, "seed=0,1,2,4"))
    assert [job.state for job in jobs] == ["finished", "failed", "failed", "finished"]
    assert jobs[1].reason == "the loss is nan at step 3"
    assert jobs[2].reason == "ended by SIGKILL, out of memory perhaps"
    assert "step 3/9" in (jobs[0].planned.folder / "launch.log").read_text()


def test_a_run_with_a_stalled_rank_is_started_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    once, always = go(grid(tmp_path, "seed=20,29"))
    assert (once.state, once.restarts) == ("finished", 1)
    assert "is started again, 1 of 2 times: rank 1 is missing in step 3" in caplog.text
    assert (always.state, always.reason) == ("failed", "rank 1 is missing in step 3")
    assert (always.planned.folder / "starts").read_text() == "xxx"


def test_one_after_another_and_at_once(tmp_path: Path) -> None:
    first, second = go(grid(tmp_path, "seed=0,7"))
    assert said(second)["began"] >= said(first)["ended"]
    first, second = go(grid(tmp_path, "seed=4,5"), Slot(1, "6", (0,)), Slot(1, "7", (0, 1)))
    assert said(second)["began"] < said(first)["ended"]
    assert [(said(job)["gpu"], said(job)["threads"]) for job in (first, second)] == [("6", "1"), ("7", "2")]


def test_started_again_it_runs_what_is_not_finished(tmp_path: Path) -> None:
    go(grid(tmp_path, "seed=0,1"))
    jobs = go(grid(tmp_path, "seed=0,1"))
    assert [job.state for job in jobs] == ["finished before", "failed"]
    jobs = go(grid(tmp_path, "seed=0,1", "train.max_steps=4"))  # another recipe: the engine goes on, or says why not
    assert [job.state for job in jobs] == ["finished", "failed"]


def test_a_run_that_was_asked_to_stop_is_not_finished(tmp_path: Path) -> None:
    """It saves itself and ends with exit code 0."""
    (job,) = go(grid(tmp_path, "seed=3"))
    assert job.state == "failed" and "asked to stop" in job.reason
    (job,) = go(grid(tmp_path, "seed=3"))
    assert job.state == "finished"


def test_who_starts_from_a_failed_run_is_not_started(tmp_path: Path) -> None:
    for name, text in {
        "first": "output: runs/first\nmodel: {weights: none}\n",
        "second": "model: {weights: runs/first}\n",
        "third": "output: runs/third\nmodel: {weights: none}\nseed: 1\n",
        "fourth": "model: {weights: runs/third}\n",
    }.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    recipes = [tmp_path / f"{name}.yaml" for name in ("fourth", "second", "third", "first")]
    fourth, second, third, first = go(plan(recipes, [], tmp_path / "out"), Slot(1), Slot(1))
    assert (first.state, second.state, third.state) == ("finished", "finished", "failed")
    assert said(second)["began"] >= said(first)["ended"]
    assert fourth.reason == "not started: it begins with the weights of third" and not fourth.planned.folder.exists()


def test_ctrl_c_ends_all_runs(tmp_path: Path) -> None:
    jobs = [Job(run) for run in grid(tmp_path, "seed=9,0")]

    def interrupt(jobs: Sequence[Job]) -> None:
        if (jobs[0].planned.folder / "said.json").exists():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Sweep(jobs, (Slot(1),)).run(interrupt)
    assert jobs[0].process is not None and jobs[0].process.returncode == -signal.SIGTERM
    assert jobs[1].state == "waiting"


def test_a_line_shows_how_far_a_run_is(tmp_path: Path) -> None:
    (job,) = (Job(run) for run in grid(tmp_path, "seed=9"))
    sweeps.start(job, Slot(1))
    try:
        while "step" not in job.shown():
            time.sleep(0.02)
        assert job.shown() == "step 3/9  loss 0.5"
        (job.planned.folder / "history.csv").write_text("epoch,val_auroc\n0,0.7\n1,\n2,0.65\n")
        assert job.shown() == "step 3/9  best val AUROC 0.7000  loss 0.5"
    finally:
        assert job.process is not None
        sweeps.end([job.process])


def test_a_child_ends_with_its_sweep(tmp_path: Path) -> None:
    """`child` asks the kernel for it: killed without a chance to clean up, a sweep leaves no run behind."""
    code = (
        "import os, subprocess, sys, time; child = subprocess.Popen([sys.executable, '-m', 'distcxr.jobs.child', "
        "str(os.getpid()), '1', 'all', sys.argv[1]]); print(child.pid, flush=True); "
        "time.sleep(600)"
    )
    recipe = tmp_path / "slow.yaml"
    os.mkfifo(recipe)
    sweep = subprocess.Popen([sys.executable, "-c", code, str(recipe)], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert sweep.stdout is not None
    child = psutil.Process(int(sweep.stdout.readline()))
    with recipe.open("w"):  # waits until the child has begun to read, which it does not end
        assert child.is_running()
        sweep.kill()
        sweep.wait()
        sweep.stdout.close()
        deadline = time.monotonic() + 5
        while _is_alive(child) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not _is_alive(child)


def _is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@pytest.mark.slow
def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Two real runs at once and one that fails; then the table, and nothing to do the second time."""
    monkeypatch.undo()  # the real command
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    tiny.phantom(tmp_path)
    tiny.recipe(tmp_path)
    words = [
        "sweep", "tiny.yaml", "data.root=phantom", "optim.lr=1e-3,1e30", "train.epochs=1", "eval.pictures=0",
        "--parallel", "2", "output=out",
    ]  # fmt: skip
    monkeypatch.setattr("sys.argv", ["distcxr", *words])
    assert main() == 1
    heard = capsys.readouterr()
    assert "out: 2 runs, 2 at once" in heard.out and "best on validation" in heard.out
    assert "failed: tiny__optim.lr=1e30: the loss is" in heard.err or "weights are not finite" in heard.err
    content = json.loads(Path("out/sweep.json").read_text())
    good, bad = content["runs"]
    assert good["metrics"]["test"]["macro"]["auroc"] is not None and bad["reason"]
    assert (
        good["metrics"]["test"]["num_samples"]
        == json.loads(Path("out/tiny__optim.lr=1e-3/metrics_test.json").read_text())["num_samples"]
    )
    log = Path("out/tiny__optim.lr=1e-3/launch.log").read_text()
    assert main() == 1
    assert Path("out/tiny__optim.lr=1e-3/launch.log").read_text() == log  # not started again
