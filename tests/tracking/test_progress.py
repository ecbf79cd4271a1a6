"""The terminal: a bar where there is one, plain lines otherwise."""

from __future__ import annotations

import io
import logging

import pytest
from rich.console import Console

from distcxr.tracking.progress import Progress, newest_figures

FIGURES = {"loss": 0.1234, "lr": 1e-4, "img_per_s": 98.7, "data_wait_pct": 12.3, "memory_mb": 456.7}


def test_plain_lines_in_a_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "distcxr")
    progress = Progress(Console(file=io.StringIO()), total_steps=100, done_steps=40)
    progress.advance(50)
    progress.show(50, 2, FIGURES)
    progress.close()
    (line,) = caplog.messages
    assert line.startswith("epoch 2  step 50/100  loss 0.1234  lr 1.00e-04  99 img/s  data wait 12 %  457 MB  ETA 0:0")


def test_a_log_shows_how_far_its_run_is(caplog: pytest.LogCaptureFixture) -> None:
    """`newest_figures` reads what `Progress` writes, behind whatever a log puts before it."""
    caplog.set_level(logging.INFO, "distcxr")
    progress = Progress(Console(file=io.StringIO()), total_steps=100, done_steps=40)
    progress.show(50, 2, FIGURES)
    progress.show(60, 2, FIGURES)
    log = "\n".join(f"12:00:00 {message}" for message in caplog.messages) + "\n12:00:01 something else\n"
    found = newest_figures(log)
    assert found is not None and (found.step, found.total_steps) == (60, 100)
    assert found.text.startswith("loss 0.1234  lr 1.00e-04")
    assert newest_figures("12:00:00 run folder runs/x") is None


def test_bar_on_a_terminal(caplog: pytest.LogCaptureFixture) -> None:
    screen = io.StringIO()
    progress = Progress(Console(file=screen, force_terminal=True, width=160), total_steps=10, done_steps=0)
    progress.show(5, 0, FIGURES)
    progress.close()
    assert "5/10" in screen.getvalue() and "loss 0.1234" in screen.getvalue()
    assert caplog.messages == []
