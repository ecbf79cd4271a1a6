"""The terminal: a bar where there is one, plain lines otherwise, and tables as wide as they may be."""

from __future__ import annotations

import io
import logging
import re

import pytest
from rich.console import Console

from distcxr.tracking.terminal import LOG_WIDTH, Progress, newest_figures, table_text

FIGURES = {"loss": 0.1234, "lr": 1e-4, "img_per_s": 98.7, "data_wait_pct": 12.3, "memory_mb": 456.7}
NIH = (
    ("test", "positives", "AUROC", "95% interval", "average\nprecision"),
    ("Pleural_Thickening", "1,143/25,596", "0.7812", "0.7654-0.7970", "0.1234"),
    ("Hernia", "86/25,596", "-", "-", "-"),
    ("macro of 14", "", "0.8012", "0.7912-0.8112", "0.2512"),
)


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


@pytest.mark.parametrize(
    ("width", "shown"), [(80, "99 img/s  ETA"), (100, "99 img/s  data wait 12 %  ETA"), (60, "ETA")]
)
def test_a_narrow_terminal_keeps_bar_and_steps(width: int, shown: str) -> None:
    screen = io.StringIO()
    progress = Progress(Console(file=screen, force_terminal=True, width=width), total_steps=48_600, done_steps=0)
    progress.show(12_345, 12, FIGURES)
    progress.close()
    text = re.sub("\x1b\\[[0-9;?]*[a-zA-Z]", "", screen.getvalue()).rstrip().splitlines()[-1]
    assert "epoch 12 ━" in text and "12345/48600" in text and shown in text and "…" not in text
    assert ("lr" in text, len(text) <= width) == (False, True)


def test_the_longest_of_nih_fits_and_figures_stand_below_each_other() -> None:
    lines = table_text(NIH).splitlines()
    assert len(lines) == 5, "a title of two lines"
    assert max(map(len, lines)) <= LOG_WIDTH and not any(line != line.rstrip() for line in lines)
    end = lines[1].index("AUROC") + len("AUROC")
    assert [line[end - 1] for line in lines[2:]] == ["2", "-", "2"]
    assert [line.split() for line in lines[2:]] == [[word for cell in row for word in cell.split()] for row in NIH[1:]]


@pytest.mark.parametrize("width", [LOG_WIDTH, 100])
def test_a_long_name_is_folded_and_figures_are_not(width: int) -> None:
    name = "[Enlarged cardiomediastinum] " + "x" * 120
    lines = table_text((*NIH, (name, *NIH[1][1:])), width).splitlines()
    assert max(map(len, lines)) <= width
    folded = [line for line in lines if "x" in line or "cardio" in line]
    assert sum(line.count("x") for line in folded) == 120 and "[Enlarged" in "".join(lines)
    assert sum("1,143/25,596  0.7812  0.7654-0.7970" in line for line in lines) == 2


def test_without_a_bound_a_line_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    text = table_text((("", "AUROC", ""), ("run " * 50, "0.9", "a note " * 50)), width=None)
    assert len(text.splitlines()) == 2 and "\x1b" not in text
