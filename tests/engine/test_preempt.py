"""A run that is asked to stop saves itself, and resumes to where an undisturbed one ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file

from distcxr.engine import evaluate as evaluating
from distcxr.engine import fit as fitting
from distcxr.engine import preempt
from distcxr.engine.checkpoint import open_checkpoint
from distcxr.engine.preempt import STOP_VARIABLE, Preempted, StopRequest, signals_noted
from distcxr.engine.step import Outcome
from distcxr.runfolder.filenames import RESUME, STOP
from distcxr.runfolder.layout import last_folders

ROOT = Path(__file__).parents[2]


def interrupted(folder: Path, ask: Callable[[int], None], *overrides: str, validating: bool = False) -> None:
    """Train until the run leaves; `ask` is called with the step before every update, or with every batch validated."""
    run, step, binary_logits = tiny.build(folder, *overrides), fitting.train_step, evaluating.binary_logits

    def asking(run: Any, micro_batches: Sequence[Any]) -> Outcome:
        ask(run.state.step)
        return step(run, micro_batches)

    def asking_of_validation(*arguments: Any) -> torch.Tensor:
        ask(run.state.step)
        return binary_logits(*arguments)

    with pytest.MonkeyPatch.context() as patch, signals_noted(), pytest.raises(Preempted):
        if validating:
            patch.setattr(evaluating, "binary_logits", asking_of_validation)
            patch.setattr(preempt, "_CHECK_EVERY_S", 0.0)
        else:
            patch.setattr(fitting, "train_step", asking)
        fitting.fit(run)
    run.setup.close()


def weights(folder: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoints" / f"last-{step:08d}" / "model.safetensors")


@tiny.worlds(1, 2)
def test_a_signal_to_one_rank_saves_all_and_the_run_goes_on_as_if_undisturbed(tmp_path: Path, world_size: int) -> None:
    main = tiny.on_main(world_size)
    if main:
        tiny.phantom(tmp_path)
    if world_size > 1:
        torch.distributed.barrier()
    stopped, straight = tmp_path / "stopped", tmp_path / "straight"
    common = ("train.max_steps=8", "checkpoint.every=100ep", "eval.splits=[val]")
    last_rank = world_size == 1 or not main

    def signal_the_last_rank(step: int) -> None:
        if step == 1 and last_rank:
            os.kill(os.getpid(), signal.SIGUSR1)

    interrupted(tmp_path, signal_the_last_rank, *common, f"output={stopped}")
    if main:
        (saved,) = last_folders(stopped)
        assert 1 < int(saved.name[5:]) < 8, "it stopped soon after it was asked"
        assert (stopped / RESUME).exists() and not (stopped / "metrics_val.json").exists()
    tiny.train(tmp_path, *common, f"output={stopped}")
    tiny.train(tmp_path, *common, f"output={straight}")
    if main:
        assert not (stopped / RESUME).exists() and (stopped / "metrics_val.json").exists()
        one, other = weights(stopped, 8), weights(straight, 8)
        assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
        history = [(folder / "history.csv").read_text().splitlines() for folder in (stopped, straight)]
        timeless = [[row.split(",")[:7] for row in rows] for rows in history]
        assert timeless[0] == timeless[1] and len(timeless[0]) == 4


VALIDATED = {
    "to the last step": ("train.max_steps=8", 6, 8),
    "stages": ("train.stages=[{epochs: 1}, {epochs: 1, lr: 1e-4}]", 3, 6),
    "early stop": ("train.early_stop={patience: 1, min_delta: 1}", 3, 6),
}


@tiny.worlds(1, 2)
@pytest.mark.parametrize("kind", VALIDATED)
def test_a_validation_is_left_at_once_and_made_anew(tmp_path: Path, world_size: int, kind: str) -> None:
    """Asked in two validations, the second time twice in the same: all that is kept is as if it never was."""
    main = tiny.on_main(world_size)
    if main:
        tiny.phantom(tmp_path)
    if world_size > 1:
        torch.distributed.barrier()
    training, first, last = VALIDATED[kind]
    stopped, straight = tmp_path / "stopped", tmp_path / "straight"
    common = (training, "train.per_device_batch_size=2", "train.ema=0.9", "eval.splits=[val]", "eval.every=1ep")
    last_rank = world_size == 1 or not main
    for at in (first, last, last):
        batches: list[int] = []

        def signal_the_last_rank(step: int, at: int = at, batches: list[int] = batches) -> None:
            batches.append(step)
            if step == at and last_rank:
                os.kill(os.getpid(), signal.SIGUSR1)

        interrupted(tmp_path, signal_the_last_rank, *common, f"output={stopped}", validating=True)
        assert batches.count(at) == 1, "it is left before the next batch"
        if main:
            assert (stopped / RESUME).exists() and not (stopped / "metrics_val.json").exists()
            state = open_checkpoint(last_folders(stopped)[0]).meta["state"]
            assert state["step"] == at and state["owes_validation"] and not state["ended"]
    tiny.train(tmp_path, *common, f"output={stopped}")
    tiny.train(tmp_path, *common, f"output={straight}")
    if not main:
        return
    assert not open_checkpoint(last_folders(stopped)[0]).meta["state"]["owes_validation"]
    for name in (f"last-{last:08d}", "best", *(["stage-1", "stage-2"] if kind == "stages" else [])):
        one, other = (open_checkpoint(folder / "checkpoints" / name) for folder in (stopped, straight))
        assert timeless(one.meta["state"]) == timeless(other.meta["state"]) and one.meta["crc32"] == other.meta["crc32"]
    assert len(one.meta["state"]["history"]) > 1
    metrics = [(folder / "metrics_val.json").read_text() for folder in (stopped, straight)]
    assert metrics[0] == metrics[1]


def test_a_run_that_owes_its_last_validation_is_not_taken_for_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.phantom(tmp_path)
    monkeypatch.chdir(tmp_path)
    common = ("train.max_steps=2", "eval.splits=[]", "train.per_device_batch_size=2")
    interrupted(tmp_path, lambda _: os.kill(os.getpid(), signal.SIGUSR1), *common, validating=True)
    tiny.train(tmp_path, *common)
    (run,) = (tmp_path / "runs" / "tiny").iterdir()
    assert (run / "checkpoints" / "best").exists() and len((run / "steps.csv").read_text().splitlines()) == 3


def timeless(state: dict[str, Any]) -> dict[str, Any]:
    """A run's state without its speed."""
    clocks = ("img_per_s", "train_s", "epoch_train_s")
    history = [{key: value for key, value in row.items() if key not in clocks} for row in state["history"]]
    return {key: value for key, value in state.items() if key not in clocks} | {"history": history}


def test_a_file_stops_a_run_and_an_old_one_does_not(tmp_path: Path) -> None:
    tiny.phantom(tmp_path)
    output = tmp_path / "run"
    output.mkdir()
    (output / STOP).touch()
    asked_at: list[int] = []

    def touch(step: int) -> None:
        asked_at.append(step)
        if step == 1:
            (output / STOP).touch()

    interrupted(tmp_path, touch, f"output={output}")
    assert 1 in asked_at and last_folders(output)


def alone(local_rank: int = 0) -> Any:
    """A runtime of one rank that counts the all-reduces."""
    runtime = SimpleNamespace(is_main=True, local_rank=local_rank, device=torch.device("cpu"), num_sums=0)

    def sum_over_ranks(tensor: torch.Tensor) -> torch.Tensor:
        runtime.num_sums += 1
        return tensor

    runtime.sum_over_ranks = sum_over_ranks
    return runtime


@pytest.mark.parametrize(("step_s", "at_most", "at_least"), [(0.02, 25, 10), (5.0, 1000, 999)])
def test_ranks_are_asked_about_every_three_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step_s: float, at_most: int, at_least: int
) -> None:
    clock = 0.0
    monkeypatch.setattr(preempt.time, "monotonic", lambda: clock)
    runtime = alone()
    request = StopRequest(tmp_path, runtime)
    for _ in range(1000):
        assert not request.agreed()
        clock += step_s
    assert at_least <= runtime.num_sums <= at_most


def test_who_sets_the_variable_clears_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job script may be asked to stop before the run has begun: the run must not lose that."""
    (tmp_path / STOP).touch()
    (tmp_path / RESUME).touch()
    monkeypatch.setenv(STOP_VARIABLE, str(tmp_path / STOP))
    assert StopRequest(tmp_path, alone()).agreed() and not (tmp_path / RESUME).exists()
    assert not StopRequest(tmp_path, alone(local_rank=1)).agreed(), "one rank of a node looks"
    monkeypatch.delenv(STOP_VARIABLE)
    assert not StopRequest(tmp_path, alone()).agreed()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("preempt")
    tiny.phantom(folder)
    tiny.recipe(folder)
    return folder


def started(place: Path, output: str, launcher: Sequence[str], *overrides: str) -> subprocess.Popen[str]:
    environ = {key: value for key, value in os.environ.items() if not key.startswith(("ACCELERATE_", "DISTCXR_"))}
    return subprocess.Popen(
        [sys.executable, *launcher, str(ROOT / "launch.py"), "tiny.yaml", f"data.root={place / 'phantom'}",
         f"output={output}", *overrides],
        cwd=place, env=environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def wait_for(there: Callable[[], object], process: subprocess.Popen[str], within_s: float = 120) -> None:
    deadline = time.monotonic() + within_s
    while not there():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate(timeout=10)[0]
        time.sleep(0.1)


LAUNCHERS = {
    "alone": (),
    "accelerate, one process": ("-m", "accelerate.commands.launch", "--num_processes", "1"),
    "accelerate, two processes": (
        "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0",
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_sigterm_to_the_launcher_saves_the_run(place: Path, launcher: str) -> None:
    output = place / launcher.replace(" ", "-")
    flags = LAUNCHERS[launcher]
    common = ("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no") if flags else ()
    process = started(
        place, output.name, [*flags, *common], "train.epochs=3000", "eval.every=900ep", "logging.every=1st"
    )
    steps = output / "steps.csv"
    wait_for(lambda: steps.exists() and len(steps.read_text().splitlines()) > 2, process)
    process.send_signal(signal.SIGTERM)
    output_text = process.communicate(timeout=60)[0]
    deadline = time.monotonic() + 20  # a launcher of one process dies before its process has saved
    while not (output / RESUME).exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert (output / RESUME).exists(), output_text
    newest = last_folders(output)[0]
    assert json.loads((newest / "checkpoint.json").read_text())["state"]["step"] >= 2
    assert not (output / "metrics_val.json").exists()
    if launcher == "alone":
        assert process.returncode == 0 and "asked to stop (SIGTERM): saved" in output_text


@pytest.mark.slow
def test_ctrl_c_saves_the_run_and_before_it_trains_ends_it(place: Path) -> None:
    output = place / "interrupted"
    process = started(place, output.name, (), "train.epochs=3000", "eval.every=900ep", "logging.every=1st")
    wait_for(output.exists, process)
    process.send_signal(signal.SIGINT)
    output_text = process.communicate(timeout=60)[0]
    assert process.returncode == -signal.SIGINT and "Traceback" not in output_text
    assert not (output / RESUME).exists() and not last_folders(output)
    process = started(place, output.name, (), "train.epochs=3000", "eval.every=900ep", "logging.every=1st")
    steps = output / "steps.csv"
    wait_for(lambda: steps.exists() and len(steps.read_text().splitlines()) > 1, process)
    process.send_signal(signal.SIGINT)
    output_text = process.communicate(timeout=60)[0]
    assert process.returncode == -signal.SIGINT and "Traceback" not in output_text
    assert "press it again to quit" in output_text and "asked to stop (Ctrl-C): saved" in output_text
    assert (output / RESUME).exists() and last_folders(output)


def test_a_second_ctrl_c_ends_a_process_and_a_repeated_signal_does_not() -> None:
    """A terminal signals the ranks, and so does their launcher: two signals of one key press."""
    program = "import os, signal, sys, time; from distcxr.interrupt import interrupt_noted\n"
    program += "with interrupt_noted(lambda: print('noted', flush=True)):\n    print('ready', flush=True)\n"
    program += "    deadline = time.monotonic() + 60\n    while time.monotonic() < deadline: time.sleep(0.1)"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "noted\n"
        process.send_signal(signal.SIGINT)
        time.sleep(2.2)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == -signal.SIGINT
