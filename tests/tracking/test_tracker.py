"""Curves are no reason to end a run."""

from __future__ import annotations

import logging
import shutil
import time
from pathlib import Path

import pytest

from distcxr.runfolder import filenames
from distcxr.tracking.tracker import Tracker


def test_a_folder_that_is_gone_ends_the_curves_and_not_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    tracker = Tracker(tmp_path, purge_step=0, services=(), project="", config={})
    tracker.scalars({"train/loss": 1.0}, 1)
    shutil.rmtree(tmp_path / filenames.TENSORBOARD)
    deadline = time.monotonic() + 30
    with caplog.at_level(logging.WARNING):
        while "no more curves" not in caplog.text and time.monotonic() < deadline:  # its thread meets it first
            tracker.scalars({"train/loss": 1.0}, 2)
            time.sleep(0.01)
    assert caplog.text.count("no more curves") == 1 and "No such file or directory" in caplog.text
    tracker.scalars({"train/loss": 1.0}, 3)
    tracker.close()
    assert "Traceback" not in capfd.readouterr().err
