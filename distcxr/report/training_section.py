"""How training went: the section of the page, and `curves.svg`, for slides, chats and folders without a browser."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distcxr.report import blocks
from distcxr.report.blocks import Block, Chart, Charts, Content, Part, Section, column
from distcxr.report.charts import Dot, Line, chart_file, over_time
from distcxr.runfolder import filenames
from distcxr.runfolder.history import read_columns
from distcxr.runfolder.loss_spikes import find_spikes
from distcxr.runfolder.whole import write_whole

_MAX_STEPS_DRAWN = 400
_MOST_DOTS = 60
_MOST_SPIKES = 20


def training_section(
    content: Content, files_steps: dict[str, list[Any]], history: dict[str, list[Any]]
) -> Section | None:
    """Loss, learning rate and validation over steps, and how fast it went; None where nothing was written."""
    charts = loss_charts(files_steps, history)
    marks = _stages(history, "step")
    rates, _ = _binned(files_steps, "lr")
    if len(rates) > 1:
        drawn = over_time([Line(rates, "curve")], "step", (), marks, from_zero=True, title="Learning rate over steps")
        peak = content.get("recipe", "optim", "lr")
        is_peak = isinstance(peak, float) and not marks
        note = (Part("peak "), content.figure("recipe", "optim", "lr", form="g")) if is_peak else ()
        charts.append(Chart("Learning rate", note, drawn))
    speed, speed_of = _binned(files_steps, "img_per_s")
    if len(speed) > 1:
        lines, title = [Line(speed, "curve thin")], "Images per second over steps"
        drawn = over_time(lines, "step", (), marks, from_zero=True, title=title)
        means = Part(f"mean of {speed_of} steps" if speed_of > 1 else "every step")
        charts.append(Chart("Images per second", (means,), drawn))
    shown: list[Block] = [Charts(tuple(charts), wide=True)] if charts else []
    if content.get("throughput"):
        named = {
            "num_steps": ("steps", ",.0f"),
            "img_per_s": ("images per second, median", ",.1f"),
            "data_wait_pct": ("waiting for data, % of time, median", ".1f"),
            "memory_mb": ("peak memory, MB", ",.0f"),
            "train_minutes": ("training time without evaluation, minutes", ",.1f"),
        }
        known = {key: one for key, one in named.items() if content.get("throughput", key) is not None}
        figures = [content.number("throughput", key, form=form) for key, (_, form) in known.items()]
        shown.append(blocks.table(("speed", column(name for name, _ in known.values())), ("", figures)))
    return Section("training", "Training", tuple(shown)) if shown else None


def write_curves(run_folder: Path) -> Path | None:
    """Draw `curves.svg` of `steps.csv` and `history.csv`; None, and no picture, where they hold too little to draw.

    Raises ValueError: one of the two is damaged; it is named.
    """
    charts = loss_charts(read_columns(run_folder / filenames.STEPS), read_columns(run_folder / filenames.HISTORY))
    if not charts:
        return None
    path = run_folder / filenames.CURVES
    write_whole(path, chart_file(charts))
    return path


def loss_charts(steps: dict[str, list[Any]], history: dict[str, list[Any]]) -> list[Chart]:
    """Loss by step and by epoch, and validation's AUROC, as far as they were written; stages are marked.

    Args:
        steps, history: columns of `steps.csv` and `history.csv`.
    """
    charts = []
    marks = _stages(history, "step")
    losses, losses_of = _binned(steps, "loss")
    val = _points(history, "val_loss")
    if len(losses) > 1 or len(val) > 1:
        lines = [Line(losses, "curve thin", "training")] + ([Line(val, "curve other", "validation")] if val else [])
        means = f"training: mean of {losses_of} steps" if losses_of > 1 else "training: every step"
        spikes = sorted(find_spikes(steps), key=lambda spike: -spike.loss)[:_MOST_SPIKES]
        dots = [*_dots(val), *(Dot(spike.step, spike.loss, 4.5, "ring") for spike in spikes)]
        drawn = over_time(lines, "step", dots, marks, from_zero=True, title="Loss over steps")
        charts.append(Chart("Loss", (Part(means + ("; rings: spikes" if spikes else "")),), drawn))
    epochs, val = (_points(history, name, "epoch") for name in ("train_loss", "val_loss"))
    if len(epochs) > 1:
        lines = [Line(epochs, "curve", "training")] + ([Line(val, "curve other", "validation")] if val else [])
        dots = [*_dots(epochs, "dot"), *_dots(val)]
        begins = _stages(history, "epoch")
        drawn = over_time(lines, "epoch", dots, begins, from_zero=True, title="Loss over epochs")
        charts.append(Chart("Loss by epoch", (Part("training: mean of the epoch's steps, while it learns"),), drawn))
    auroc = _points(history, "val_auroc")
    if len(auroc) > 1:
        best = max(auroc, key=lambda point: point[1])
        dots = [*_dots(auroc), Dot(*best, 4.5, "ring")]
        lines, title = [Line(auroc, "curve other")], "Validation macro AUROC over steps"
        drawn = over_time(lines, "step", dots, marks, title=title)
        charts.append(Chart("Validation macro AUROC", (Part(f"best at step {best[0]:,.0f}"),), drawn))
    return charts


def _dots(points: Sequence[tuple[float, float]], style: str = "dot other") -> list[Dot]:
    """Dots at the points, unless they are so many that they would touch."""
    return [Dot(x, y, 2.6, style) for x, y in points] if len(points) <= _MOST_DOTS else []


def _stages(history: dict[str, list[Any]], along: str) -> list[tuple[float, str]]:
    """Where each stage begins on an axis of `step` or `epoch`, and its name; nothing where there is one stage."""
    found: list[tuple[float, str]] = []
    begin, stage_before = 0.0, None
    for number, at in zip(history.get("stage", []), history.get(along, []), strict=False):
        if number is None or at is None:
            continue
        if number != stage_before:
            found.append((begin, f"stage {number:g}"))
            stage_before = number
        begin = at + 0.5 if along == "epoch" else at  # an epoch's row is of the step that ends it
    return found if len(found) > 1 else []


def _points(columns: dict[str, list[Any]], name: str, along: str = "step") -> list[tuple[float, float]]:
    """(step, value) where both are there, in the order of steps; or along another column."""
    pairs = zip(columns.get(along, []), columns.get(name, []), strict=False)
    return sorted((x, y) for x, y in pairs if x is not None and y is not None)


def _binned(columns: dict[str, list[Any]], name: str) -> tuple[list[tuple[float, float]], int]:
    """The points, or the means of so many neighbours that `_MAX_STEPS_DRAWN` points are left."""
    points = _points(columns, name)
    size = -(-len(points) // _MAX_STEPS_DRAWN)
    if size <= 1:
        return points, 1
    groups: Sequence[list[tuple[float, float]]] = [points[at : at + size] for at in range(0, len(points), size)]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups], size
