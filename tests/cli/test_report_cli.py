"""`distcxr report RUN_FOLDER`."""

from __future__ import annotations

from pathlib import Path

import pytest
from run_folders import write_run

from distcxr.cli import main


def test_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_run(tmp_path / "run", images=60, patients=20, replicates=5, pictures=1, steps=10)
    monkeypatch.setattr("sys.argv", ["distcxr", "report", str(folder)])
    assert main() == 0
    assert str(folder / "report.html") in capsys.readouterr().out
    assert all((folder / name).stat().st_size for name in ("report.html", "report.md", "report.json"))


def test_a_folder_of_something_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["distcxr", "report", str(tmp_path)])
    assert main() == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path} is not a run folder")
    assert not list(tmp_path.iterdir())
