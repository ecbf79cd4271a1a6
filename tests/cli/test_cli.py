"""The `distcxr` command: words out, mistakes without a traceback."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer

from distcxr.cli import app, main
from distcxr.cli.options import complete_recipe, repeat_options
from distcxr.recipe import load_recipe
from distcxr.recipe.load import to_yaml


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["distcxr", *arguments])
    return main()


def test_phantom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "set"
    arguments = ("phantom", str(out), "--images", "12", "--size", "32", "--workers", "1")
    assert call(monkeypatch, *arguments) == 0
    assert len(list((out / "images").iterdir())) == 12 and str(out) in capsys.readouterr().out


def test_a_mistake_has_exit_code_two_and_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "precious.txt").write_text("not ours")
    assert call(monkeypatch, "phantom", str(tmp_path), "--images", "12", "--size", "32") == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_schema(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "schema") == 0
    assert "global_batch_size" in json.dumps(json.loads(capsys.readouterr().out))


def test_every_verb_has_a_summary_that_fits_and_every_word_of_it_a_meaning(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert call(monkeypatch, "--help") == 0
    verbs = capsys.readouterr().out.partition("Commands:\n")[2].splitlines()
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert len(verbs) == len(commands) and not [line for line in verbs if line.endswith("...")]
    unexplained = [(verb, one.name) for verb, command in commands.items() for one in command.params if not one.help]
    assert not unexplained
    assert call(monkeypatch, "check", str(Path(__file__).parent), "seed=1") == 2
    assert "is a run folder: keys, --quick and --processes are about a recipe" in capsys.readouterr().err


def test_overrides_may_follow_an_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = "recipes/quickstart.yaml"
    data = f"data.root={tmp_path / 'none'}"
    assert call(monkeypatch, "cache", recipe, "data.image_size=64", "--workers", "1", data) == 2
    assert f"{tmp_path / 'none'} is not a folder" in capsys.readouterr().err
    for wrong, problem in (
        (("cache", recipe, "--workers", "1", "words"), "words"),
        (("cache", recipe, "--wrong=1"), "No such option: --wrong; see distcxr cache --help"),
        (("schema", "a=b"), "Got unexpected extra argument(s) (a=b)"),
        (("caches", recipe), "No such command 'caches'"),
        (("cache", recipe, "--workers", "two"), "Invalid value for '--workers'"),
    ):
        assert call(monkeypatch, *wrong) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ") and problem in said and said.count("\n") == 1 + said.count("\n ")


def test_a_folder_that_cant_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "set"
    assert call(monkeypatch, "phantom", str(out), "--images", "12", "--size", "32") == 2
    assert capsys.readouterr().err == f"error: {out}: Not a directory\n"


def test_options_of_several_words() -> None:
    """`--split train val` and `--array a=1,2 b=3`, as before typer."""
    names = {"--split", "--array"}
    assert repeat_options(["run", "--split", "train", "val", "--out", "x"], names) == [
        "run", "--split", "train", "--split", "val", "--out", "x",
    ]  # fmt: skip
    assert repeat_options(["--split"], names) == ["--split"]
    assert repeat_options(["a", "--out", "x", "b=c"], names) == ["a", "--out", "x", "b=c"]


def test_recipes_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dense.yaml").touch()
    assert complete_recipe("dense") == ["densenet121", "dense.yaml"]


def test_parallel_takes_a_number_or_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    words = ("sweep", "quickstart", f"data.root={tmp_path}")
    for option, problem in (("--parallel", "there are no GPUs to count"), ("--parallel=0", "at least 1")):
        assert call(monkeypatch, *words, option) == 2
        assert problem in capsys.readouterr().err
        assert call(monkeypatch, words[0], option, *words[1:]) == 2
        assert problem in capsys.readouterr().err


def test_a_mistake_in_the_recipe_starts_no_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("distcxr.jobs.launcher.launch", lambda *_: pytest.fail("started"))
    assert call(monkeypatch, "train", "quickstart", "train.epoch=3") == 2
    assert "did you mean 'epochs'?" in capsys.readouterr().err
    assert call(monkeypatch, "test", "quickstart", "seed=1") == 2
    assert "name a run folder or a checkpoint" in capsys.readouterr().err


def test_test_takes_the_recipe_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[tuple[list[str], int]] = []
    monkeypatch.setattr("distcxr.jobs.launcher.launch", lambda words, processes: started.append((words, processes)))
    run = tmp_path / "run"
    (run / "checkpoints" / "best").mkdir(parents=True)
    (run / "recipe.yaml").write_text(to_yaml(load_recipe(Path("quickstart"))))
    assert call(monkeypatch, "test", str(run), "seed=3", "--processes", "2") == 0
    assert call(monkeypatch, "test", str(run), "quickstart", "--processes", "1") == 0
    assert started == [
        ([str(run / "recipe.yaml"), "output=null", "seed=3", "--test", str(run)], 2),  # results go to the run's folder
        (["quickstart", "--test", str(run)], 1),
    ]
