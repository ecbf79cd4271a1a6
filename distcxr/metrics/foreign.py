"""Anyone's predictions as arrays: a CSV with the image file in its first column, then a column per finding.

Nothing is guessed silently: `notes` has how the file was read, a sentence each, and what can't be known is refused.
Shape suffixes: N samples, C findings.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distcxr.metrics.scored import Floats, Scale, first_few, scores_of
from distcxr.runfolder import predictions
from distcxr.runfolder.predictions import Predictions
from distcxr.tables import Table, read_table

MIN_OUTSIDE = 0.01
"""Share of values outside [0, 1] from which scores with negative values among them pass for logits."""

_OURS = "logit:"


@dataclass(frozen=True)
class ForeignScores:
    """Scores of one file, of N images named without folders, each once; `notes` has how it was read.

    float64 as written, or float32 logits from our own file, which comes whole as `ours`.
    """

    path: Path
    files: list[str]
    findings: tuple[str, ...]
    scores_NC: Floats
    scale: Scale
    ours: Predictions | None
    notes: tuple[str, ...]


def read_foreign(path: Path, known_findings: Sequence[str] | None, scale: Scale | None = None) -> ForeignScores:
    """Read scores of those findings that have a column; `scale` None tells logits from probabilities by their range.

    Without `known_findings`, the names that the labels use, our own file alone can be read.

    All values in [0, 1]: probabilities. Some below 0, and 1 % or more outside [0, 1]: logits. Anything else is refused
    until the user gives the scale. Our own file is read as it is, by its logits.
    Raises ValueError as `read_table`, and naming the line and column of an image twice or without a name, a cell that
    is not a number, is NaN or infinite, or is not a probability where probabilities were asked for; a column with
    nearly the name of a finding; two columns of one finding.
    """
    table = read_table(path)
    if any(name.startswith(_OURS) for name in table.header):
        return _read_ours(table, known_findings, scale)
    if known_findings is None:
        raise ValueError(f"{path} holds no labels: give them with --labels, for example NIH's Data_Entry file")
    notes: list[str] = []
    column_of = _match(path, table.header, known_findings, notes)
    files = _file_names(table, notes)
    scores_NC = np.stack([table.numbers(position) for position in column_of.values()], axis=1)
    names = [table.header[position] for position in column_of.values()]
    _check_finite(path, scores_NC, names, table.lines)
    scale, note = _scale_of(path, scores_NC, scale)
    notes.append(f"{path}: scores are {note}")
    if scale == "probability":
        _check_probabilities(path, scores_NC, names, table.lines)
    return ForeignScores(path, files, tuple(column_of), scores_NC, scale, None, tuple(notes))


def align(scores: ForeignScores, wanted: Sequence[str], of: str) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Rows of the wanted images in their order, int64 `[N]`, and what is to be notes of it; `of` names the list.

    Names that differ by their extension alone are taken for the same, if no other image could be meant.
    Raises ValueError when an image is missing, with the counts and first names.
    """
    notes = []
    row_of = {name: row for row, name in enumerate(scores.files)}
    names = list(wanted)
    if not row_of.keys() & set(names):
        by_stem = {_stem(name): row for row, name in enumerate(scores.files)}
        stems = [_stem(name) for name in names]
        if by_stem.keys() & set(stems) and len(by_stem) == len(row_of) and len(set(stems)) == len(names):
            notes.append(f"{scores.path}: names are matched without their extensions ({scores.files[0]}, {names[0]})")
            row_of, names = by_stem, stems
    missing = [name for name in names if name not in row_of]
    known = set(names)
    extra = [name for name in row_of if name not in known]
    if missing:
        beside = f", and {len(extra):,} others: {first_few(extra, 3)}" if extra else ""
        raise ValueError(
            f"{scores.path} lacks {len(missing):,} of the {len(names):,} images of {of}: {first_few(missing, 3)}. It "
            f"has {len(names) - len(missing):,} of them{beside}. Predictions have to cover the whole list"
        )
    if extra:
        notes.append(f"{scores.path}: {len(extra):,} images that are not of {of} are left out: {first_few(extra, 3)}")
    return np.array([row_of[name] for name in names], dtype=np.int64), tuple(notes)


def columns_of(scores: ForeignScores, findings: Sequence[str]) -> list[int]:
    """Places of these findings among the columns. Raises ValueError naming those that the file lacks."""
    if missing := [name for name in findings if name not in scores.findings]:
        raise ValueError(f"{scores.path} has no column of {', '.join(missing)}")
    return [scores.findings.index(name) for name in findings]


def _match(path: Path, header: Sequence[str], known: Sequence[str], notes: list[str]) -> dict[str, int]:
    """The column of each finding, in the order of `known`. Whole names match; case, spaces and `_` do not count."""
    finding_of = {_plain(name): name for name in known}
    found: dict[str, int] = {}
    ignored = []
    for position, name in enumerate(header[1:], start=1):
        finding = finding_of.get(_plain(name))
        if finding is None:
            if near := get_close_matches(_plain(name), finding_of, n=1, cutoff=0.8):
                raise ValueError(
                    f"{path}: column {name!r} is not a finding of the labels, but nearly {finding_of[near[0]]!r}: "
                    "rename the column, or remove it"
                )
            ignored.append(name)
            continue
        if finding in found:
            raise ValueError(f"{path}: columns {header[found[finding]]!r} and {name!r} are both {finding}: remove one")
        if name != finding:
            notes.append(f"{path}: column {name!r} is taken as {finding!r}")
        found[finding] = position
    if not found:
        raise ValueError(
            f"{path}: no column after the first is named as a finding. Columns: {first_few(header, 20)}. Findings: "
            f"{', '.join(known)}"
        )
    if ignored:
        notes.append(f"{path}: columns that are not findings are ignored: {', '.join(map(repr, ignored))}")
    return {name: found[name] for name in known if name in found}


def _file_names(table: Table, notes: list[str]) -> list[str]:
    cells, lines = table.columns[0], table.lines.tolist()
    files = [cell.replace("\\", "/").rsplit("/", 1)[-1] for cell in cells]
    if empty := [line for line, name in zip(lines, files, strict=True) if not name]:
        raise ValueError(f"{table.path}: no image is named in {len(empty):,} lines: {first_few(empty)}")
    lines_of: dict[str, list[int]] = {}
    for line, name in zip(lines, files, strict=True):
        lines_of.setdefault(name, []).append(line)
    if repeated := [f"{name} (lines {first_few(at)})" for name, at in lines_of.items() if len(at) > 1]:
        raise ValueError(f"{table.path} names {len(repeated):,} images more than once: {first_few(repeated, 3)}")
    if any("/" in cell or "\\" in cell for cell in cells):
        notes.append(f"{table.path}: folders before the image names are ignored ({cells[0]})")
    return files


def _check_finite(path: Path, scores_NC: Floats, names: Sequence[str], lines: NDArray[np.int64]) -> None:
    columns = np.flatnonzero(~np.isfinite(scores_NC).all(axis=0))
    if not len(columns):
        return
    at = lines[~np.isfinite(scores_NC[:, columns[0]])].tolist()
    more = f"; so have {len(columns) - 1} further columns" if len(columns) > 1 else ""
    raise ValueError(
        f"{path}, column {names[columns[0]]}: {len(at):,} scores are NaN or infinite: lines {first_few(at)}{more}"
    )


def _scale_of(path: Path, scores_NC: NDArray[np.float64], asked: Scale | None) -> tuple[Scale, str]:
    """What the scores are, and why."""
    low, high = float(scores_NC.min()), float(scores_NC.max())
    outside = float(np.mean((scores_NC < 0) | (scores_NC > 1)))
    if asked is not None:
        doubt = ", though all lie in [0, 1] as probabilities do" if asked == "logit" and outside == 0 else ""
        return asked, f"{scores_of(asked)}, as asked{doubt}"
    if outside == 0:
        return "probability", "taken as probabilities, all lie in [0, 1]; if they are logits: --logits"
    if low < 0 and outside >= MIN_OUTSIDE:
        return "logit", f"taken as logits, they go from {low:g} to {high:g}"
    raise ValueError(
        f"{path}: scores go from {low:g} to {high:g}, {outside:.2%} of them outside [0, 1]: neither plainly "
        "probabilities nor plainly logits. Give --probabilities or --logits"
    )


def _check_probabilities(path: Path, scores_NC: Floats, names: Sequence[str], lines: NDArray[np.int64]) -> None:
    bad_NC = (scores_NC < 0) | (scores_NC > 1)
    if bad_NC.any():
        row, column = np.argwhere(bad_NC)[0].tolist()
        raise ValueError(
            f"{path}, line {lines[row]}, column {names[column]}: {scores_NC[row, column]:g} is not a probability, "
            f"nor are {int(bad_NC.sum()) - 1:,} others. If these are logits: --logits"
        )


def _read_ours(table: Table, known: Sequence[str] | None, scale: Scale | None) -> ForeignScores:
    path, ours = table.path, predictions.parse(table)
    if known is not None and (strangers := [name for name in ours.findings if name not in known]):
        raise ValueError(f"{path}: the labels do not know {', '.join(strangers)}; they know {', '.join(known)}")
    if repeated := [name for name, count in Counter(ours.files).items() if count > 1]:
        raise ValueError(f"{path} names {len(repeated):,} images more than once: {first_few(repeated, 3)}")
    _check_finite(path, ours.logits_NC, [f"{_OURS}{name}" for name in ours.findings], table.lines)
    whatever = ", whatever was asked" if scale == "probability" else ""
    note = f"{path}: distcxr's own file, read by its logits{whatever}"
    return ForeignScores(path, ours.files, tuple(ours.findings), ours.logits_NC, "logit", ours, (note,))


def _plain(name: str) -> str:
    return "".join(character for character in name.lower() if character not in " _-")


def _stem(name: str) -> str:
    return name.rsplit(".", 1)[0]
