"""`distcxr train` and `distcxr test` start their processes themselves, and end with one sentence where they fail."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import tiny

ENVIRONMENT = {key: value for key, value in os.environ.items() if not key.startswith(("ACCELERATE_", "DISTCXR_"))}
QUICK = ("train.max_steps=2", "train.epochs=300", "eval.every=300ep", "eval.pictures=0", "eval.replicates=20")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    tiny.phantom(folder)
    tiny.recipe(folder)
    return folder


def start(*words: str, cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "distcxr.cli", *words], cwd=cwd, env=ENVIRONMENT, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip


def run(*words: str, cwd: Path) -> tuple[int, str]:
    """Exit code and stderr."""
    process = start(*words, cwd=cwd)
    _, stderr = process.communicate(timeout=240)
    return process.returncode, stderr


def test_a_wrong_key_is_found_before_any_process_is_started(place: Path) -> None:
    code, stderr = run("train", "tiny.yaml", "train.epoch=3", "--processes", "2", cwd=place)
    assert code == 2 and stderr.startswith("error: ") and "did you mean 'epochs'?" in stderr.splitlines()[-1]


def test_a_mistake_that_all_ranks_find_is_one_sentence_and_the_last(place: Path) -> None:
    code, stderr = run("train", "tiny.yaml", f"data.root={place / 'phantom'}", "train.precision=fp16", cwd=place)
    assert code == 2
    assert stderr.splitlines()[-1] == "error: train.precision=fp16 needs a GPU; on a CPU use bf16 or no"
    assert "Traceback" not in stderr and stderr.count("fp16 needs a GPU") == 1 and "exitcode" not in stderr


def test_a_mistake_that_rank_0_finds_is_one_sentence_and_the_last(place: Path) -> None:
    (place / "file").write_text("")
    words = ("tiny.yaml", f"data.root={place / 'phantom'}", f"output={place / 'file'}")
    code, stderr = run("train", *words, cwd=place)
    last = stderr.splitlines()[-1]
    assert code == 2 and last.startswith("error: ") and str(place / "file") in last
    assert "Traceback" not in stderr and stderr.count(last) == 1


@pytest.mark.slow
def test_train_on_two_ranks_then_test_the_run_folder(place: Path) -> None:
    code, stderr = run("train", "tiny.yaml", f"data.root={place / 'phantom'}", *QUICK, "output=run", cwd=place)
    assert code == 0, stderr
    assert "world size 2" in stderr
    code, stderr = run("test", "run", "--processes", "1", cwd=place)
    assert code == 0, stderr
    assert json.loads((place / "run" / "metrics_test.json").read_text())["split"] == "test"


@pytest.mark.slow
def test_a_rank_that_is_killed_is_named(place: Path) -> None:
    words = ("tiny.yaml", f"data.root={place / 'phantom'}", "train.epochs=3000", "eval.every=3000ep", "output=killed")
    process = start("train", *words, cwd=place)
    steps, deadline = place / "killed" / "steps.csv", time.monotonic() + 120
    while not steps.exists() and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    ranks = [child for child in psutil.Process(process.pid).children() if "distcxr.launch" in child.cmdline()]
    assert len(ranks) == 2
    ranks[0].send_signal(signal.SIGKILL)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    assert stderr.splitlines()[-1].startswith("error: rank ") and "was ended by SIGKILL" in stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["key=value"], "name a checkpoint or a run folder"),
        (["quickstart", "densenet121", "run"], "one recipe at a time, not quickstart, densenet121"),
        (["elsewhere"], "elsewhere is not in a run folder that has a recipe.yaml"),
    ],
)
def test_what_test_can_not_be_asked(tmp_path: Path, words: list[str], message: str) -> None:
    code, stderr = run("test", *words, cwd=tmp_path)
    assert code == 2 and message in stderr.splitlines()[-1]
