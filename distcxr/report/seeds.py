"""Runs of a sweep that differ in their seed alone, in one line: what training adds to the uncertainty of a figure.

An interval of a run is about patients and holds the trained model fixed; the spread over seeds is about training.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

ABOUT = (
    "Mean and spread over runs that differ in their seed alone. Intervals of a run are about patients and hold its "
    "weights fixed: what training anew would change is in the spread, not in them."
)


def seed_groups(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A line for each group of two seeds or more, in the order of the runs.

    Args:
        runs: as in sweep.json. Their seeds are among the values of the sweep, or in recipes that are equal otherwise.

    Returns:
        `name` (recipe and values without the seed), `runs` (names), `split` (test, unless more runs have validation
        alone), `num` runs with a macro AUROC that compare, their `mean`, sample standard deviation `sd` (None of one),
        `lowest` and `highest`; `missing` are the seeds of the others, each with the reason.
    """
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for run in runs:
        if "seed" in run["values"]:
            groups.setdefault((run["recipe"], *_others(run)), []).append(run)
        elif run["same_but_seed"] is not None:
            groups.setdefault((run["same_but_seed"],), []).append(run)
    return [_line(members) for members in groups.values() if len(set(map(_seed, members))) > 1]


def _seed(run: dict[str, Any]) -> str:
    seed = run["values"].get("seed")
    return str(run["seed"]) if seed is None else str(seed)


def _others(run: dict[str, Any]) -> list[str]:
    return [f"{key}={value}" for key, value in run["values"].items() if key != "seed"]


def _line(members: Sequence[dict[str, Any]]) -> dict[str, Any]:
    comparable = [run for run in members if run["not_comparable"] is None]
    by_split = {
        split: {_seed(run): auroc for run in comparable if (auroc := _auroc(run, split)) is not None}
        for split in ("test", "val")
    }
    split = "test" if len(by_split["test"]) >= max(1, len(by_split["val"])) else "val"
    found = list(by_split[split].values())
    recipes = ", ".join(dict.fromkeys(run["recipe"] for run in members))
    return {
        "name": " ".join([recipes, *_others(members[0])]),
        "runs": [run["name"] for run in members],
        "split": split,
        "num": len(found),
        "mean": statistics.fmean(found) if found else None,
        "sd": statistics.stdev(found) if len(found) > 1 else None,
        "lowest": min(found, default=None),
        "highest": max(found, default=None),
        "missing": {_seed(run): _why(run, split) for run in members if _seed(run) not in by_split[split]},
    }


def _why(run: dict[str, Any], split: str) -> str:
    """A run has no part in the line."""
    macro = run["metrics"].get(split, {}).get("macro", {})
    known: str | None = run["reason"] or run["not_comparable"] or macro.get("reason")
    return known or f"it has no macro AUROC of {split}"


def missing_seeds(group: dict[str, Any]) -> str:
    """In words; empty where none is missing."""
    return "; ".join(f"{seed} ({why})" for seed, why in group["missing"].items())


def _auroc(run: dict[str, Any], split: str) -> float | None:
    area: float | None = run["metrics"].get(split, {}).get("macro", {}).get("auroc")
    return area


def seed_lines(groups: Sequence[dict[str, Any]]) -> list[str]:
    """For a terminal."""
    lines = []
    for group in groups:
        missing = f"; missing: seed {missing_seeds(group)}" if group["missing"] else ""
        if group["mean"] is None:
            lines.append(f"{group['name']}: no seed has a macro AUROC{missing}")
            continue
        spread = "" if group["sd"] is None else f", standard deviation {group['sd']:.4f}"
        lines.append(
            f"{group['name']}: {group['split']} AUROC {group['mean']:.4f} on average of {group['num']} "
            f"seed{'s' * (group['num'] != 1)}{spread}, {group['lowest']:.4f} to {group['highest']:.4f}{missing}"
        )
    return lines
