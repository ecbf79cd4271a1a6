"""`distcxr train` in real processes: the last line on the screen, the exit code, and signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
from test_launch import ENVIRONMENT
from test_launch import command as accelerate_command

from distcxr import processes
from distcxr.data.dataset import open_dataset
from distcxr.jobs import launcher
from distcxr.jobs.launcher import Failure, first_failure, num_processes
from distcxr.runfolder.filenames import STALLED_MARK
from distcxr.runfolder.history import newest_step

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
    while newest_step(output) is None and time.monotonic() < deadline:
        assert running.poll() is None, (place / "asked.txt").read_text()
        time.sleep(0.2)
    (os.killpg if to_group else os.kill)(running.pid, by)
    code = running.wait(60)
    log_text = (place / "asked.txt").read_text()
    assert code == exit_code, log_text
    assert (output / "RESUME").exists() and f"asked to stop ({reason}): saved" in log_text.splitlines()[-1]
    assert "Traceback" not in log_text


def ranks_of(launcher: subprocess.Popen[str]) -> list[int]:
    """Process ids of the ranks that a launcher has started."""
    children = Path(f"/proc/{launcher.pid}/task").glob("*/children")
    return [int(child) for tasks in children for child in tasks.read_text().split()]


def wait_until(there: Callable[[], object], within_s: float, why: Callable[[], str] = lambda: "") -> None:
    deadline = time.monotonic() + within_s
    while not there():
        assert time.monotonic() < deadline, why()
        time.sleep(0.05)


@pytest.mark.slow
def test_ranks_end_with_a_launcher_that_is_killed_while_they_start(place: Path) -> None:
    """Importing torch takes them seconds, in which they can't have asked for anything but before it."""
    output = place / "killed"
    words = ("data.root=phantom", "train.epochs=900", f"output={output}", *TWO_RANKS)
    launcher = subprocess.Popen(
        command(*words), cwd=place, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    wait_until(lambda: len(ranks_of(launcher)) == 2, 60)
    ranks = ranks_of(launcher)
    loaded = Path(f"/proc/{launcher.pid}/maps").read_text()
    assert "libtorch" not in loaded  # it would have started the ranks seconds later
    launcher.kill()
    wait_until(lambda: all((processes.state(rank) or "zombie").startswith("zombie") for rank in ranks), 15)
    launcher.communicate(timeout=10)
    assert not output.exists()


@pytest.mark.parametrize(
    ("parent", "named", "command_of_1", "lost"),
    [
        (7, "7", "systemd", False),
        (1, "7", "systemd", True),
        (9, "7", "systemd", True),  # adopted by another than process 1
        (1, None, "systemd", True),
        (1, None, "python3.11", False),  # a container's first process is the launcher
        (7, None, "systemd", False),
    ],
)
def test_a_rank_knows_that_its_launcher_has_died(
    monkeypatch: pytest.MonkeyPatch, parent: int, named: str | None, command_of_1: str, lost: bool
) -> None:
    monkeypatch.setattr(os, "getppid", lambda: parent)
    monkeypatch.setattr(processes, "_command", lambda pid: {1: command_of_1}[pid])
    monkeypatch.delenv(processes.LAUNCHER_VARIABLE, raising=False)
    if named is not None:
        monkeypatch.setenv(processes.LAUNCHER_VARIABLE, named)
    assert processes._has_lost_launcher() == lost


@pytest.mark.slow
def test_a_stopped_rank_ends_the_command(place: Path) -> None:
    """The launcher gives the stopped process 30 s for SIGTERM, then SIGKILL, and nothing is left."""
    output, stall_s = place / "stalled", 4
    words = (
        "data.root=phantom", "train.epochs=900", "eval.every=900ep", "eval.splits=[]", "checkpoint.every=3st",
        f"train.stall_s={stall_s}", f"output={output}", *TWO_RANKS,
    )  # fmt: skip
    with (place / "stalled.txt").open("w") as log:
        launcher = subprocess.Popen(command(*words), cwd=place, env=ENVIRONMENT, stdout=log, stderr=log, text=True)
    wait_until(lambda: list(output.glob("checkpoints/last-*")), 120, (place / "stalled.txt").read_text)
    ranks = ranks_of(launcher)
    os.kill(ranks[1], signal.SIGSTOP)
    began_s = time.monotonic()
    code = launcher.wait(90)
    assert time.monotonic() - began_s < stall_s + 30 + 20
    last = (place / "stalled.txt").read_text().splitlines()[-1]
    assert code == 75 and last.startswith("error: rank 1 is missing in step "), last
    assert f"process {ranks[1]} on " in last and last.count("is stopped (T)") == 1
    assert not any(processes.state(rank) for rank in ranks)


@pytest.mark.slow
def test_a_launcher_that_may_restart_the_ranks_does(place: Path) -> None:
    output = place / "restarted"
    words = (
        "tiny.yaml", "data.root=phantom", "train.epochs=900", "train.max_steps=90", "eval.every=900ep",
        "eval.splits=[]", "checkpoint.every=3st", "train.stall_s=4", f"output={output}",
    )  # fmt: skip
    with (place / "restarted.txt").open("w") as log:
        launcher = subprocess.Popen(
            accelerate_command(*words, flags=("--max_restarts", "1")), cwd=place, env=ENVIRONMENT, stdout=log,
            stderr=log, text=True,
        )  # fmt: skip
    shown = (place / "restarted.txt").read_text
    wait_until(lambda: list(output.glob("checkpoints/last-*")), 120, shown)
    ranks = ranks_of(launcher)
    os.kill(ranks[0], signal.SIGSTOP)  # the rank that holds the store and writes
    wait_until((output / STALLED_MARK).exists, 30, shown)
    wait_until(lambda: (processes.state(ranks[1]) or "zombie").startswith("zombie"), 30, shown)
    os.kill(ranks[0], signal.SIGKILL)  # as the launcher does after 30 s
    assert launcher.wait(120) == 0, shown()
    assert "error: rank 0 is missing in " in shown() and "resumed from" in shown()
    assert (output / "checkpoints" / "last-00000090").exists()


def test_a_mistake_comes_before_ranks_that_lost_their_peer() -> None:
    lost, mistake = Failure(0, 1, "ConnectionError: closed by peer", 5.0), Failure(1, 2, "x.png can't be read", 6.0)
    assert first_failure([lost, mistake]) == (2, "x.png can't be read")
    assert first_failure([lost]) == (1, "rank 0 failed with exit code 1: ConnectionError: closed by peer")
    assert first_failure([lost, Failure(1, 1, "earlier", 4.0)]) == (1, "rank 1 failed with exit code 1: earlier")
    named, killed = Failure(3, 75, "rank 1 is missing in step 5", 9.0), Failure(1, -signal.SIGKILL, "", 10.0)
    assert first_failure([lost, killed, named]) == (75, "rank 1 is missing in step 5")
    ended = Failure(2, -signal.SIGTERM, "", 1.0)  # by the launcher, after the others
    assert first_failure([ended, lost, killed]) == (
        128 + signal.SIGKILL,
        "rank 1 was ended by SIGKILL, out of memory perhaps",
    )
    assert first_failure([ended, Failure(0, 1, "", 2.0)])[1].startswith("rank 0 failed with exit code 1: what it wrote")


def test_a_rank_that_stops_when_the_others_have_left_does_not_hold_the_launcher(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run is done: each rank leaves only after all have arrived."""

    def start(words: object, rank: int, *_: object) -> subprocess.Popen[bytes]:
        stops = "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)" if rank == 1 else ""
        return subprocess.Popen([sys.executable, "-c", stops], start_new_session=True)

    monkeypatch.setattr(launcher, "_start", start)
    monkeypatch.setattr(launcher, "_LAST_S", 1.0)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    began_s = time.monotonic()
    assert launcher.launch(["tiny.yaml"], 2) == 0
    assert time.monotonic() - began_s < 20
    error = capsys.readouterr().err
    assert error.startswith("warning: rank 1 (process ") and "stopped (T)) has not ended 1 s after the run had" in error


def test_a_run_under_nohup_outlives_its_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """nohup has its program ignore SIGHUP, which a terminal sends when it is closed."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGHUP, *launcher._ENDING)}
    hangs_up = f"import os, signal; os.kill({os.getpid()}, signal.SIGHUP)"
    monkeypatch.setattr(launcher, "_start", lambda *_: subprocess.Popen([sys.executable, "-c", hangs_up]))
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        assert launcher.launch(["tiny.yaml"], 2) == 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_without_gpus_there_are_two_processes_where_there_are_two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    for cores, expected in (([0], 1), ([0, 1], 2), (list(range(16)), 2)):
        monkeypatch.setattr("distcxr.jobs.launcher.usable_cores", lambda cores=cores: cores)
        assert num_processes(None) == expected
    assert num_processes(5) == 5
    with pytest.raises(ValueError, match="at least one"):
        num_processes(0)
