"""`distcxr train` in real processes: the last line on the screen, the exit code, and signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny
from test_launch import ENVIRONMENT
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from distcxr.data.dataset import open_dataset
from distcxr.error_file import write_error_file
from distcxr.jobs.launcher import first_failure, num_processes

TWO_RANKS = ("--processes", "2")


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "distcxr.cli", "train", "tiny.yaml", *words]


def train(place: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*words), cwd=place, env=ENVIRONMENT, capture_output=True, text=True, timeout=240)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("launcher")
    tiny.phantom(folder)
    tiny.recipe(folder)
    return folder


def test_a_mistake_of_every_rank_is_the_last_thing_on_the_screen(place: Path) -> None:
    failed = train(place, "data.root=nowhere", *TWO_RANKS)
    assert failed.returncode == 2
    assert failed.stderr.startswith("error: ") and failed.stderr.count("nowhere is not a folder") == 1
    assert "Traceback" not in failed.stderr and "Then set data.root=ROOT" in failed.stderr.splitlines()[-1]


def test_a_mistake_in_the_recipe_is_the_only_line(place: Path) -> None:
    failed = train(place, "train.epoch=3", *TWO_RANKS)
    assert failed.returncode == 2 and failed.stdout == ""
    assert failed.stderr.startswith("error: ") and failed.stderr.count("did you mean 'epochs'?") == 1


@pytest.mark.slow
def test_a_mistake_that_one_rank_finds_is_the_last_line(tmp_path: Path) -> None:
    """A file that can't be read, with `data.on_error=stop`: the other rank reads other files."""
    tiny.phantom(tmp_path)
    dataset = open_dataset(tiny.recipe(tmp_path))
    for path in dataset.index.files(dataset.splits.train[:3]):
        Path(path).write_bytes(b"not a picture")
    failed = train(tmp_path, "data.root=phantom", "data.on_error=stop", "output=stopped", *TWO_RANKS)
    assert failed.returncode == 2, failed.stderr
    last = failed.stderr.splitlines()[-1]
    assert last.startswith("error: ") and ".png" in last
    assert failed.stderr.count(last) == 1 and "ChildFailedError" not in failed.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("by", "to_group", "reason", "exit_code"),
    [
        (signal.SIGTERM, False, "SIGTERM", 128 + signal.SIGTERM),
        (signal.SIGINT, True, "Ctrl-C", -signal.SIGINT),  # as a terminal sends it: to the launcher and all ranks
        (signal.SIGINT, False, "Ctrl-C", -signal.SIGINT),
    ],
)
def test_a_signal_reaches_the_ranks_which_save(
    place: Path, by: signal.Signals, to_group: bool, reason: str, exit_code: int
) -> None:
    output = place / f"asked-{by.name}-{to_group}"
    words = ("data.root=phantom", "train.epochs=900", "eval.every=900ep", f"output={output}", *TWO_RANKS)
    with (place / "asked.txt").open("w") as log:
        running = subprocess.Popen(
            command(*words), cwd=place, env=ENVIRONMENT, stdout=log, stderr=log, start_new_session=True
        )
    deadline = time.monotonic() + 120
    while not (output / "steps.csv").exists() and time.monotonic() < deadline:
        assert running.poll() is None, (place / "asked.txt").read_text()
        time.sleep(0.2)
    (os.killpg if to_group else os.kill)(running.pid, by)
    code = running.wait(60)
    log_text = (place / "asked.txt").read_text()
    assert code == exit_code, log_text
    assert (output / "RESUME").exists() and f"asked to stop ({reason}): saved" in log_text.splitlines()[-1]
    assert "Traceback" not in log_text


def test_a_mistake_comes_before_ranks_that_lost_their_peer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failures = {}
    for rank, (code, message) in enumerate(((1, "ConnectionError: closed by peer"), (2, "x.png can't be read"))):
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / f"{rank}.json"))
        write_error_file(message)
        failures[rank] = ProcessFailure(rank, 100 + rank, code, str(tmp_path / f"{rank}.json"))
    assert first_failure(ChildFailedError("train", failures)) == (2, "x.png can't be read")
    del failures[1]
    assert first_failure(ChildFailedError("train", failures)) == (
        1,
        "rank 0 failed with exit code 1: ConnectionError: closed by peer",
    )
    ended = {2: ProcessFailure(2, 8, -signal.SIGTERM, "")}  # by the launcher, after the others
    killed = ended | failures | {1: ProcessFailure(1, 7, -signal.SIGKILL, "")}
    assert first_failure(ChildFailedError("train", killed)) == (
        128 + signal.SIGKILL,
        "rank 1 was ended by SIGKILL, out of memory perhaps",
    )


def test_without_gpus_there_are_two_processes_where_there_are_two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    for cores, expected in (([0], 1), ([0, 1], 2), (list(range(16)), 2)):
        monkeypatch.setattr("distcxr.jobs.launcher.usable_cores", lambda cores=cores: cores)
        assert num_processes(None) == expected
    assert num_processes(5) == 5
    with pytest.raises(ValueError, match="at least one"):
        num_processes(0)
