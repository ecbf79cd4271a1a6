"""Runs by the data sets that they were tested on: rows trained on, columns tested on, as a page and as text."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distcxr.report import blocks
from distcxr.report.blocks import DASH, Block, Cell, Content, Page, Part, Section
from distcxr.report.rendering import to_html, to_markdown
from distcxr.runfolder import filenames
from distcxr.runfolder.whole import write_whole
from distcxr.tracking.terminal import table_text

_OWN = "in-distribution: the run, or one that it began with, was trained on this data set"
_ABOUT = (
    "Macro AUROC over the findings that both have, with its patient-level 95 % interval; below, how many findings and "
    "patients it is of. Cells of one row, and of one column, may be of other findings: compare them only where these "
    "are the same. Thresholds, temperatures, image size and normalisation are each run's own."
)


def write_matrix(folder: Path, values: dict[str, Any]) -> str:
    """Write matrix.json, .csv, .md and .html into `folder`, each whole or not at all; returns the terminal's table.

    Args:
        values: `split`, `runs`, `data` and `cells`, one for each run and data set, the runs' rows one after another; a
            cell's `folder`, relative to this one, holds its report.
    """
    page = _page(values)
    written = {
        filenames.MATRIX_JSON: json.dumps(values, indent=1, allow_nan=False) + "\n",
        filenames.MATRIX_CSV: _csv(values),
        filenames.MATRIX_MARKDOWN: to_markdown(page),
        filenames.MATRIX: to_html(page),
    }
    for name, text in written.items():
        write_whole(folder / name, text)
    return _terminal(values)


def _terminal(values: dict[str, Any]) -> str:
    notes: dict[str, None] = {}
    rows = [[f"{values['split']} split: trained on", *(f"tested on\n{one['name']}" for one in values["data"])]]
    for row, run in enumerate(values["runs"]):
        texts = []
        for cell in _row(values, row):
            notes |= dict.fromkeys(_notes(cell))
            marks = "".join(f" [{list(notes).index(note) + 1}]" for note in _notes(cell))
            lines = [f"{DASH if cell['auroc'] is None else format(cell['auroc'], '.4f')}{marks}"]
            if cell["auroc_low"] is not None:
                lines.append(f"{cell['auroc_low']:.4f}-{cell['auroc_high']:.4f}")
            texts.append("\n".join([*lines, *([_of(cell)] if cell["num_patients"] else [])]))
        rows.append([f"{run['trained_on']}\n{run['name']}", *texts])
    return "\n".join([table_text(rows, width=None), *(f"[{at}] {note}" for at, note in enumerate(notes, start=1))])


def _page(values: dict[str, Any]) -> Page:
    content = Content(values)
    num = len(values["runs"]), len(values["data"])
    scored = [at for at, cell in enumerate(values["cells"]) if cell["auroc"] is not None]
    unseen = [at for at in scored if not values["cells"][at]["in_distribution"]]
    return Page(
        title="External tests",
        origin=f"{_counted(num[0], 'run')} on the {values['split']} split of {_counted(num[1], 'data set')}",
        result=(
            Part(f"{len(unseen)} of {_counted(len(values['cells']), 'pair')} of a run and data that are new to it."),
        ),
        tiles=(),
        warnings=tuple(
            f"{cell['run']} on {cell['data']}: {cell['reason']}" for cell in values["cells"] if cell["auroc"] is None
        ),
        sections=(
            Section("matrix", "Trained on, tested on", tuple(_matrix(content, values))),
            Section("findings", "Findings", tuple(_findings(content, values))),
        ),
        stem="matrix",
    )


def _matrix(content: Content, values: dict[str, Any]) -> Iterator[Block]:
    runs, width = values["runs"], len(values["data"])
    names = [Cell((Part(run["name"]),), aside=(Part(f"trained on {run['trained_on']}"),)) for run in runs]
    columns = [("run", names)]  # one column, which stays in sight where a narrow screen scrolls the others
    for at, data in enumerate(values["data"]):
        cells = [_figure(content, row * width + at) for row in range(len(runs))]
        columns.append((f"tested on {data['name']}", cells))
    yield blocks.table(*columns)
    yield blocks.paragraph(_ABOUT, kind="small")


def _figure(content: Content, at: int) -> Cell:
    """A cell's figure with all that belongs to it, linked to its own report."""
    cell = content.get("cells", at)
    note = "; ".join(_notes(cell)) or None
    if cell["auroc"] is None:
        return Cell((Part(DASH),), is_number=True, note=note)
    interval = content.interval("cells", at, "auroc", form=".4f").parts if cell["auroc_low"] is not None else ()
    below = (*interval, Part("\n" if interval else ""), Part(_of(cell), href=f"{cell['folder']}/{filenames.REPORT}"))
    return Cell((content.figure("cells", at, "auroc", form=".4f"),), is_number=True, aside=below, note=note)


def _findings(content: Content, values: dict[str, Any]) -> Iterator[Block]:
    width = len(values["data"])
    for at, data in enumerate(values["data"]):
        rows = [row for row in range(len(values["runs"])) if values["cells"][row * width + at]["findings"]]
        names = list(dict.fromkeys(name for row in rows for name in values["cells"][row * width + at]["findings"]))
        if not names:
            continue
        theirs = {name: its for row in rows for name, its in values["cells"][row * width + at]["shared"].items()}
        columns = [("finding", blocks.column(map(blocks.readable, names)))]
        if any(theirs[name] != name for name in names):
            columns.append((f"in {data['name']}", blocks.column(blocks.readable(theirs[name]) for name in names)))
        for row in rows:
            base = ("cells", row * width + at, "findings")
            found = values["cells"][row * width + at]["findings"]
            here = [
                content.with_interval(*base, name, "auroc") if name in found else blocks.words(DASH) for name in names
            ]
            columns.append((values["runs"][row]["name"], here))
        yield blocks.paragraph(f"Tested on {data['name']}", kind="heading")
        yield blocks.table(*columns, sortable=True)


def _row(values: dict[str, Any], row: int) -> list[dict[str, Any]]:
    width = len(values["data"])
    found: list[dict[str, Any]] = values["cells"][row * width : (row + 1) * width]
    return found


def _notes(cell: dict[str, Any]) -> list[str]:
    why = [cell["reason"]] if cell["auroc"] is None else []
    return [*([_OWN] if cell["in_distribution"] else []), *why, *cell["notes"]]


def _of(cell: dict[str, Any]) -> str:
    return f"{_counted(len(cell['macro_findings']), 'finding')}, {_counted(cell['num_patients'], 'patient')}"


def _counted(num: int, what: str) -> str:
    return f"{num:,} {what}" + "s" * (num != 1)


def _csv(values: dict[str, Any]) -> str:
    """A row per run and data set."""
    rows = []
    for at, cell in enumerate(values["cells"]):
        run, data = values["runs"][at // len(values["data"])], values["data"][at % len(values["data"])]
        row = {"run": run["name"], "trained_on": run["trained_on"], "model": run["model"], "step": run["step"]}
        row |= {"data": data["name"], "dataset": data["dataset"], "split": values["split"]}
        row |= {key: cell[key] for key in ("auroc", "auroc_low", "auroc_high")}
        row |= {"num_findings": len(cell["macro_findings"]), "findings": "|".join(cell["macro_findings"])}
        row |= {key: cell[key] for key in ("num_samples", "num_patients", "in_distribution", "reason")}
        rows.append(row | {"notes": " ".join(cell["notes"]), "folder": cell["folder"]})
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
