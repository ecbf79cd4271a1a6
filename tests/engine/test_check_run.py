"""`distcxr check RUN` finds what is damaged and names what the run is worth."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny

from distcxr.cli import main
from distcxr.runfolder.layout import last_folders
from distcxr.runfolder.manifest import read_meta, write_meta


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has saved its steps 3 and 4, and has not ended."""
    folder = tmp_path_factory.mktemp("check")
    tiny.phantom(folder)
    common = (f"output={folder / 'run'}", "eval.pictures=0", "eval.every=3st", "checkpoint.every=1st")
    run = tiny.build(folder, *common, "train.max_steps=4")
    tiny.fit(run)
    run.setup.close()
    (folder / "run" / "metrics_test.json").unlink()
    return folder / "run"


@pytest.fixture
def run(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "run"))


def check(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    monkeypatch.setattr("sys.argv", ["distcxr", "check", *map(str, words)])
    capsys.readouterr()
    code = main()
    shown = capsys.readouterr()
    return code, shown.out + shown.err


def test_a_whole_run(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted((path, path.stat().st_mtime_ns) for path in run.rglob("*"))
    code, shown = check(monkeypatch, capsys, run)
    lines = {line.split("  ")[0]: line.split() for line in shown.splitlines()}
    assert code == 0, shown
    assert lines["last-00000004"][1:4] == ["whole", "4", "1"] and lines["last-00000003"][1] == "whole"
    assert lines["steps.csv"][1:] == ["steps", "1", "to", "4"] and lines["history.csv"][1:] == ["2", "epochs"]
    assert lines["predictions_val.csv"][1] == "readable" and "problem" not in shown
    assert f"can be tested: distcxr test {run}" in shown
    command = f"distcxr train {run / 'recipe.yaml'} output={run} train.resume=auto"
    assert f"It is trained, and scores what is missing: {command}" in shown
    assert sorted((path, path.stat().st_mtime_ns) for path in run.rglob("*")) == before


def test_the_finished_run_is_finished(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, shown = check(monkeypatch, capsys, finished)
    assert code == 0 and "It is finished, at step 9." in shown, shown


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


SPOILT = {"flipped": flip, "cut": cut, "deleted": Path.unlink}


@pytest.mark.parametrize("how", SPOILT)
@pytest.mark.parametrize("name", ["model.safetensors", "training.pt", "checkpoint.json"])
def test_every_file_of_a_checkpoint_is_checked(
    run: Path, name: str, how: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    newest = last_folders(run)[0]
    SPOILT[how](newest / name)
    code, shown = check(monkeypatch, capsys, run)
    assert code == 2 and "last-00000004  damaged" in shown and "last-00000003  whole" in shown, shown
    (problem,) = (line for line in shown.splitlines() if line.startswith("problem"))
    assert str(newest / name) in problem and ("missing" in problem) == (how == "deleted")
    assert "It is trained" not in shown and "last-00000003" in shown.splitlines()[-1]


TABLES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "steps deleted": ("steps.csv", Path.unlink, "steps.csv is gone: the losses of steps 1 to 4 are lost"),
    "steps flipped": ("steps.csv", flip, "steps.csv is not what was written up to step 4"),
    "steps cut": ("steps.csv", cut, "steps.csv is not what was written up to step 4"),
    "history deleted": ("history.csv", Path.unlink, "history.csv has 0 of 2 epochs"),
    "metrics": ("metrics_val.json", cut, "metrics_val.json is damaged"),
    "predictions": ("predictions_test.csv", lambda path: path.write_text("file\n"), "the header must be"),
    "recipe": ("recipe.yaml", lambda path: path.write_text("data: [1"), "recipe.yaml is not valid YAML"),
}


@pytest.mark.parametrize("case", TABLES)
def test_tables_and_results_are_checked(
    run: Path, case: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name, spoil, message = TABLES[case]
    if case == "metrics":
        (run / name).write_text("{")
    else:
        spoil(run / name)
    code, shown = check(monkeypatch, capsys, run)
    assert code == 2 and message in shown, shown


def test_a_lost_best_and_notes_are_shown(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    newest = last_folders(run)[0]
    meta = read_meta(newest)
    write_meta(newest, meta | {"state": meta["state"] | {"notes": ["Something was lost."], "best_step": 3}})
    shutil.rmtree(run / "checkpoints" / "best")
    code, shown = check(monkeypatch, capsys, run)
    assert "Something was lost." in shown and code == 0
    assert "no whole best checkpoint with the weights of step 3: last-00000003 has them" in shown
    shutil.rmtree(last_folders(run)[1])
    assert "the weights of step 3: they are lost" in check(monkeypatch, capsys, run)[1]


def test_what_is_no_run_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, shown = check(monkeypatch, capsys, tmp_path)
    assert code == 2 and "is not a run folder: it holds neither recipe.yaml nor checkpoints" in shown
    code, shown = check(monkeypatch, capsys, tmp_path / "nowhere")
    assert code == 2 and "nowhere" in shown
