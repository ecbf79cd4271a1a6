"""The terminal: a bar where there is one, plain lines otherwise."""

from __future__ import annotations

import io
import logging

import pytest
from rich.console import Console

from distcxr.tracking.progress import Progress

FIGURES = {"loss": 0.1234, "lr": 1e-4, "img_per_s": 98.7, "data_wait_pct": 12.3, "memory_mb": 456.7}


def test_plain_lines_in_a_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "distcxr")
    progress = Progress(Console(file=io.StringIO()), total_steps=100, done_steps=40)
    progress.advance(50)
    progress.show(50, 2, FIGURES)
    progress.close()
    (line,) = caplog.messages
    assert line.startswith("epoch 2  step 50/100  loss 0.1234  lr 1.00e-04  99 img/s  data wait 12 %  457 MB  ETA 0:0")


def test_bar_on_a_terminal(caplog: pytest.LogCaptureFixture) -> None:
    screen = io.StringIO()
    progress = Progress(Console(file=screen, force_terminal=True, width=160), total_steps=10, done_steps=0)
    progress.show(5, 0, FIGURES)
    progress.close()
    assert "5/10" in screen.getvalue() and "loss 0.1234" in screen.getvalue()
    assert caplog.messages == []
