"""`distcxr submit`: what is handed to sbatch, and what is found wrong before."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
import tiny

from distcxr.cli import main
from distcxr.jobs.runs_json import read_listing


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a recipe, its data and an sbatch that notes its words and answers with a job's number."""
    tiny.phantom(tmp_path)
    tiny.recipe(tmp_path)
    tools = tmp_path / "bin"
    tools.mkdir()
    script = f'printf "%s\\n" "$*" >> {tmp_path}/asked; echo "$DISTCXR_SITE" > {tmp_path}/site\n'
    script += f'echo "$((40 + $(wc -l < {tmp_path}/asked)));cluster"'  # jobs 41, 42 and so on
    (tools / "sbatch").write_text(f"#!/bin/sh\n{script}\n")
    (tools / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", str(tools), prepend=":")
    monkeypatch.delenv("DISTCXR_SITE", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def submit(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr("sys.argv", ["distcxr", "submit", "tiny.yaml", "data.root=phantom", *words])
    return main()


def asked(place: Path) -> list[list[str]]:
    return [line.split() for line in (place / "asked").read_text().splitlines()]


def test_a_run_and_its_test(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    resources = ("--nodes", "2", "--gpus", "4", "--cpus", "16", "--time", "1:00:00", "--sbatch=--mem=9G --account=lab")
    assert submit(monkeypatch, "train.epochs=2", *resources, "--then-test") == 0
    train, test = asked(place)
    asks = {"--nodes=2", "--gpus-per-node=4", "--cpus-per-task=16", "--time=1:00:00", "--mem=9G", "--account=lab"}
    assert asks < set(train) and "--job-name=tiny" in train
    script = next(place for place, word in enumerate(train) if word.endswith("slurm/train.sbatch"))
    assert train[script + 1 :] == ["tiny.yaml", "data.root=phantom", "train.epochs=2", "eval.splits=[val]"]
    assert {"--dependency=afterok:41", "--nodes=1", "--gpus-per-node=1"} < set(test)
    assert test[-3:] == ['output="runs/tiny/slurm-41"', "--test", "runs/tiny/slurm-41"]
    said = capsys.readouterr().out
    for shown in ("job 41", "runs/tiny/slurm-41\n", "runs/tiny/slurm-41.log", "distcxr status", "scancel 41"):
        assert shown in said
    assert (place / "runs" / "tiny").is_dir(), "SLURM writes no log into a folder that is not there"
    assert Path((place / "site").read_text().strip()).name == "site.env"


def test_an_array_has_a_line_and_a_folder_for_each_run(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = ("--array", "optim.lr=1e-4,1e-3", "train.stages=[{epochs: 1, name: it's}],[]")
    assert submit(monkeypatch, *grid, "--at-once", "2", "--gpus", "0") == 0
    (words,) = asked(place)
    assert "--array=1-4%2" in words and not any("gpus" in word for word in words)
    file = Path(words[-1].removeprefix("@"))
    runs = [shlex.split(line) for line in file.read_text().splitlines()]
    assert len(runs) == 4 and all(run[0] == "tiny.yaml" and run[1] == "data.root=phantom" for run in runs)
    folders = [json.loads(next(word for word in run if word.startswith("output="))[7:]) for run in runs]
    assert len(set(folders)) == 4 and all(Path(folder).parent == file.parent for folder in folders)
    listed = read_listing(file.parent)
    assert [str(run.folder) for run in listed] == folders and all(run.num_parameters > 1000 for run in listed)
    assert listed[0].recipe == "tiny" and listed[0].values["optim.lr"] == "1e-4"


def test_an_array_is_tested_and_then_compared(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--array", "seed=0,1", "--gpus", "4", "--nodes", "2", "--partition", "gpu", "--then-test")
    assert submit(monkeypatch, *words) == 0
    train, test, compare = asked(place)
    folder = Path(train[-1].removeprefix("@")).parent
    assert "--nodes=2" in train and {"--dependency=aftercorr:41", "--array=1-2"} < set(test)
    script = next(number for number, word in enumerate(compare) if word.endswith("slurm/report.sbatch"))
    assert compare[script + 1 :] == [str(folder)] and not any(word.startswith("--array") for word in compare)
    # `afterany`: runs that failed are named in the comparison, and their tests never ran.
    flags = {"--dependency=afterany:42", "--nodes=1", "--gpus-per-node=1", "--partition=gpu"}
    assert flags < set(compare) and f"--output={folder}/slurm-%j.log" in compare
    said = capsys.readouterr().out
    assert f"compare     job 43, after the tests; writes {folder}/sweep.html" in said
    (place / "asked").unlink()
    assert submit(monkeypatch, *words, "--dry-run") == 0
    lines = [shlex.split(line) for line in capsys.readouterr().out.splitlines() if line.startswith("sbatch ")]
    shown = [[word.replace("TEST_JOB", "42").replace("JOB", "41") for word in line[1:]] for line in lines]
    assert shown == [train, test, compare]


def test_a_dry_run_submits_nothing(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert submit(monkeypatch, "--dry-run", "--then-test") == 0
    (words,) = asked(place)
    assert words[0] == "--test-only"
    assert capsys.readouterr().out.count("slurm/train.sbatch") == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("train.epoch=3",), "did you mean 'epochs'?"),
        (("data.root=nowhere",), "nowhere"),
        (("--nodes", "3"), "can't be shared by 3 processes"),
        (("--nodes", "0"), "at least 1 node"),
        (("--at-once", "2"), "--array"),
        (("--array", "optim.lr=1e-4,fast"), "'fast'"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_submitted(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], said: str
) -> None:
    assert submit(monkeypatch, *words) == 2
    assert said in capsys.readouterr().err and not (place / "asked").exists()


def test_without_slurm(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("distcxr.jobs.submission.shutil.which", lambda _: None)
    assert submit(monkeypatch) == 2 and "there is no sbatch on this machine" in capsys.readouterr().err
    assert not (place / "runs").exists()
