"""The tables of a comparison: for the terminal, and as a page."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from distcxr.report.blocks import (
    DASH,
    Block,
    Cell,
    Chart,
    Charts,
    Content,
    Page,
    Part,
    Section,
    Table,
    paragraph,
    readable,
    words,
)
from distcxr.report.compare_picture import picture
from distcxr.tracking.terminal import table_text

_FLATTERED = (
    "Validation chose each run's checkpoint, and of many runs the best on validation is partly the luckiest: believe "
    "the test split."
)


def terminal_table(values: dict[str, Any]) -> str:
    """A line per run, then the stages, then the notes."""
    splits = values["splits"]
    best = values["best"]
    head = ["", *(f"{split} AUROC (95 %)" for split in splits), "less the best", "parameters", "minutes", ""]
    rows = [head]
    for number, run in enumerate(values["runs"], start=1):
        areas = [_interval_text(run["metrics"].get(split, {}).get("macro", {})) for split in splits]
        difference = _interval_text(run["difference"] or {}, form="+.4f")
        minutes = "-" if run["train_minutes"] is None else f"{run['train_minutes']:.1f}"
        note = run["not_comparable"] or ("best on validation" if run["name"] == best else "")
        note = "no figures" if run["reason"] else note
        rows.append([f"{number} {run['name']}", *areas, difference, f"{run['num_parameters']:,}", minutes, note])
    lines = [table_text(rows, width=None)]
    if staged := [run for run in values["runs"] if run["stages"]]:
        longest = max(staged, key=lambda run: len(run["stages"]))["stages"]
        lines += ["", "best validation AUROC within each stage"]
        table = [["", *(stage["name"] for stage in longest), ""]]
        for run in staged:
            cells = [_number(stage["val_auroc"]) for stage in run["stages"]]
            table.append([run["name"], *cells, *["-"] * (len(longest) - len(cells)), ""])
        lines.append(table_text(table, width=None))
    lines += ["", *(f"warning: {warning}" for warning in values["warnings"])] if values["warnings"] else []
    return "\n".join(lines)


def page_of(values: dict[str, Any]) -> Page:
    """The comparison as a page."""
    content = Content(values)
    runs = values["runs"]
    finished = [number for number, run in enumerate(runs) if run["metrics"]]
    sections = [Section("runs", "Runs", tuple(_runs(content, values, finished)))]
    if any(run["stages"] for run in runs):
        sections.append(Section("stages", "Stages", tuple(_stages(content))))
    if finished:
        sections.append(Section("findings", "Findings", tuple(_findings(content, finished))))
    without = [number for number in range(len(runs)) if number not in finished]
    if without:
        rows = tuple((words(runs[number]["name"]), words(runs[number]["reason"])) for number in without)
        sections.append(Section("without", "Without figures", (Table(("run", "why"), rows),)))
    return Page(
        title=values["title"],
        origin=f"{len(runs)} runs",
        result=_result(content),
        tiles=(),
        warnings=(*values["warnings"], *([_FLATTERED] if len(finished) > 1 else [])),
        sections=tuple(sections),
        stem="sweep",
    )


def _result(content: Content) -> tuple[Part, ...]:
    names = [run["name"] for run in content.get("runs")]
    best = content.get("best")
    if best is None:
        return (Part("No run has a macro AUROC of validation."),)
    path = ("runs", names.index(best), "metrics")
    parts = [Part(f"Best on validation: {best}, macro AUROC "), content.figure(*path, "val", "macro", "auroc")]
    if content.get(*path, "test", "macro", "auroc") is not None:
        parts += [Part("; on test "), content.figure(*path, "test", "macro", "auroc")]
        interval = content.interval(*path, "test", "macro", "auroc").parts
        parts += [Part(" ("), *interval, Part(")")] if len(interval) == 3 else []
    return (*parts, Part("."))


def _runs(content: Content, values: dict[str, Any], finished: list[int]) -> Iterator[Block]:
    runs, splits, best = content.get("runs"), content.get("splits"), content.get("best")
    if finished:
        title = "Macro AUROC with patient-level intervals, and AUROC of each finding"
        yield Charts((Chart(title, (), picture(values, alone=False)),), wide=True)
    columns = ["run", *(column for split in splits for column in (f"AUROC, {split}", "95 % interval"))]
    columns += ["test, less the best", "95 % interval", "parameters", "minutes"]
    has_notes = any(run["not_comparable"] for run in runs)
    columns += ["note"] if has_notes else []
    rows = []
    for number in finished:
        path, cells = ("runs", number), [words(f"{number + 1} {runs[number]['name']}")]
        for split in splits:
            area = (*path, "metrics", split, "macro", "auroc")
            cells += [content.number(*area), content.interval(*area)]
        difference = (*path, "difference", "auroc")
        low_high = content.interval(*difference, form="+.4f").parts
        to = (low_high[0], Part(" to "), low_high[2]) if len(low_high) == 3 else low_high  # a dash would be a minus
        cells += [content.number(*difference, form="+.4f"), Cell(to, is_number=True)]
        cells += [content.number(*path, "num_parameters", form=","), content.number(*path, "train_minutes", form=".1f")]
        note = runs[number]["not_comparable"]
        rows.append((*cells, words(note or "")) if has_notes else tuple(cells))
    strong = frozenset(position for position, number in enumerate(finished) if runs[number]["name"] == best)
    yield Table(tuple(columns), tuple(rows), strong=strong, sortable=True)
    yield paragraph(
        "In bold the best on validation. Differences from it are paired: the same patients are drawn for both runs, "
        "so their intervals are narrower than those of the runs suggest. Minutes are training alone.",
        kind="small",
    )


def _stages(content: Content) -> Iterator[Block]:
    runs = content.get("runs")
    most = max((run["stages"] for run in runs), key=len)
    rows = []
    for number, run in enumerate(runs):
        if run["stages"]:
            cells = [
                content.number("runs", number, "stages", position, "val_auroc")
                for position in range(len(run["stages"]))
            ]
            rows.append((words(run["name"]), *cells, *[Cell((Part(DASH),))] * (len(most) - len(cells))))
    yield Table(("run", *(f"{stage['stage']} {_named(stage)}".strip() for stage in most)), tuple(rows))
    yield paragraph("The highest macro AUROC of validation within each stage.", kind="small")


def _named(stage: dict[str, Any]) -> str:
    return "" if stage["name"] == str(stage["stage"]) else stage["name"]


def _findings(content: Content, finished: list[int]) -> Iterator[Block]:
    split = content.get("splits")[-1]
    runs = content.get("runs")
    rows = []
    for name in content.get("findings"):
        cells = [
            content.with_interval("runs", number, "metrics", split, "findings", name, "auroc") for number in finished
        ]
        rows.append((words(readable(name)), *cells))
    columns = ("finding", *(f"{number + 1} {runs[number]['name']}" for number in finished))
    yield paragraph(f"AUROC of each finding, {split} split.", kind="small")
    yield Table(columns, tuple(rows), sortable=True)


def _interval_text(area: dict[str, Any], form: str = ".4f") -> str:
    if area.get("auroc") is None:
        return "-"
    if area.get("auroc_low") is None:
        return format(area["auroc"], form)
    return f"{area['auroc']:{form}} ({area['auroc_low']:{form}} to {area['auroc_high']:{form}})"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
