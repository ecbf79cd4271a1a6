"""`distcxr report FOLDER`."""

from __future__ import annotations

import json
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


def test_an_array_is_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each run has its figures or the reason why not, one that never began, too."""
    names = ("good", "cut", "never")
    runs = [
        {"name": name, "recipe": "x", "values": {"seed": str(seed)}, "folder": name, "num_parameters": 12345}
        for seed, name in enumerate(names)
    ]
    (tmp_path / "runs.json").write_text(json.dumps(runs))
    for name in ("good", "cut"):
        write_run(tmp_path / name, images=60, patients=20, replicates=5, pictures=0, steps=10)
    (tmp_path / "cut" / "RESUME").touch()  # trained on after it was scored
    monkeypatch.setattr("sys.argv", ["distcxr", "report", str(tmp_path)])
    assert main() == 0
    said = capsys.readouterr().out
    assert str(tmp_path / "sweep.html") in said and "12,345" in said and "no figures: never: not started\n" in said
    found = json.loads((tmp_path / "sweep.json").read_text())
    reasons = {run["name"]: run["reason"] for run in found["runs"]}
    assert reasons["good"] is None and reasons["never"] == "not started" and reasons["cut"].startswith("saved at step")
    assert found["best"] == "good" and not (tmp_path / "report.html").exists()
    (tmp_path / "runs.json").write_text("[")
    assert main() == 2 and "runs.json is damaged" in capsys.readouterr().err


def test_a_folder_of_something_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["distcxr", "report", str(tmp_path)])
    assert main() == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path} is not a run folder")
    assert not list(tmp_path.iterdir())
