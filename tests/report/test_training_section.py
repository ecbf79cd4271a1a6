"""Training's curves: stages are where history.csv has them, and `curves.svg` is a picture of its own."""

from __future__ import annotations

import csv
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from run_folders import write_training

from distcxr.report.training_section import loss_charts, write_curves
from distcxr.runfolder.history import read_columns

SVG = "{http://www.w3.org/2000/svg}"


def with_stages(folder: Path, *stages: int) -> None:
    """One epoch of six steps for each of `stages`."""
    write_training(folder, 6 * len(stages), epochs=len(stages))
    rows = list(csv.DictReader((folder / "history.csv").read_text().splitlines()))
    with (folder / "history.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, [*rows[0], "stage"])
        writer.writeheader()
        writer.writerows(row | {"stage": stage} for row, stage in zip(rows, stages, strict=True))


def test_the_picture_stands_alone(tmp_path: Path) -> None:
    with_stages(tmp_path, 1, 1, 2, 3, 3, 3)
    path = write_curves(tmp_path)
    assert path == tmp_path / "curves.svg" and [one.name for one in tmp_path.glob(".*")] == []
    root = ET.parse(tmp_path / "curves.svg").getroot()
    titles = [one.text for one in root.iter(f"{SVG}tspan") if one.get("class") == "head"]
    assert titles == ["Loss", "Loss by epoch", "Validation macro AUROC"]
    styles = next(root.iter(f"{SVG}style")).text or ""
    used = {name for one in root.iter() for name in one.get("class", "").split()} - {"time", "tick", "axis"}
    assert "mark" in used and all(f".{name}" in styles for name in used)
    assert "var(" not in styles and "href" not in path.read_text()
    loss, by_epoch, _ = root.findall(f"{SVG}svg/{SVG}svg")
    assert len(max((line.get("points", "").split() for line in loss.iter(f"{SVG}polyline")), key=len)) == 36
    assert [len(line.get("points", "").split()) for line in by_epoch.iter(f"{SVG}polyline")] == [6, 6]


def test_a_stage_begins_where_the_one_before_ended(tmp_path: Path) -> None:
    with_stages(tmp_path, 1, 1, 2, 3, 3, 3)
    steps, history = (read_columns(tmp_path / name) for name in ("steps.csv", "history.csv"))
    loss, by_epoch, _ = (ET.fromstring(chart.svg) for chart in loss_charts(steps, history))
    for drawn, first, last, begins in ((loss, 1, 36, [1, 12, 18]), (by_epoch, 0, 5, [0, 1.5, 2.5])):
        marks = [float(line.get("x1", "")) for line in drawn.iter("line") if line.get("class") == "mark"]
        points = [point for line in drawn.iter("polyline") for point in line.get("points", "").split()]
        left, right = (pick(float(point.partition(",")[0]) for point in points) for pick in (min, max))
        expected = [left + (right - left) * (at - first) / (last - first) for at in begins]
        assert marks == pytest.approx(expected, abs=0.11)
        assert sum((text.text or "").startswith("stage") for text in drawn.iter("text")) == 3


def test_one_stage_is_not_marked(tmp_path: Path) -> None:
    with_stages(tmp_path, 1, 1, 1)
    steps, history = (read_columns(tmp_path / name) for name in ("steps.csv", "history.csv"))
    assert not any("mark" in chart.svg or "stage" in chart.svg for chart in loss_charts(steps, history))


def test_too_little_to_draw_is_no_picture(tmp_path: Path) -> None:
    (tmp_path / "steps.csv").write_text("step,epoch,loss,lr\n1,0,0.5,0.1\n")
    (tmp_path / "history.csv").write_text("epoch,step,train_loss,val_loss,val_auroc\n0,1,0.5,,\n")
    assert write_curves(tmp_path) is None and not (tmp_path / "curves.svg").exists()
