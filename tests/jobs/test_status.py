"""`distcxr status`: the files of run folders, locks and SLURM's word, with or without accounting."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path

import pytest

from distcxr.cli import main
from distcxr.jobs.run_status import job_states, read_status, run_folders


def write(folder: Path, step: int, *, total: int | None = 100, job: str | None = None, scored: bool = False) -> Path:
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text("train: {global_batch_size: 32}\neval: {splits: [val, test]}\n")
    (folder / "environment.json").write_text(json.dumps({"total_steps": total, "slurm_job": job}))
    rows = [f"{number},0,0.5,0.001,64.0,1.0,10.0" for number in range(1, step + 1)]
    header = "step,epoch,loss,lr,img_per_s,data_wait_pct,memory_mb"
    (folder / "steps.csv").write_text("\n".join([header, *rows, ""]))
    (folder / "history.csv").write_text("epoch,val_auroc\n0,0.61\n1,0.71\n2,\n")
    for split in ("val", "test") if scored else ():
        (folder / f"metrics_{split}.json").write_text("{}")
    return folder


def test_progress_and_time_left(tmp_path: Path) -> None:
    folder = write(tmp_path / "runs" / "a", 40)
    (folder / ".lock").touch()
    with (folder / ".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        status = read_status(folder, {})
    assert (status.state, status.step, status.total_steps, status.best_auroc) == ("running", 40, 100, 0.71)
    assert status.eta_s == 60 * 32 / 64
    assert read_status(folder, {}).state == "stopped" and read_status(folder, {}).eta_s is None
    job = write(tmp_path / "runs" / "b", 40, job="7")
    seen = read_status(job, {"7": "RUNNING"})  # by SLURM alone: file systems may have no locks between nodes
    assert (seen.state, seen.eta_s, seen.in_words()) == ("running", 60 * 32 / 64, "running at step 40 of 100")


def test_what_became_of_a_run(tmp_path: Path) -> None:
    finished = write(tmp_path / "early stop", 40, job="7", scored=True)
    assert read_status(finished, {"7": "COMPLETED"}).state == "finished"
    saved = write(tmp_path / "saved", 40, job="8")
    (saved / "RESUME").touch()
    assert read_status(saved, {}).state == "saved" and read_status(saved, {"8": "PENDING"}).state == "pending"
    limit = write(tmp_path / "limit", 40, job="9")
    assert read_status(limit, {"9": "TIMEOUT"}).state == "timeout"
    again = write(tmp_path / "again", 40, scored=True)
    os.utime(again / "metrics_val.json", (0, 0))  # scored, and then trained on
    assert read_status(again, {}).state == "stopped"
    failed = write(tmp_path / "failed", 40, job="10")
    (failed / ".failed").touch()
    assert read_status(failed, {}).state == "failed" and read_status(failed, {"10": "PENDING"}).state == "pending"
    assert read_status(failed, {}).in_words() == "failed at step 40 of 100"
    log = (
        "10:00:00 run folder x\n10:00:01 error: earlier\n11:00:00 run folder x\n11:00:01 error: no disk\n11:00:02 bye\n"
    )
    (failed / "log.txt").write_text(log)
    assert read_status(failed, {}).in_words() == "failed at step 40 of 100: no disk"
    begun = write(tmp_path / "begun", 0, total=None)
    (begun / "steps.csv").unlink()
    assert read_status(begun, {}).step == 0


def test_folders_are_found_below_a_place_the_newest_last(tmp_path: Path) -> None:
    old, new = write(tmp_path / "runs" / "x" / "old", 1), write(tmp_path / "runs" / "sweeps" / "y" / "new", 1)
    for file in old.iterdir():
        os.utime(file, (1, 1))
    assert run_folders([tmp_path / "runs"]) == [old, new] and run_folders([new]) == [new]


def test_runs_of_an_array_that_have_not_begun_come_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [{"name": name, "recipe": "x", "values": {}, "folder": name, "num_parameters": 1} for name in ("a", "b")]
    write(tmp_path / "array" / "a", 40)
    (tmp_path / "array" / "runs.json").write_text(json.dumps(runs))
    assert run_folders([tmp_path]) == [tmp_path / "array" / "b", tmp_path / "array" / "a"]
    (tmp_path / "array" / "b").mkdir()  # the job has, the run has not
    assert read_status(tmp_path / "array" / "b", {}).in_words() == "not started"
    monkeypatch.setattr("sys.argv", ["distcxr", "status", str(tmp_path)])
    assert main() == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "not started" in line)
    assert line.split() == [str(tmp_path / "array" / "b"), "not", "started", "0", "?"]
    (tmp_path / "array" / "runs.json").write_text("[{}]")
    assert main() == 2 and f"{tmp_path}/array/runs.json is damaged" in capsys.readouterr().err


def fake(folder: Path, name: str, script: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def test_slurm_is_asked_with_and_without_accounting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = tmp_path / "bin"
    monkeypatch.setenv("PATH", str(tools), prepend=":")
    fake(tools, "sacct", "echo 'Slurm accounting storage is disabled' >&2; exit 1")
    fake(tools, "scontrol", 'echo "JobId=$4 JobName=x JobState=TIMEOUT Reason=TimeLimit"')
    assert job_states(["7"]) == {"7": "TIMEOUT"}
    fake(tools, "sacct", "echo '7|CANCELLED by 0'; echo '8|PENDING'")
    assert job_states(["7", "8"]) == {"7": "CANCELLED", "8": "PENDING"}
    fake(tools, "scontrol", "exit 1")
    fake(tools, "sacct", "exit 1")
    assert job_states(["7"]) == {}


def test_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "runs" / "a", 40)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["distcxr", "status"])
    assert main() == 0
    header, line = capsys.readouterr().out.splitlines()
    assert header.split()[0] == "run" and line.split()[:5] == ["runs/a", "stopped", "40", "100", "0.7100"]
    monkeypatch.setattr("sys.argv", ["distcxr", "status", "nowhere"])
    assert main() == 2 and "nowhere is not a folder" in capsys.readouterr().err
