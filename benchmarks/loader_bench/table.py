"""Rows: measured figures, ratios to the baseline and to the limit, as markdown, and against another run."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loader_bench.cases import KINDS, Task
from loader_bench.measure import Measured

COLUMNS = (
    "loader", "source", "image_size", "threads", "ranks", "page_cache", "img_per_s", "core_ms", "rss_mb",
    "first_batch_s", "working_set_mb", "ratio_to_seed", "ratio_to_memcpy",
)  # fmt: skip
KEY = ("loader", "source", "image_size", "threads", "ranks", "page_cache")
"""What makes two rows of two runs the same case."""

LEGEND = """\
img_per_s: median window, all ranks together. core_ms: CPU time of an image, all processes. rss_mb: memory of all
processes for themselves, without libraries and mapped files. first_batch_s: from making the reader, libraries loaded.
ratio_to_seed, ratio_to_memcpy: img_per_s against these loaders at the same size, threads, ranks and page cache."""

Row = dict[str, Any]
_TRUSTED_RESIDENT = 0.05  # of a dropped file
_LIMITS = ("deflate", "memory")


def to_row(measured: Measured, task: Task, *, row_bytes: int, command: str, host: dict[str, Any]) -> Row:
    """One JSON row, still without ratios; figures are None where nothing could be measured."""
    case = measured.case
    files_mb = sum(Path(file).stat().st_size for file in task.files) / 1e6
    row: Row = {name: None for name in COLUMNS} | {
        "loader": case.loader, "source": case.kind.source, "image_size": case.image_size, "threads": case.threads,
        "ranks": case.ranks, "page_cache": case.page_cache,
        "working_set_mb": round(row_bytes * task.num_rows / 1e6 if case.kind.rows else files_mb, 1),
    }  # fmt: skip
    notes = []
    if measured.failed is not None:
        notes.append(f"not measured: {measured.failed}")
    else:
        speeds = measured.img_per_s()
        row["img_per_s"] = _rounded(statistics.median(speeds))
        row["core_ms"] = _rounded(measured.core_ms())
        row["rss_mb"] = round(measured.memory_mb(), 1)
        row["base_mb"] = round(measured.base_mb, 1)  # of which, before a reader was made
        row["first_batch_s"] = None if case.kind.source in _LIMITS else _rounded(measured.first_batch_s)
        row["img_per_s_range"] = [_rounded(min(speeds)), _rounded(max(speeds))]
    if measured.first_pass and case.kind.source == "cache":
        first = sum(part.images / part.seconds for part in measured.first_pass)
        row["img_per_s_first_pass"] = _rounded(first)
    if case.page_cache == "cold" and measured.failed is None:
        if measured.resident > _TRUSTED_RESIDENT:
            notes.append(f"not cold: {measured.resident:.0%} of the bytes stayed in memory")
        notes.append("a network file system or a virtual machine's host may have kept the bytes all the same")
    row |= {
        "windows": len(measured.windows), "batch_size": task.batch_size, "on_gpu": task.gpu is not None,
        "note": "; ".join(notes), "command": command,
    }  # fmt: skip
    return row | host


def first_size(rows: Sequence[Row]) -> int:
    """The image size that a run is mainly about; that of the files where nothing was resized."""
    return int(next((row for row in rows if KINDS[row["loader"]].resizes), rows[0])["image_size"])


def add_ratios(rows: list[Row]) -> None:
    """Fill `ratio_to_seed` and `ratio_to_memcpy` in, from rows of the same run.

    memcpy and the cache have no threads: both are taken at one thread per rank. What delivers images of the files'
    own size is set against the seed at the first size of the run.
    """
    for row in rows:
        cold = row["page_cache"]
        seed = find(rows, "seed", row["image_size"], row["threads"], row["ranks"], cold)
        if not KINDS[row["loader"]].resizes or row["loader"] == "memcpy":
            seed = seed or find(rows, "seed", first_size(rows), row["threads"], row["ranks"], cold)
        memcpy = find(rows, "memcpy", row["image_size"], 1, row["ranks"])
        if not KINDS[row["loader"]].resizes:
            memcpy = memcpy or find(rows, "memcpy", first_size(rows), 1, row["ranks"])
        row["ratio_to_seed"] = _ratio(row, seed)
        row["ratio_to_memcpy"] = _ratio(row, memcpy)


def find(
    rows: Sequence[Row], loader: str, image_size: int | None = None, threads: int = 1, ranks: int = 1,
    page_cache: str = "warm",
) -> Row | None:  # fmt: skip
    """The row of a case that has figures; without a size, the first."""
    for row in rows:
        same = (row["loader"], row["threads"], row["ranks"], row["page_cache"]) == (loader, threads, ranks, page_cache)
        if same and row["img_per_s"] is not None and image_size in (None, row["image_size"]):
            return row
    return None


def markdown(rows: Sequence[Row]) -> str:
    """The table, the slowest loader of a group first."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    group = ("image_size", "ranks", "page_cache", "threads")
    for row in sorted(rows, key=lambda row: (*(row[name] for name in group), row["img_per_s"] or math.inf)):
        lines.append("| " + " | ".join(_cell(row[name]) for name in COLUMNS) + " |")
    notes = {f"{row['loader']}, {row['page_cache']}: {row['note']}" for row in rows if row["note"]}
    return "\n".join(lines + (["", *sorted(notes)] if notes else []))


def against(rows: Sequence[Row], others: Sequence[Row]) -> str:
    """Speed and core time of each case as ratios to those of another run; over 1 is better now."""
    before = {tuple(row[name] for name in KEY): row for row in others}
    lines = [
        "| " + " | ".join(KEY) + " | img_per_s then | now | speed ratio | core_ms then | now | core ratio |",
        "|" + "---|" * (len(KEY) + 6),
    ]
    shared = [(row, before[key]) for row in rows if (key := tuple(row[name] for name in KEY)) in before]
    for now, then in shared:
        figures = [
            then["img_per_s"], now["img_per_s"], _divided(now["img_per_s"], then["img_per_s"]),
            then["core_ms"], now["core_ms"], _divided(then["core_ms"], now["core_ms"]),
        ]  # fmt: skip
        lines.append("| " + " | ".join(_cell(value) for value in [*(now[name] for name in KEY), *figures]) + " |")
    speeds = [r for now, then in shared if (r := _divided(now["img_per_s"], then["img_per_s"])) is not None]
    if speeds:
        lines += ["", f"median speed ratio of {len(speeds)} cases: {statistics.median(speeds):.2f}"]
    alone = [len(rows) - len(shared), len(others) - len(shared)]
    if any(alone):
        lines.append(f"{alone[0]} cases are only in this run, {alone[1]} only in the other")
    for name in ("cpu", "cores", "gpu"):
        values = [str(part[0].get(name)) if part else "nothing" for part in (others, rows)]
        if values[0] != values[1]:
            lines.append(f"not the same machine: {name} was {values[0]}, is {values[1]}")
    return "\n".join(lines)


def read_rows(file: Path) -> list[Row]:
    """Rows that `--json` wrote.

    Raises:
        ValueError: the file is not there or holds something else.
    """
    try:
        rows = json.loads(file.read_text())
    except OSError as error:
        raise ValueError(f"{file} can't be read: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}; give a file that --json wrote") from error
    if (
        not isinstance(rows, list)
        or not rows
        or not all(isinstance(row, dict) and row.keys() >= set(COLUMNS) for row in rows)
    ):
        raise ValueError(f"{file} is not a result of this benchmark; give a file that --json wrote")
    return rows


def _ratio(row: Row, base: Row | None) -> float | None:
    return None if base is None else _divided(row["img_per_s"], base["img_per_s"])


def _divided(value: float | None, by: float | None) -> float | None:
    return None if value is None or not by else _rounded(value / by)


def _rounded(value: float) -> float:
    """Four digits that count."""
    return float(f"{value:.4g}")


def _cell(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value)
