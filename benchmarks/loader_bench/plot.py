"""The picture of a run: what one core and all threads of a rank give, per loader."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from loader_bench.cases import KINDS
from loader_bench.table import Row

_COLOURS = {"png": "#4878a8", "pack": "#7a5fa8", "cache": "#2f8f5b", "deflate": "#9a9a9a", "memory": "#9a9a9a"}
_SEED = "#c26a4a"


def draw(rows: Sequence[Row], file: Path, *, image_size: int, need: float | None) -> None:
    """Write a PNG: a bar per loader at one thread and one rank, a mark where more threads were measured."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    def here(row: Row) -> bool:
        size = image_size if KINDS[row["loader"]].resizes else row["image_size"]
        warm = (row["ranks"], row["page_cache"], row["image_size"]) == (1, "warm", size)
        return warm and row["img_per_s"] is not None

    ones = sorted((row for row in rows if here(row) and row["threads"] == 1), key=lambda row: row["img_per_s"])
    if not ones:
        raise ValueError("nothing to draw: no case with one thread and one rank was measured")
    figure = Figure(figsize=(8, 0.8 + 0.32 * len(ones)), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for place, row in enumerate(ones):
        colour = _SEED if row["loader"] == "seed" else _COLOURS[row["source"]]
        axes.barh(place, row["img_per_s"], color=colour, height=0.7)
        more = [r for r in rows if here(r) and r["loader"] == row["loader"] and r["threads"] > 1]
        best = max(more, key=lambda r: r["img_per_s"], default=None)
        label = f" {row['img_per_s']:,.0f}"
        if best is not None:
            axes.plot(best["img_per_s"], place, marker="D", color=colour, markeredgecolor="black", markersize=5)
            label += f" → {best['img_per_s']:,.0f} with {best['threads']} threads"
        axes.text(max(row["img_per_s"], best["img_per_s"] if best else 0) * 1.08, place, label, va="center", fontsize=9)
    axes.set_yticks(range(len(ones)), [_name(row) for row in ones], fontsize=9)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    top = max(row["img_per_s"] for row in rows if here(row))
    axes.set_xlim(min(row["img_per_s"] for row in ones) / 2, top * 12)  # space for the figures beside the bars
    axes.set_xlabel("images per second, one thread or worker (bar) and more (mark)")
    if need is not None:
        axes.axvline(need, color="black", linestyle="--", linewidth=1)
        axes.text(need, -0.9, f" one GPU needs {need:,.0f}", fontsize=8, va="top")
    axes.set_title(f"From PNG to {image_size} px on {ones[0].get('cpu', 'an unknown CPU')}", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(y=0.02)
    figure.savefig(file, format="png")


def _name(row: Row) -> str:
    size = "" if KINDS[row["loader"]].resizes else f" ({row['image_size']} px)"
    limit = "limit: " if row["source"] in ("deflate", "memory") else ""
    return f"{limit}{row['loader']}{size}"
