"""The `distcxr` command: words out, mistakes without a traceback."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from distcxr.cli import main


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["distcxr", *arguments])
    return main()


def test_phantom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "set"
    arguments = ("phantom", str(out), "--images", "12", "--size", "32", "--workers", "1")
    assert call(monkeypatch, *arguments) == 0
    assert len(list((out / "images").iterdir())) == 12 and str(out) in capsys.readouterr().out


def test_a_mistake_is_two_and_said_plainly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "precious.txt").write_text("not ours")
    assert call(monkeypatch, "phantom", str(tmp_path), "--images", "12", "--size", "32") == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_schema(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "schema") == 0
    assert "global_batch_size" in json.dumps(json.loads(capsys.readouterr().out))


def test_overrides_may_follow_an_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = "recipes/quickstart.yaml"
    data = f"data.root={tmp_path / 'none'}"
    assert call(monkeypatch, "cache", recipe, "data.image_size=64", "--workers", "1", data) == 2
    assert f"{tmp_path / 'none'} is not a folder" in capsys.readouterr().err
    for wrong in (("cache", recipe, "--workers", "1", "words"), ("cache", recipe, "--wrong=1"), ("schema", "a=b")):
        with pytest.raises(SystemExit, match="2"):
            call(monkeypatch, *wrong)
        assert f"unrecognized arguments: {wrong[-1]}" in capsys.readouterr().err


def test_a_folder_that_cant_be_written_is_said_plainly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "set"
    assert call(monkeypatch, "phantom", str(out), "--images", "12", "--size", "32") == 2
    assert capsys.readouterr().err == f"error: {out}: Not a directory\n"
