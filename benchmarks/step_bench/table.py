"""Rows: measured figures, their tables, and the bars that are held."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from step_bench.conduct import Measured
from step_bench.job import Case

Row = dict[str, Any]

COLUMNS = (
    "loop", "version", "img_per_s", "ms", "launches", "copies", "busy_pct", "memory_mb", "tflops", "share_of_ceiling",
    "host_outside_pct", "cpu_ms",
)  # fmt: skip
LEGEND = """\
img_per_s, ms (of a step): median window. cpu_ms: CPU time of a step, all threads; what they wait for each other counts,
other programs do not. launches, copies: started by the host in a step, on a GPU. busy_pct: of the time, by the
profiler, in which the GPU computes. memory_mb: the most, of a GPU; without one, of the process beyond its libraries.
tflops: of the network's convolutions and matrix products, 1e12 a second; share_of_ceiling: of what a large matrix
product of the same precision reached in the same minutes. host_outside_pct: the host's time outside forward, backward
and update, of a step's. Ratios: the median over rounds of one loop's step against another's of that round."""


@dataclass(frozen=True)
class Bar:
    """A ratio of speeds that ours has to reach."""

    peer: str
    least: float
    batch: int
    on_gpu: bool
    model: str = "densenet121"
    precision: str = "bf16"
    image_size: int = 224


BARS = (
    Bar("minimal", 1.0, 16, False),
    Bar("fp32", 2.0, 16, False),
    Bar("timm", 1.0, 16, False),
    Bar("lightning", 1.0, 16, False),
    Bar("timm", 1.15, 4, False),
    Bar("lightning", 1.15, 4, False),
    Bar("timm", 1.3, 128, True),
    Bar("torchvision", 1.6, 128, True),
    Bar("timm", 1.5, 32, True),
)


def to_rows(case: Case, measured: Sequence[Measured], flop_per_img: float | None, facts: Row) -> list[Row]:
    """JSON rows of a case's loops; figures are None where there are none.

    Rows of ours have `to_<loop>`, how many times the loop's speed theirs is.
    """
    ceiling = next((one for one in measured if one.loop == "ceiling" and one.ms), None)
    ceiling_tflops = ceiling.facts["flop"] / statistics.median(ceiling.ms) / 1e9 if ceiling else None
    rows = []
    for one in measured:
        if one.loop == "ceiling":
            continue
        row: Row = {
            "kind": "step", "model": case.model, "loop": one.name, "precision": case.precision, "batch": case.batch,
            "image_size": case.image_size, **dict.fromkeys(COLUMNS[1:]),
            "version": one.facts.get("version"), "steps": one.steps, "windows": len(one.ms),
            "gflop_per_img": flop_per_img and round(flop_per_img / 1e9, 3),
            "ceiling_tflops": ceiling_tflops and round(ceiling_tflops, 3),
            "note": "; ".join(filter(None, [one.note, one.failed and f"not measured: {one.failed}"])),
        }  # fmt: skip
        if one.ms and one.failed is None:
            row |= _figures(case, one, flop_per_img, ceiling_tflops)
            if one.loop == "ours":
                row |= {
                    f"to_{peer.loop}": round(ratio(one.ms, peer.ms), 3)
                    for peer in measured
                    if peer.loop not in ("ours", "ceiling") and peer.failed is None
                }
        rows.append(row | facts)
    return rows


def missing_row(case: Case, name: str, reason: str, facts: Row) -> Row:
    """The row of a loop that was not started."""
    return to_rows(case, [Measured(name, "eager", failed=reason)], None, facts)[0]


def _figures(case: Case, one: Measured, flop_per_img: float | None, ceiling_tflops: float | None) -> Row:
    ms = statistics.median(one.ms)
    tflops = flop_per_img * case.batch / ms / 1e9 if flop_per_img else None
    same_precision = one.loop != "fp32" or case.precision == "no"
    share = tflops / ceiling_tflops if tflops and ceiling_tflops and same_precision else None
    outside = None if one.outside_ms is None else round(100 * one.outside_ms / ms, 2)
    return {
        "img_per_s": float(f"{1e3 * case.batch / ms:.4g}"), "ms": round(ms, 3),
        "ms_range": [round(min(one.ms), 3), round(max(one.ms), 3)], "memory_mb": round(one.memory_mb),
        "cpu_ms": round(statistics.median(one.cpu_ms), 3),
        "launches": one.traced.get("launches"), "copies": one.traced.get("copies"),
        "busy_pct": one.traced.get("busy_pct"), "tflops": tflops and float(f"{tflops:.4g}"),
        "share_of_ceiling": share and round(share, 3), "host_outside_pct": outside, "mode": one.facts.get("mode"),
    }  # fmt: skip


def ratio(ours_ms: Sequence[float], peer_ms: Sequence[float]) -> float:
    """Median over the rounds of how many times the peer's speed ours is."""
    return statistics.median(theirs / own for own, theirs in zip(ours_ms, peer_ms, strict=True))


def markdown(rows: Sequence[Row]) -> str:
    """The loops of a case, a row each, and what ours is to them."""
    shown = [column for column in COLUMNS if column == "loop" or any(row[column] is not None for row in rows)]
    lines = ["| " + " | ".join(shown) + " |", "|" + "---|" * len(shown)]
    lines += ["| " + " | ".join(_cell(row[column]) for column in shown) + " |" for row in rows]
    notes = [f"{row['loop']}: {row['note']}" for row in rows if row["note"]]
    return "\n".join([*lines, *(["", ratios(rows)] if ratios(rows) else []), *([""] if notes else []), *notes])


def ratios(rows: Sequence[Row]) -> str:
    """A table of ours to each loop; empty where there is nothing to compare."""
    ours = [row for row in rows if any(key.startswith("to_") for key in row)]
    peers = list(dict.fromkeys(key for row in ours for key in row if key.startswith("to_")))
    if not peers:
        return ""
    lines = [
        "| speed, times that of | " + " | ".join(peer.removeprefix("to_") for peer in peers) + " |",
        "|" + "---|" * (len(peers) + 1),
    ]
    lines += [f"| {row['loop']} | " + " | ".join(f"{row[peer]:.2f}" for peer in peers) + " |" for row in ours]
    return "\n".join(lines)


def checked(rows: Sequence[Row], on_gpu: bool) -> tuple[str, bool]:
    """The bars as a table, and whether all hold; the fastest of ours counts, what was not measured does not hold."""
    lines, all_hold = ["| ours to | batch | at least | measured | |", "|---|---|---|---|---|"], True
    for bar in (bar for bar in BARS if bar.on_gpu == on_gpu):
        found = [
            row[f"to_{bar.peer}"]
            for row in rows
            if f"to_{bar.peer}" in row and all(row[key] == getattr(bar, key) for key in _OF_A_CASE)
        ]
        holds = bool(found) and max(found) >= bar.least
        all_hold = all_hold and holds
        shown = f"{max(found):.3f}" if found else "not measured"
        lines.append(f"| {bar.peer} | {bar.batch} | {bar.least:g} | {shown} | {'holds' if holds else 'MISSED'} |")
    return "\n".join(lines), all_hold


_OF_A_CASE = ("model", "precision", "batch", "image_size")


def profile_table(name: str, table: Sequence[Sequence[Any]], on_gpu: bool) -> str:
    """Where a loop's step spends its time."""
    whole = sum(ms for _, ms, _ in table) or math.nan
    lines = [f"| {name}: {'kernel' if on_gpu else 'operator'} | ms a step | share | calls |", "|---|---|---|---|"]
    lines += [f"| {_short(key)} | {ms:.2f} | {ms / whole:.1%} | {calls:g} |" for key, ms, calls in table]
    return "\n".join([*lines, f"| all | {whole:.2f} | | {sum(calls for *_, calls in table):g} |"])


def _short(name: str) -> str:
    name = name.replace("|", "/")
    return name if len(name) <= 70 else name[:67] + "..."


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
