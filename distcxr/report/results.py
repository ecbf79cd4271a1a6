"""Sections about how well the model ranks: findings, curves, subgroups."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from distcxr.report import blocks
from distcxr.report.blocks import (
    Block,
    Cell,
    Chart,
    Charts,
    Content,
    Fold,
    KeyPath,
    Part,
    Section,
    column,
    paragraph,
    readable,
)
from distcxr.report.charts import AREA, Dot, Line, interval_bar, panel, span_of
from distcxr.report.methods import FIXED_MODEL
from distcxr.runfolder import filenames


def findings_section(content: Content, split: str) -> Section:
    """The table of all findings, the average first."""
    base = ("metrics", split)
    names, others = list(content.get(*base, "findings")), [other for other in content.get("metrics") if other != split]
    scores = [content.get(*base, "macro"), *content.get(*base, "findings").values()]
    axis = start, end = span_of(score.get(key) for score in scores for key in AREA)
    averaged = content.get(*base, "macro", "findings") or []
    of_findings = [(*base, "findings", name) for name in names]
    paths = [(*base, "macro"), *of_findings]
    no_count = Cell((), is_number=True)
    bars = [interval_bar(content, path, axis, "" if number else "strong") for number, path in enumerate(paths)]
    table = blocks.table(
        ("finding", column([f"average of {len(averaged)}", *map(readable, names)])),
        ("positives", [no_count, *content.numbers(of_findings, "num_positive", form=",")]),
        *([("positive patients", [no_count, *content.numbers(of_findings, "num_positive_patients", form=",")])]
          if any(content.get(*path, "num_positive_patients") is not None for path in of_findings) else []),
        ("of", [no_count, *content.numbers(of_findings, "num", form=",")]),
        ("AUROC", content.numbers(paths, "auroc")),
        (interval_title(content, split), content.intervals(paths, "auroc")),
        (f"{start:g} to {end:g}", bars),
        ("average precision", content.numbers(paths, "auprc")),
        (interval_title(content, split), content.intervals(paths, "auprc")),
        *((f"AUROC, {other}", content.numbers([("metrics", other, *path[2:]) for path in paths], "auroc"))
          for other in others),
        strong=[0], sortable=True,
    )  # fmt: skip
    shown: list[Block] = [paragraph(_about_intervals(content, split), kind="small"), table]
    if content.get(*base, "intervals"):
        shown.append(paragraph(FIXED_MODEL, kind="small"))
    apart = [readable(name) for name in names if name not in averaged]
    if apart and averaged:
        shown.append(paragraph(f"Not in the average: {', '.join(apart)}.", kind="small"))
    if unreadable := content.get(*base, "unreadable"):
        bad = "; ".join(f"{entry.get('file')}: {entry.get('reason')}" for entry in unreadable[:5])
        more = f"; and {len(unreadable) - 5} more, in {filenames.metrics(split)}" if len(unreadable) > 5 else ""
        shown.append(paragraph(f"Left out, because the file can't be read: {bad}{more}.", kind="small"))
    return Section("findings", "Findings", tuple(shown))


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
        title = readable(name)
        chance, dots = Line([(0, 0), (1, 1)], "chance"), []
        if recall is not None and specificity is not None:
            dots.append(Dot(1 - specificity, recall, 3.4, "dot"))
        lines = [chance, Line(found["roc"], "curve")]
        drawn = panel(lines, dots, "1 − specificity", "recall", title=f"ROC curve of {title}")
        rocs.append(Chart(title, (Part("AUROC "), content.figure(*path, "auroc")), drawn))
        prevalence, dots = Line([(0, rate), (1, rate)], "chance"), []
        if recall is not None and precision is not None:
            dots.append(Dot(recall, precision, 3.4, "dot"))
        lines = [prevalence, Line(found["pr"], "curve")]
        drawn = panel(lines, dots, "recall", "precision", title=f"Precision-recall curve of {title}")
        precisions.append(Chart(title, (Part("average precision "), content.figure(*path, "auprc")), drawn))
    if not curves:
        return None
    has_dot = any(content.get("metrics", split, "findings", name, "operating_points", "youden") for name in curves)
    dot = " The dot is the threshold of Youden's rule." if has_dot else ""
    shown = (
        paragraph("ROC", kind="heading"),
        paragraph(f"The dotted line is chance.{dot}", kind="small"),
        Charts(tuple(rocs)),
        paragraph("Precision and recall", kind="heading"),
        paragraph("The dotted line is the share of positives: what chance would give.", kind="small"),
        Charts(tuple(precisions)),
    )
    return Section("curves", "Curves", shown)


def subgroups_section(content: Content, split: str, *, of_findings: bool = True) -> Section | None:
    """The average by group, what differs, and `of_findings` every finding by group; None without groups."""
    base = ("metrics", split)
    groups: list[dict[str, Any]] = content.get(*base, "subgroups") or []
    if not groups:
        return None
    axis = start, end = span_of(group["macro"].get(key) for group in groups for key in AREA)
    of_others = len({tuple(group["macro"].get("findings") or ()) for group in groups}) > 1
    paths = [(*base, "subgroups", number) for number in range(len(groups))]
    attributes = [readable(group["attribute"]) for group in groups]
    begins = [number == 0 or name != attributes[number - 1] for number, name in enumerate(attributes)]
    names = content.get(*base, "macro", "findings") or list(content.get(*base, "findings"))
    table = blocks.table(
        ("attribute", column(name if is_first else "" for name, is_first in zip(attributes, begins, strict=True))),
        ("group", column(group["group"] for group in groups)),
        ("images", content.numbers(paths, "num_samples", form=",")),
        ("patients", content.numbers(paths, "num_patients", form=",")),
        ("macro AUROC", content.numbers(paths, "macro", "auroc")),
        (interval_title(content, split), content.intervals(paths, "macro", "auroc")),
        (f"{start:g} to {end:g}", [interval_bar(content, (*path, "macro"), axis) for path in paths]),
        ("average of", [_averaged(content, path, names) for path in paths]),
        ("fewest positive patients", [_fewest(content, path) for path in paths]),
    )
    unlike = (
        "Some groups lack a class of some findings, so their averages are of fewer: averages of different findings do "
        "not compare."
    ) + (" AUROC of each finding by group is further down." if of_findings else "")
    shown = (
        *([paragraph(unlike, kind="small")] if of_others else []),
        table,
        *_differences(content, split),
        *(_left_out(content, split) if of_findings else ()),
        *(_every_finding(content, split, groups) if of_findings else ()),
    )
    return Section("subgroups", "Subgroups", shown)


def _averaged(content: Content, path: KeyPath, names: Sequence[str]) -> Cell:
    """How many findings a group's average is of, and which it lacks."""
    found = content.get(*path, "macro", "findings") or []
    lacking = [
        f"{readable(name)} ({content.get(*path, 'findings', name, 'reason') or 'no reason is recorded'})"
        for name in names
        if name not in found
    ]
    note = f"not in the average: {', '.join(lacking)}" if lacking else None
    return Cell((Part(f"{len(found)} of {len(names)} findings"),), is_number=True, note=note)


def _fewest(content: Content, path: KeyPath) -> Cell:
    """Of the averaged findings, the one with the fewest positive patients, and how many."""
    of = {
        name: num
        for name in content.get(*path, "macro", "findings") or []
        if (num := content.get(*path, "findings", name, "num_positive_patients")) is not None
    }
    if not of:
        return Cell((Part(blocks.DASH),), is_number=True)
    rarest = min(of, key=lambda name: of[name])
    count = content.figure(*path, "findings", rarest, "num_positive_patients", form=",")
    return Cell((count,), is_number=True, aside=(Part(readable(rarest)),))


def _differences(content: Content, split: str) -> Iterable[Block]:
    found: list[dict[str, Any]] = content.get("metrics", split, "differences") or []
    num_pairs = content.get("metrics", split, "num_pairs_compared")
    among = f"{num_pairs:,} pairs" if num_pairs is not None else "many pairs"
    test = content.get("metrics", split, "difference_test")
    if test and num_pairs == 0:
        few = test["min_patients"]
        yield paragraph(f"No groups were compared: no two have {few} positive and {few} negative patients each.")
        return
    if test:
        tested = (
            f"{len(found)} of {among} of groups differ in AUROC at an adjusted p-value below {test['alpha']:g} "
            f"({test['method']}; pairs with at least {test['min_patients']} positive and negative patients each)."
        )
        yield paragraph(tested, kind="small" if found else "plain")
        if not found:
            return
    elif not found:  # of runs scored before there was a test
        yield paragraph(f"Among {among} of groups, none has intervals that stay apart.")
        return
    else:
        yield from _untested(found, among)
    paths = [("metrics", split, "differences", number) for number in range(len(found))]
    p_values = [("adjusted p", content.numbers(paths, "p_adjusted", form=".2g"))] if test else []
    yield blocks.table(
        ("attribute", column(readable(one["attribute"]) for one in found)),
        ("finding", column(readable(one["finding"]) for one in found)),
        ("group", column(one["group_a"] for one in found)),
        ("AUROC", [content.with_interval(*path, "auroc_a") for path in paths]),
        ("other group", column(one["group_b"] for one in found)),
        ("AUROC", [content.with_interval(*path, "auroc_b") for path in paths]),
        ("difference", content.numbers(paths, "difference")),
        *p_values,
        sortable=True,
    )


def _untested(found: Sequence[dict[str, Any]], among: str) -> Iterable[Block]:
    """Words of runs scored before there was a test."""
    yield paragraph("Groups with intervals that do not overlap", kind="heading")
    yield paragraph(
        f"{len(found)} of {among}. A cautious sign of a difference, not of its cause: groups differ in how ill they "
        "are, too, and among many pairs a few come up by chance.",
        kind="small",
    )


def _left_out(content: Content, split: str) -> Iterable[Block]:
    fewest = content.get("metrics", split, "intervals", "min_patients")
    if fewest is not None:
        yield paragraph(
            f"In the tables below a figure is left out where fewer than {fewest} patients of the group decide it. "
            "Below each: its interval; images/patients/positive patients of the group with a known label.",
            kind="small",
        )


def _every_finding(content: Content, split: str, groups: Sequence[dict[str, Any]]) -> Iterable[Block]:
    names = list(content.get("metrics", split, "findings"))
    for attribute in dict.fromkeys(group["attribute"] for group in groups):
        of = [number for number, group in enumerate(groups) if group["attribute"] == attribute]
        if not any(groups[number].get("findings") for number in of):
            continue
        for key, title in _BY_GROUP.items():
            columns = [(groups[number]["group"], _by_finding(content, split, number, names, key)) for number in of]
            if key == "auroc" or any(cell.note is None for _, cells in columns for cell in cells):
                table = blocks.table(("finding", column(map(readable, names))), *columns)
                yield Fold(f"{title} of every finding by {readable(attribute)}", (table,))


_BY_GROUP = {
    "auroc": "AUROC",
    "recall": "Recall",
    "specificity": "Specificity",
    "calibration_gap": "Frequency less mean probability",
}


def _by_finding(content: Content, split: str, number: int, names: Sequence[str], key: str) -> list[Cell]:
    """A group's figures of every finding with their counts; where too few patients leave no interval, the figure is
    left out, with the reason."""
    cells = []
    for name in names:
        path = ("metrics", split, "subgroups", number, "findings", name)
        counts = [content.figure(*path, count, form=",") for count in _COUNTS]
        shown: tuple[Part, ...] = ()
        if counts[2].at:
            shown = (counts[0], Part("/"), counts[1], Part("/"), counts[2])
        cell = content.with_interval(*path, key)
        if cell.note:
            cell = replace(cell, parts=(Part(blocks.DASH),))
        elif shown:
            shown = (Part(";\n"), *shown)
        cells.append(replace(cell, aside=(*cell.aside, *shown)))
    return cells


_COUNTS = ("num", "num_patients", "num_positive_patients")


def _about_intervals(content: Content, split: str) -> str:
    found = content.get("metrics", split, "intervals")
    if not found:
        return "This run was scored without intervals."
    if method := found.get("auroc_method"):
        return (
            f"Intervals: {_percent(found)}, by patient. AUROC: {method}. Average precision: "
            f"{found.get('auprc_method')}. They hold the model fixed."
        )
    return (
        f"Intervals: {_percent(found)} of {found.get('replicates', 0):,} resamples of the "
        f"{found.get('unit', 'patient')}s (bootstrap, seed {found.get('seed', 0)}). Images of one patient stay "
        "together, or intervals would be too narrow."
    )


def interval_title(content: Content, split: str) -> str:
    """A column's title, with the level that the intervals have."""
    return f"{_percent(content.get('metrics', split, 'intervals') or {})} interval"


def _percent(intervals: dict[str, Any]) -> str:
    return f"{100 * intervals.get('level', 0.95):g} %"
