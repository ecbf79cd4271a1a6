"""The command as a user types it, in real processes: `accelerate launch launch.py RECIPE ...`, or `launch.py` alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file

from distcxr import exit_codes, launch
from distcxr.engine import main as engine_main
from distcxr.error_file import is_left_by_first_rank

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {
    key: value for key, value in os.environ.items() if not key.startswith(("ACCELERATE_", "DISTCXR_", "OMP_"))
}


def command(*arguments: str, processes: int = 2, flags: Sequence[str] = ()) -> list[str]:
    """By `accelerate launch`; without it where it would start one process and pass nothing on, which costs 3 s."""
    script = [str(ROOT / "launch.py"), *arguments]
    if processes == 1 and not flags:
        return [sys.executable, *script]
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--num_processes",
        str(processes),
        "--num_machines",
        "1",
    ]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    return [*launch, *(["--multi_gpu"] if processes > 1 else []), *flags, *script]


def run(
    *arguments: str, cwd: Path, processes: int = 2, flags: Sequence[str] = (), **env: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments, processes=processes, flags=flags), cwd=cwd, env=ENVIRONMENT | env, capture_output=True,
        text=True, timeout=240,
    )  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("launch")
    tiny.phantom(folder)
    tiny.recipe(folder)
    return folder


@pytest.mark.slow
def test_train_kill_resume_test(place: Path) -> None:
    """A run that is killed in the middle resumes at its newest checkpoint and ends where an undisturbed one ends."""
    data, every = f"data.root={place / 'phantom'}", "checkpoint.every=1st"
    steps, output = "train.max_steps=8", place / "killed"
    with (place / "killed.txt").open("w") as log:
        victim = subprocess.Popen(
            command("tiny.yaml", data, every, "train.max_steps=900", "train.epochs=300", f"output={output}"), cwd=place,
            env=ENVIRONMENT, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    deadline = time.monotonic() + 120
    while not list((output / "checkpoints").glob("last-*")) and time.monotonic() < deadline:
        assert victim.poll() is None, (place / "killed.txt").read_text()
        time.sleep(0.2)
    os.kill(victim.pid, signal.SIGKILL)  # the launcher alone: its ranks must not outlive it
    victim.wait()
    time.sleep(1)
    reached = max(int(path.name[5:]) for path in (output / "checkpoints").glob("last-*"))
    steps = f"train.max_steps={reached + 3}"
    resumed = run("tiny.yaml", data, every, steps, "train.epochs=300", f"output={output}", cwd=place)
    assert resumed.returncode == 0, resumed.stderr
    assert "resumed from" in resumed.stderr and "macro of" in resumed.stderr
    straight = run("tiny.yaml", data, every, steps, "train.epochs=300", f"output={place / 'straight'}", cwd=place)
    assert straight.returncode == 0, straight.stderr
    name = f"checkpoints/last-{reached + 3:08d}/model.safetensors"
    one, other = load_file(output / name), load_file(place / "straight" / name)
    assert all(torch.equal(one[key], other[key]) for key in one | other)

    words = ("tiny.yaml", data, "train.epochs=300", "--test", str(output))
    tested = run(*words, cwd=place, processes=1, OMP_DISPLAY_ENV="VERBOSE")
    assert tested.returncode == 0, tested.stderr
    assert "GOMP_SPINCOUNT = '1000'" in tested.stderr  # known before PyTorch is loaded, which reads it once
    assert json.loads((output / "metrics_test.json").read_text())["split"] == "test"


def test_the_recipe_may_follow_the_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    """`--test A B RECIPE` would take the recipe for a checkpoint."""
    heard: list[tuple[int, str, list[Path]]] = []
    monkeypatch.setattr(
        "distcxr.engine.main.run", lambda recipe, name, test: heard.append((recipe.seed, name, test)) or 0
    )
    for recipe in (str(ROOT / "recipes" / "quickstart.yaml"), "quickstart"):
        for words in (["--test", "A", "B", recipe, "seed=3"], [recipe, "seed=3", "--test", "A", "B"]):
            monkeypatch.setattr("sys.argv", ["launch.py", *words])
            assert launch.main() == 0
    assert heard == [(3, "quickstart", [Path("A"), Path("B")])] * 4
    monkeypatch.setattr("sys.argv", ["launch.py", recipe, "eval.ensemble=[C, D]", "seed=3"])
    assert launch.main() == 0 and heard[-1] == (3, "quickstart", [Path("C"), Path("D")])


def test_a_full_memory_before_the_run_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> int:
        raise MemoryError

    monkeypatch.setattr(launch, "watching", full)
    assert launch.main(["quickstart", "data.root=/data"]) == exit_codes.ENVIRONMENT
    assert capsys.readouterr().err.startswith("error: this process's memory is full: raise its limit (ulimit -v, ")


@pytest.mark.parametrize("is_reported", [True, False])
def test_a_later_rank_leaves_to_the_first_what_both_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, is_reported: bool
) -> None:
    """Even where the launcher's signal to end came before this rank found the mistake, and was lost."""

    def fail(_: object) -> None:
        raise ValueError("no such folder")

    error_files = [tmp_path / str(rank) / "error.json" for rank in range(2)]
    for file in error_files:
        file.parent.mkdir()
    if is_reported:
        error_files[0].write_text("{}")
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(error_files[1]))
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr("distcxr.engine.main.start_logging", lambda console: None)
    monkeypatch.setattr("distcxr.engine.main.start_runtime", fail)
    monkeypatch.setattr("distcxr.engine.main.is_left_by_first_rank", lambda within_s: is_left_by_first_rank(0.3))
    monkeypatch.setattr("os._exit", sys.exit)
    monkeypatch.setattr("distcxr.engine.main.time.sleep", lambda seconds: None)
    with pytest.raises(SystemExit) if is_reported else nullcontext():
        assert engine_main.run(tiny.recipe(tmp_path), "tiny", []) == exit_codes.USER
    assert ("no such folder" in caplog.text) is not is_reported


def test_a_mistake_is_reported_once_without_a_traceback_of_ours(place: Path) -> None:
    failed = run("tiny.yaml", "data.root=nowhere", cwd=place)
    assert failed.returncode != 0
    assert failed.stderr.count("error: ") == 1 and "nowhere" in failed.stderr and "images_001" in failed.stderr
    assert "distcxr/engine" not in failed.stderr
    assert "nowhere is not a folder" in failed.stderr.partition("Root Cause")[2], (
        "the launcher's summary has the reason"
    )
    assert "To enable traceback" not in failed.stderr

    failed = run("tiny.yaml", "train.epoch=3", cwd=place, processes=1)
    assert failed.returncode != 0 and failed.stderr.count("did you mean 'epochs'?") == 1


def test_the_recipe_wins_over_the_launcher(place: Path) -> None:
    done = run(
        "tiny.yaml", f"data.root={place / 'phantom'}", "train.max_steps=1", "eval.splits=[]", "eval.every=300ep",
        "output=wins", cwd=place, processes=1, flags=("--mixed_precision", "bf16"),
        ACCELERATE_GRADIENT_ACCUMULATION_STEPS="4",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "mixed_precision=bf16, the recipe train.precision=no: the recipe wins" in done.stderr
    assert "gradient_accumulation_steps=4, the recipe train.global_batch_size=16" in done.stderr
    assert "world size 1 (none), device cpu" in done.stderr
    assert "global batch 16 = 16 per device x 1 accumulation x 1 ranks" in done.stderr
    assert "images are decoded on the CPU" in done.stderr


def test_a_world_that_accelerate_does_not_see_stops(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tiny.recipe(place)
    tiny.runtime(recipe)  # Accelerate settles on one process, as it does when the launcher's variables do not reach it
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"WORLD_SIZE=2 processes, but Accelerate sees 1: each would train alone"):
        tiny.runtime(recipe)


def test_data_root_from_the_environment(place: Path) -> None:
    without = run("tiny.yaml", cwd=place, processes=1)
    assert without.returncode != 0 and "DISTCXR_NIH_ROOT is not set" in without.stderr
    with_it = run(
        "tiny.yaml", "train.max_steps=1", "eval.splits=[]", "output=env", cwd=place, processes=1,
        DISTCXR_NIH_ROOT=str(place / "phantom"),
    )  # fmt: skip
    assert with_it.returncode == 0, with_it.stderr
