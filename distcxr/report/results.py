"""Sections about how well the model ranks: findings, curves, subgroups."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from distcxr.report.blocks import (
    Block,
    Cell,
    Chart,
    Charts,
    Content,
    Fold,
    Part,
    Section,
    Table,
    paragraph,
    readable,
    words,
)
from distcxr.report.charts import Dot, Line, interval_bar, panel, span_of
from distcxr.runfolder import filenames

_AREA = ("auroc", "auroc_low", "auroc_high")


def findings_section(content: Content, split: str) -> Section:
    """The table of all findings, the average first."""
    base = ("metrics", split)
    names, others = list(content.get(*base, "findings")), [other for other in content.get("metrics") if other != split]
    scores = [content.get(*base, "macro"), *content.get(*base, "findings").values()]
    axis = start, end = span_of(score.get(key) for score in scores for key in _AREA)
    columns = ["finding", "positives", "of", "AUROC", "95 % interval", f"{start:g} to {end:g}", "average precision"]
    columns += ["95 % interval", *(f"AUROC, {other}" for other in others)]
    reasons = {name: content.get(*base, "findings", name, "reason") for name in names}
    has_notes = any(reasons.values()) or content.get(*base, "macro", "reason")
    columns += ["note"] if has_notes else []
    columns = [interval_title(content, split, column) for column in columns]

    def row(title: str, path: tuple[str, ...], style: str) -> tuple[Cell, ...]:
        counts = [content.number(*base, *path, key, form=",") for key in ("num_positive", "num")]
        if path == ("macro",):
            counts = [Cell((), is_number=True), Cell((), is_number=True)]
        cells = [
            words(title), *counts, content.number(*base, *path, "auroc"), content.interval(*base, *path, "auroc"),
            _bar(content, (*base, *path), axis, style),
            content.number(*base, *path, "auprc"), content.interval(*base, *path, "auprc"),
            *(content.number("metrics", other, *path, "auroc") for other in others),
        ]  # fmt: skip
        return (*cells, words(content.get(*base, *path, "reason") or "")) if has_notes else tuple(cells)

    averaged = content.get(*base, "macro", "findings") or []
    rows = [row(f"average of {len(averaged)}", ("macro",), "strong")]
    rows += [row(readable(name), ("findings", name), "") for name in names]
    blocks: list[Block] = [
        paragraph(_about_intervals(content, split), kind="small"),
        Table(tuple(columns), tuple(rows), strong=frozenset({0}), sortable=True),
    ]
    apart = [readable(name) for name in names if name not in averaged]
    if apart and averaged:
        blocks.append(paragraph(f"Not in the average: {', '.join(apart)}.", kind="small"))
    if unreadable := content.get(*base, "unreadable"):
        bad = "; ".join(f"{entry.get('file')}: {entry.get('reason')}" for entry in unreadable[:5])
        more = f"; and {len(unreadable) - 5} more, in {filenames.metrics(split)}" if len(unreadable) > 5 else ""
        blocks.append(paragraph(f"Left out, because the file can't be read: {bad}{more}.", kind="small"))
    return Section("findings", "Findings", tuple(blocks))


def curves_section(content: Content, split: str) -> Section | None:
    """ROC and precision-recall curves, a panel each; None without any."""
    curves: dict[str, Any] = content.get("curves", split) or {}
    rocs, precisions = [], []
    for name, found in curves.items():
        path = ("metrics", split, "findings", name)
        num, num_positive = content.get(*path, "num"), content.get(*path, "num_positive")
        rate = num_positive / num if num and num_positive is not None else 0.0
        youden = content.get(*path, "operating_points", "youden") or {}
        recall, precision, specificity = (youden.get(key) for key in ("recall", "precision", "specificity"))
        at_roc, at_pr = [], []
        if recall is not None and specificity is not None:
            at_roc.append(Dot(1 - specificity, recall, 3.4, "dot"))
        if recall is not None and precision is not None:
            at_pr.append(Dot(recall, precision, 3.4, "dot"))
        title = readable(name)
        chance = Line([(0, 0), (1, 1)], "chance")
        drawn = panel(
            [chance, Line(found["roc"], "curve")], at_roc, "1 − specificity", "recall", title=f"ROC curve of {title}"
        )
        rocs.append(Chart(title, (Part("AUROC "), content.figure(*path, "auroc")), drawn))
        prevalence = Line([(0, rate), (1, rate)], "chance")
        drawn = panel(
            [prevalence, Line(found["pr"], "curve")], at_pr, "recall", "precision",
            title=f"Precision-recall curve of {title}",
        )  # fmt: skip
        precisions.append(Chart(title, (Part("average precision "), content.figure(*path, "auprc")), drawn))
    if not curves:
        return None
    has_dot = any(content.get("metrics", split, "findings", name, "operating_points", "youden") for name in curves)
    dot = " The dot is the threshold of Youden's rule." if has_dot else ""
    return Section(
        "curves",
        "Curves",
        (
            paragraph("ROC", kind="heading"),
            paragraph(f"The dotted line is chance.{dot}", kind="small"),
            Charts(tuple(rocs)),
            paragraph("Precision and recall", kind="heading"),
            paragraph("The dotted line is the share of positives: what chance would give.", kind="small"),
            Charts(tuple(precisions)),
        ),
    )


def subgroups_section(content: Content, split: str) -> Section | None:
    """The average by group, what differs, and every finding by group; None without groups."""
    base = ("metrics", split)
    groups: list[dict[str, Any]] = content.get(*base, "subgroups") or []
    if not groups:
        return None
    axis = start, end = span_of(group["macro"].get(key) for group in groups for key in _AREA)
    columns = [
        "attribute",
        "group",
        "images",
        "patients",
        "macro AUROC",
        interval_title(content, split, "95 % interval"),
    ]
    columns += [f"{start:g} to {end:g}"]
    has_notes = any(group["macro"].get("reason") for group in groups)
    averaged = [tuple(group["macro"].get("findings") or ()) for group in groups]
    of_others = len(set(averaged)) > 1
    columns += ["average of"] if of_others else []
    rows = []
    for number, group in enumerate(groups):
        path = (*base, "subgroups", number)
        is_first = number == 0 or group["attribute"] != groups[number - 1]["attribute"]
        cells = [
            words(readable(group["attribute"]) if is_first else ""), words(group["group"]),
            content.number(*path, "num_samples", form=","), content.number(*path, "num_patients", form=","),
            content.number(*path, "macro", "auroc"), content.interval(*path, "macro", "auroc"),
            _bar(content, (*path, "macro"), axis),
        ]  # fmt: skip
        cells += [Cell((Part(f"{len(averaged[number])} findings"),), is_number=True)] if of_others else []
        rows.append((*cells, *((words(group["macro"].get("reason") or ""),) if has_notes else ())))
    unlike = (
        "Some groups lack a class of some findings, so their averages are of fewer: averages of different findings do "
        "not compare. AUROC of each finding by group is further down."
    )
    blocks: list[Block] = [
        *([paragraph(unlike, kind="small")] if of_others else []),
        Table((*columns, *(("note",) if has_notes else ())), tuple(rows)),
        *_differences(content, split, groups),
        *_every_finding(content, split, groups),
    ]
    return Section("subgroups", "Subgroups", tuple(blocks))


def _differences(content: Content, split: str, groups: Sequence[dict[str, Any]]) -> Iterable[Block]:
    found = content.get("metrics", split, "differences") or []
    num_pairs = content.get("metrics", split, "num_pairs_compared")
    among = f"{num_pairs:,} pairs" if num_pairs is not None else "many pairs"
    if not found:
        yield paragraph(f"Among {among} of groups, none has intervals that stay apart.")
        return
    yield paragraph("Groups with intervals that do not overlap", kind="heading")
    yield paragraph(
        f"{len(found)} of {among}. A cautious sign of a difference, not of its cause: groups differ in how ill they "
        "are, too, and among many pairs a few come up by chance.",
        kind="small",
    )
    rows = []
    for number, one in enumerate(found):
        path = ("metrics", split, "differences", number)
        cells = [words(readable(one["attribute"])), words(readable(one["finding"]))]
        for side in "ab":
            cells += [words(one[f"group_{side}"]), content.with_interval(*path, f"auroc_{side}")]
        rows.append((*cells, content.number(*path, "difference")))
    columns = ("attribute", "finding", "group", "AUROC", "other group", "AUROC", "difference")
    yield Table(columns, tuple(rows), sortable=True)


def _every_finding(content: Content, split: str, groups: Sequence[dict[str, Any]]) -> Iterable[Block]:
    names = list(content.get("metrics", split, "findings"))
    for attribute in dict.fromkeys(group["attribute"] for group in groups):
        of = [number for number, group in enumerate(groups) if group["attribute"] == attribute]
        if not any(groups[number].get("findings") for number in of):
            continue
        rows = []
        for name in names:
            cells = [words(readable(name))]
            for number in of:
                path = ("metrics", split, "subgroups", number, "findings", name)
                cells.append(content.with_interval(*path, "auroc"))
            rows.append(tuple(cells))
        columns = ("finding", *(groups[number]["group"] for number in of))
        yield Fold(f"AUROC of every finding by {readable(attribute)}", (Table(columns, tuple(rows)),))


def _about_intervals(content: Content, split: str) -> str:
    found = content.get("metrics", split, "intervals")
    if not found:
        return "This run was scored without intervals."
    return (
        f"Intervals: {_percent(found)} of {found.get('replicates', 0):,} resamples of the "
        f"{found.get('unit', 'patient')}s (bootstrap, seed {found.get('seed', 0)}). Images of one patient stay "
        "together, or intervals would be too narrow."
    )


def interval_title(content: Content, split: str, column: str = "95 % interval") -> str:
    """A column's title, with the level that the intervals have."""
    return column.replace("95 %", _percent(content.get("metrics", split, "intervals") or {}))


def _percent(intervals: dict[str, Any]) -> str:
    return f"{100 * intervals.get('level', 0.95):g} %"


def _bar(content: Content, path: tuple[str | int, ...], axis: tuple[float, float], style: str = "") -> Cell:
    value, low, high = (content.get(*path, key) for key in _AREA)
    return words("") if value is None else Cell((), svg=interval_bar(value, low, high, *axis, style))
