"""The tables of a comparison: for the terminal, and as a page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from distcxr.metrics.p_values import p_text
from distcxr.report import blocks
from distcxr.report.blocks import (
    DASH,
    Block,
    Cell,
    Chart,
    Charts,
    Content,
    KeyPath,
    Page,
    Part,
    Section,
    column,
    pointer,
)
from distcxr.report.compare_picture import picture
from distcxr.report.seeds import ABOUT, missing_seeds, seed_lines
from distcxr.runfolder import filenames
from distcxr.tracking.terminal import table_text

_ENDS = ("", "_low", "_high")
_FLATTERED = (
    "Validation chose each run's checkpoint and the best run, so its own figures of both are optimistic: believe those "
    "of the test split."
)


def terminal_table(values: dict[str, Any]) -> str:
    """A line per run, then the stages, then the notes."""
    splits = values["splits"]
    best = values["best"]
    head = [
        "",
        *(f"{split} AUROC (95 %)" for split in splits),
        "less the best",
        "p",
        "Holm",
        "parameters",
        "minutes",
        "",
    ]
    rows = [head]
    for number, run in enumerate(values["runs"], start=1):
        areas = [_interval_text(run["metrics"].get(split, {}).get("macro", {})) for split in splits]
        difference = _interval_text(run["difference"] or {}, form="+.4f")
        minutes = "-" if run["train_minutes"] is None else f"{run['train_minutes']:.1f}"
        note = run["not_comparable"] or ("best on validation" if run["name"] == best else "")
        note = "no figures" if run["reason"] else note
        p_values = [_p_text(run["difference"] or {}, key) for key in ("p", "p_holm")]
        name = f"{number} {run['name']}"
        rows.append([name, *areas, difference, *p_values, f"{run['num_parameters']:,}", minutes, note])
    lines = [table_text(rows, width=None)]
    if accurate := _accurate(values["runs"]):
        lines += ["", "accuracy of the likeliest class, and on the test split less that of the best on validation"]
        table = [["", *splits, "less the best", "p", "Holm", ""]]
        for number in accurate:
            run = values["runs"][number]
            found = (run["difference"] or {}).get("accuracy") or {}
            areas = [run["metrics"].get(split, {}).get("accuracy") for split in splits]
            difference = _interval_text({f"auroc{end}": found.get(f"difference{end}") for end in _ENDS}, form="+.4f")
            p_values = [_p_text(found, key) for key in ("p", "p_holm")]
            table.append(
                [run["name"], *("-" if one is None else f"{one:.4f}" for one in areas), difference, *p_values, ""]
            )
        lines.append(table_text(table, width=None))
    if staged := [run for run in values["runs"] if run["stages"]]:
        longest = max(staged, key=lambda run: len(run["stages"]))["stages"]
        lines += ["", "best validation AUROC within each stage"]
        table = [["", *(stage["name"] for stage in longest), ""]]
        for run in staged:
            areas = [stage["val_auroc"] for stage in run["stages"]] + [None] * (len(longest) - len(run["stages"]))
            table.append([run["name"], *("-" if area is None else f"{area:.4f}" for area in areas), ""])
        lines.append(table_text(table, width=None))
    if groups := values["seeds"]:
        lines += ["", *seed_lines(groups)]
    lines += ["", *(f"warning: {warning}" for warning in values["warnings"])] if values["warnings"] else []
    return "\n".join(lines)


def page_of(values: dict[str, Any]) -> Page:
    """The comparison as a page."""
    content = Content(values)
    runs = values["runs"]
    finished = [number for number, run in enumerate(runs) if run["metrics"]]
    sections = [Section("runs", "Runs", tuple(_runs(content, values, finished)))]
    if values["seeds"]:
        sections.append(Section("seeds", "Seeds", tuple(_seeds(content))))
    if accurate := _accurate(runs):
        sections.append(Section("accuracy", "Accuracy", tuple(_accuracy(content, accurate))))
    if any(run["stages"] for run in runs):
        sections.append(Section("stages", "Stages", tuple(_stages(content))))
    if finished:
        sections.append(Section("findings", "Findings", tuple(_findings(content, finished))))
    without = [number for number in range(len(runs)) if number not in finished]
    if without:
        names, reasons = ([runs[number][key] for number in without] for key in ("name", "reason"))
        table = blocks.table(("run", column(names)), ("why", column(reasons)))
        sections.append(Section("without", "Without figures", (table,)))
    return Page(
        title=values["title"],
        origin=f"{len(runs)} runs",
        result=_result(content),
        tiles=(),
        warnings=(*values["warnings"], *([_FLATTERED] if len(finished) > 1 else [])),
        sections=tuple(sections),
        stem="sweep",
    )


def _seeds(content: Content) -> Iterator[Block]:
    groups = content.get("seeds")
    paths: list[KeyPath] = [("seeds", number) for number in range(len(groups))]
    yield blocks.paragraph(ABOUT, kind="small")
    yield blocks.table(
        ("runs", column(group["name"] for group in groups)),
        ("seeds", content.numbers(paths, "num", form=",")),
        ("split", column(group["split"] for group in groups)),
        ("mean AUROC", content.numbers(paths, "mean", form=".4f")),
        ("standard deviation", content.numbers(paths, "sd", form=".4f")),
        ("lowest", content.numbers(paths, "lowest", form=".4f")),
        ("highest", content.numbers(paths, "highest", form=".4f")),
        ("missing seeds", column(missing_seeds(group) or DASH for group in groups)),
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
    paths = [("runs", number) for number in finished]
    columns = [("run", [_link(number, runs[number]) for number in finished])]
    for split in splits:
        cells = [content.with_interval(*path, "metrics", split, "macro", "auroc", form=".4f") for path in paths]
        columns.append((f"AUROC, {split}", cells))
    yield blocks.table(
        *columns,
        ("test, less the best", [_less_the_best(content, (*path, "difference", "auroc")) for path in paths]),
        *((title, [_p_cell(content, (*path, "difference"), key) for path in paths])
          for title, key in (("p", "p"), ("p, Holm", "p_holm"))),
        ("parameters", content.numbers(paths, "num_parameters", form=",")),
        ("minutes", content.numbers(paths, "train_minutes", form=".1f")),
        *blocks.notes(runs[number]["not_comparable"] for number in finished),
        strong=[row for row, number in enumerate(finished) if runs[number]["name"] == best],
        sortable=True,
    )  # fmt: skip
    yield blocks.paragraph(
        "Figures with their 95 % interval below; in bold the best on validation. Differences from it are paired: the "
        "same patients are drawn for both runs, so their intervals are not those of the runs taken apart. p is of "
        "patient resamples, and ≤ marks the smallest that as many of them can show; Holm's is adjusted over the runs. "
        "Minutes are training alone.",
        kind="small",
    )


def _accurate(runs: Sequence[dict[str, Any]]) -> list[int]:
    """Positions of the runs that have an accuracy: those with classes that exclude each other."""
    found = [[one.get("accuracy") for one in run["metrics"].values()] for run in runs]
    return [number for number, accuracies in enumerate(found) if accuracies != [None] * len(accuracies)]


def _accuracy(content: Content, accurate: list[int]) -> Iterator[Block]:
    runs, splits = content.get("runs"), content.get("splits")
    paths: list[KeyPath] = [("runs", number) for number in accurate]
    at = [(*path, "difference", "accuracy") for path in paths]
    yield blocks.table(
        ("run", column(f"{number + 1} {runs[number]['name']}" for number in accurate)),
        *((f"accuracy, {split}", content.numbers(paths, "metrics", split, "accuracy", form=".4f")) for split in splits),
        ("test, less the best", [_less_the_best(content, (*path, "difference")) for path in at]),
        *((title, [_p_cell(content, path, key) for path in at]) for title, key in (("p", "p"), ("p, Holm", "p_holm"))),
        sortable=True,
    )  # fmt: skip
    yield blocks.paragraph(
        "The share of images for which the likeliest class is right. Compare it with the share of the most frequent "
        "class. Differences are paired as those of AUROC are.",
        kind="small",
    )


def _link(number: int, run: dict[str, Any]) -> Cell:
    """A run's number and name, to its report where it has one."""
    page = f"{run['folder']}/{filenames.REPORT}" if run["has_report"] else None
    return Cell((Part(f"{number + 1} {run['name']}", href=page),))


def _p_text(entry: dict[str, Any], key: str) -> str:
    """A p-value of a difference, marked where the resamples could not have shown a smaller one."""
    at_floor = not key.startswith("p_delong") and entry.get("p") is not None and entry["p"] == entry.get("p_floor")
    return p_text(entry.get(key), entry.get(key) if at_floor else None)


def _p_cell(content: Content, path: KeyPath, key: str) -> Cell:
    text = _p_text(content.get(*path) or {}, key)
    at = pointer((*path, key)) if text[0].isdigit() else None
    why = _why_no_p(content, path) if text == "-" else None
    return Cell((Part(DASH if text == "-" else text.replace("<=", "≤"), at),), is_number=True, note=why)


def _why_no_p(content: Content, path: KeyPath) -> str | None:
    found: str | None = content.get(*path, "p_reason") or content.get(*path, "reason")
    return found or _why_no_difference(content, path)


def _why_no_difference(content: Content, path: KeyPath) -> str | None:
    """Of a run that was not held against the best; None of one that was."""
    run = content.get(*path[:2])
    if run["difference"] is not None:
        return None
    if run["name"] == content.get("best"):
        return "the run that the others are compared with"
    return run["not_comparable"] or "its predictions of test, or those of the best on validation, are not there"


def _less_the_best(content: Content, path: KeyPath, form: str = "+.4f") -> Cell:
    """A difference with its interval."""
    return content.with_interval(*path, form=form, why=_why_no_difference(content, path))


def _stages(content: Content) -> Iterator[Block]:
    runs = content.get("runs")
    most = max((run["stages"] for run in runs), key=len)
    staged = [number for number, run in enumerate(runs) if run["stages"]]
    columns = [("run", column(runs[number]["name"] for number in staged))]
    for position, stage in enumerate(most):
        cells = [
            content.number("runs", number, "stages", position, "val_auroc")
            if position < len(runs[number]["stages"])
            else blocks.words(DASH)
            for number in staged
        ]
        named = "" if stage["name"] == str(stage["stage"]) else f" {stage['name']}"
        columns.append((f"{stage['stage']}{named}", cells))
    yield blocks.table(*columns)
    yield blocks.paragraph("The highest macro AUROC of validation within each stage.", kind="small")


def _findings(content: Content, finished: list[int]) -> Iterator[Block]:
    split, runs, names = content.get("splits")[-1], content.get("runs"), content.get("findings")
    columns = [("finding", column(map(blocks.readable, names)))]
    for number in finished:
        base = ("runs", number, "metrics", split, "findings")
        cells = [content.with_interval(*base, name, "auroc") for name in names]
        columns.append((f"run {number + 1}", cells))
    yield blocks.paragraph(f"AUROC of each finding, {split} split, with its 95 % interval.", kind="small")
    yield blocks.table(*columns, sortable=True)
    compared = [number for number in finished if (runs[number]["difference"] or {}).get("findings")]
    if not compared:
        return
    names = list(runs[compared[0]]["difference"]["findings"])
    columns = [("finding", column(map(blocks.readable, names)))]
    for number in compared:
        paths = [("runs", number, "difference", "findings", name) for name in names]
        columns += [
            (f"run {number + 1}", [_less_the_best(content, (*path, "difference"), "+.3f") for path in paths]),
            ("p, Holm", [_p_cell(content, path, "p_delong_holm") for path in paths]),
        ]
    yield blocks.paragraph("Less the best on validation, AUROC of the test split", kind="heading")
    yield blocks.paragraph(
        "p is DeLong's test by patient (Obuchowski), adjusted over all runs and findings of this table (Holm). Average "
        "precision and rates at thresholds are compared in sweep.json.",
        kind="small",
    )
    yield blocks.table(*columns, sortable=True)


def _interval_text(area: dict[str, Any], form: str = ".4f") -> str:
    if area.get("auroc") is None:
        return "-"
    if area.get("auroc_low") is None:
        return format(area["auroc"], form)
    return f"{area['auroc']:{form}} ({area['auroc_low']:{form}} to {area['auroc_high']:{form}})"
