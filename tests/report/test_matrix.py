"""The table of external tests: rows trained on, columns tested on."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from distcxr.report.matrix import write_matrix


def cell(auroc: float | None, reason: str | None = None, own: bool = False, low: float | None = None) -> dict[str, Any]:
    figure = {"auroc": auroc, "auroc_low": low, "auroc_high": None if low is None else 0.9}
    names = ["Edema", "Effusion"]
    found = {name: figure | {"reason": None} for name in names} if auroc is not None else {}
    return {
        **figure, "run": "a", "data": "b", "reason": reason, "in_distribution": own, "notes": [],
        "shared": {"Edema": "Edema", "Effusion": "Pleural Effusion"}, "macro_findings": names, "num_samples": 30,
        "num_patients": 1234, "findings": found, "folder": "runs/a/external/b" if found else None,
    }  # fmt: skip


def test_two_runs_on_two_data_sets(tmp_path: Path) -> None:
    runs = [
        {"name": f"net/{name}", "trained_on": name, "model": "net", "step": 3, "checkpoint": name}
        for name in ("nih", "chexpert")
    ]
    data = [{"name": name, "dataset": name, "hashes": {}, "num_images": 30, "num_patients": 9} for name in ("N", "C")]
    cells = [cell(0.8123, own=True, low=0.7), cell(0.7), cell(None, "leak: 5 patients"), cell(0.75, own=True)]
    shown = write_matrix(tmp_path, {"split": "test", "runs": runs, "data": data, "cells": cells})
    lines = shown.splitlines()
    assert lines[2].split() == ["nih", "0.8123", "[1]", "0.7000"]
    assert "0.7000-0.9000" in shown and "2 findings, 1,234 patients" in shown
    assert lines[-2:] == [
        "[1] in-distribution: the run, or one that it began with, was trained on this data set",
        "[2] leak: 5 patients",
    ]
    assert "– [2]" in shown and "0.7500 [1]" in shown
    rows = list(csv.DictReader((tmp_path / "matrix.csv").read_text().splitlines()))
    assert [(row["trained_on"], row["data"], row["auroc"]) for row in rows] == [
        ("nih", "N", "0.8123"), ("nih", "C", "0.7"), ("chexpert", "N", ""), ("chexpert", "C", "0.75"),
    ]  # fmt: skip
    assert rows[2]["reason"] == "leak: 5 patients" and rows[0]["in_distribution"] == "True"
    assert len(json.loads((tmp_path / "matrix.json").read_text())["cells"]) == 4
    page, text = (tmp_path / "matrix.html").read_text(), (tmp_path / "matrix.md").read_text()
    assert "tested on C" in page and "in-distribution" in page and 'href="runs/a/external/b/report.html"' in page
    assert "1 of 4 pairs" in page and "Pleural Effusion" in text
