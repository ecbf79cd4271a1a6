"""Tables for the terminal and the log: aligned, as wide as they may be, and nothing lost."""

from __future__ import annotations

import pytest

from distcxr.tracking.terminal import LOG_WIDTH, table_text

NIH = (
    ("test", "positives", "AUROC", "95% interval", "average\nprecision"),
    ("Pleural_Thickening", "1,143/25,596", "0.7812", "0.7654-0.7970", "0.1234"),
    ("Hernia", "86/25,596", "-", "-", "-"),
    ("macro of 14", "", "0.8012", "0.7912-0.8112", "0.2512"),
)


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
