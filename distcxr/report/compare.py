"""The results of several runs side by side: one table, one picture, and what of it may not be compared.

`write_comparison` makes sweep.json, .csv, .md, .html and .svg of the run folders alone.

Shape suffixes: N samples, C findings.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distcxr.metrics.operating import Operating
from distcxr.metrics.p_values import holm
from distcxr.report.compare_picture import picture
from distcxr.report.compare_tables import page_of, terminal_table
from distcxr.report.paired_runs import paired_accuracies, paired_areas
from distcxr.report.rendering import to_html, to_markdown
from distcxr.report.seeds import seed_groups
from distcxr.runfolder import filenames
from distcxr.runfolder.contents import RunFiles, read_operating, read_run
from distcxr.runfolder.predictions import read_predictions
from distcxr.runfolder.whole import write_whole

SHOWN_SPLITS = ("val", "test")


@dataclass(frozen=True)
class Entry:
    """A run to compare.

    Attributes:
        recipe, values: its recipe's name and the values that tell it from others of that recipe, as written.
        reason: why it has no results; None if it has.
        seed, same_but_seed: of its recipe, and a hash of the rest of it; None where they are not known.
    """

    name: str
    recipe: str
    values: dict[str, str]
    folder: Path
    num_parameters: int
    reason: str | None = None
    seed: int | None = None
    same_but_seed: str | None = None


def write_comparison(folder: Path, entries: Sequence[Entry]) -> str:
    """Write sweep.json, .csv, .md, .html and .svg into `folder`, each whole or not at all.

    Returns the table for the terminal.
    """
    values = compare(folder, entries)
    values["title"] = folder.resolve().name
    page = page_of(values)
    written = {
        filenames.SWEEP_JSON: json.dumps(values, indent=1, allow_nan=False) + "\n",
        filenames.SWEEP_CSV: _csv(values),
        filenames.SWEEP_PICTURE: picture(values, alone=True) + "\n",
        filenames.SWEEP_MARKDOWN: to_markdown(page),
        filenames.SWEEP: to_html(page),
    }
    for name, text in written.items():
        write_whole(folder / name, text)
    return terminal_table(values)


def compare(folder: Path, entries: Sequence[Entry]) -> dict[str, Any]:
    """All figures of the comparison in plain values: what sweep.json holds, paths relative to `folder`.

    Runs with other labels, other images of a split or another average than most runs have are marked
    `not_comparable`, with what differs. The others are held against the run that validation finds best, on the same
    draws of the patients: `difference` is theirs less its test AUROC, with Holm's p-values over the runs, and in
    `difference.findings` over runs and findings.
    """
    runs: list[dict[str, Any]] = []
    for entry in entries:
        run: dict[str, Any] = {
            **asdict(entry), "folder": os.path.relpath(entry.folder, folder), "metrics": {}, "stages": [],
            "model": None, "image_size": None, "train_minutes": None, "hashes": {}, "not_comparable": None,
            "difference": None, "has_report": (entry.folder / filenames.REPORT).exists(),
        }  # fmt: skip
        if entry.reason is None:
            try:
                run |= _read(read_run(entry.folder))
            except ValueError as error:
                run["reason"] = str(error)
        runs.append(run)
    found = [run for run in runs if run["metrics"]]
    warnings = []
    usual = max(found, key=lambda run: sum(not _what_differs(run, other) for other in found), default=None)
    for run in found:
        if usual and (differ := _what_differs(usual, run)):
            run["not_comparable"] = ", ".join(differ)
            warnings.append(
                f"{run['name']} can't be compared with {usual['name']}: {run['not_comparable']}. A difference of their "
                "figures tells nothing about the models."
            )
    best = _best(found)
    if best is not None:
        _add_differences(folder, best, [run for run in found if run is not best and run["not_comparable"] is None])
    names = dict.fromkeys(name for run in found for split in run["metrics"].values() for name in split["findings"])
    return {
        "runs": runs,
        "splits": [split for split in SHOWN_SPLITS if any(split in run["metrics"] for run in found)],
        "findings": list(names),
        "best": best and best["name"],
        "seeds": seed_groups(runs),
        "warnings": warnings,
    }


def _read(files: RunFiles) -> dict[str, Any]:
    """What a run folder holds."""
    recipe, history = files.recipe, files.history
    model, data = recipe.get("model") or {}, recipe.get("data") or {}
    if not files.metrics:
        raise ValueError("no split was scored")
    seconds = [value for value in history.get("train_s", []) if value is not None]
    return {
        "model": model.get("name"),
        "image_size": data.get("image_size"),
        "train_minutes": sum(seconds) / 60 if seconds else None,
        "hashes": files.environment.get("hashes") or {},
        "stages": _stages(recipe, history),
        "metrics": {
            split: {
                "num_samples": content["num_samples"],
                "step": content.get("step"),
                "accuracy": content.get("accuracy"),
                "intervals": content.get("intervals"),
                "macro": _area(content["macro"]) | {"findings": content["macro"].get("findings", [])},
                "findings": {name: _area(scores) for name, scores in content["findings"].items()},
            }
            for split, content in files.metrics.items()
            if split in SHOWN_SPLITS
        },
    }


def _area(scores: dict[str, Any]) -> dict[str, Any]:
    return {key: scores.get(key) for key in ("auroc", "auroc_low", "auroc_high", "reason")}


def _stages(recipe: dict[str, Any], history: dict[str, list[float | None]]) -> list[dict[str, Any]]:
    """The highest validation AUROC within each stage, for runs that have stages."""
    listed = (recipe.get("train") or {}).get("stages") or []
    best: dict[int, float] = {}
    for stage, auroc in zip(history.get("stage", []), history.get("val_auroc", []), strict=False):
        if stage is not None and auroc is not None:
            best[int(stage)] = max(auroc, best.get(int(stage), auroc))
    return [
        {"stage": number, "name": stage.get("name") or str(number), "val_auroc": best.get(number)}
        for number, stage in enumerate(listed, start=1)
    ]


def _what_differs(usual: dict[str, Any], run: dict[str, Any]) -> list[str]:
    """What makes the figures of two runs answers to different questions."""
    differ = []
    if usual["hashes"].get("labels") != run["hashes"].get("labels"):
        differ.append("other labels")
    for split in SHOWN_SPLITS:
        ours, theirs = usual["metrics"].get(split), run["metrics"].get(split)
        if (ours is None) != (theirs is None):
            differ.append(f"only one of them has {split} figures")
        if ours is None or theirs is None:
            continue
        if usual["hashes"].get(split) != run["hashes"].get(split) or ours["num_samples"] != theirs["num_samples"]:
            differ.append(f"other {split} images")
        if set(ours["macro"]["findings"]) != set(theirs["macro"]["findings"]):
            differ.append("the average is of other findings")
    return list(dict.fromkeys(differ))


def _best(found: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The run that validation finds best among those that can be compared; chosen on test it would flatter."""
    scored = [
        (run["metrics"]["val"]["macro"]["auroc"], run)
        for run in found
        if run["not_comparable"] is None and run["metrics"].get("val", {}).get("macro", {}).get("auroc") is not None
    ]
    return max(scored, key=lambda pair: pair[0])[1] if scored else None


def _add_differences(folder: Path, best: dict[str, Any], others: Sequence[dict[str, Any]]) -> None:
    """`difference` of each of the others: test AUROC less the best run's, both on the same draws of the patients."""
    test = best["metrics"].get("test")
    if test is None or not others:
        return
    intervals = test["intervals"] or {}
    try:
        ours = read_predictions(folder / best["folder"] / filenames.predictions("test"))
    except (OSError, ValueError):
        return
    row_of = {file: row for row, file in enumerate(ours.files)}
    for run in others:
        try:
            theirs = read_predictions(folder / run["folder"] / filenames.predictions("test"))
        except (OSError, ValueError):
            continue
        both = [(row_of[file], row) for row, file in enumerate(theirs.files) if file in row_of]
        if not both:
            continue
        chosen = [_operating(folder / each["folder"]) for each in (run, best)]
        run["difference"] = paired_areas(theirs, ours, np.array(both), test["macro"]["findings"], intervals, chosen)
        if test["accuracy"] is not None and run["metrics"]["test"]["accuracy"] is not None:
            run["difference"]["accuracy"] = paired_accuracies(theirs, ours, np.array(both), intervals)
    found = [run["difference"] for run in others if run["difference"]]
    _adjust(found, "p")
    _adjust([one["accuracy"] for one in found if one.get("accuracy")], "p")
    _adjust([entry for one in found for entry in one["findings"].values()], "p_delong")


def _adjust(entries: Sequence[dict[str, Any]], key: str) -> None:
    for entry, adjusted in zip(entries, holm([entry[key] for entry in entries]), strict=True):
        entry[f"{key}_holm"] = adjusted


def _operating(folder: Path) -> Operating | None:
    """What validation chose for a run; None without it, or where it can't be read."""
    try:
        content = read_operating(folder)
        return None if content is None else Operating.from_json(content["operating"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _csv(values: dict[str, Any]) -> str:
    """A row per run, a column per figure; empty where there is none."""
    swept = dict.fromkeys(key for run in values["runs"] for key in run["values"])
    stages = max((len(run["stages"]) for run in values["runs"]), default=0)
    of_seeds = {name: group for group in values["seeds"] for name in group["runs"]}
    rows = []
    for run in values["runs"]:
        row: dict[str, Any] = {"run": run["name"], "recipe": run["recipe"]}
        row |= {key: run["values"].get(key) for key in swept}
        row |= {key: run[key] for key in ("model", "image_size", "num_parameters", "train_minutes")}
        for split in values["splits"]:
            content = run["metrics"].get(split, {})
            row |= {f"{split}_{key}": content.get("macro", {}).get(key) for key in ("auroc", "auroc_low", "auroc_high")}
        difference = run["difference"] or {}
        row |= {f"difference{key}": difference.get(f"auroc{key}") for key in ("", "_low", "_high")}
        row |= {"difference_p": difference.get("p"), "difference_p_holm": difference.get("p_holm")}
        row |= {f"{split}_accuracy": run["metrics"].get(split, {}).get("accuracy") for split in values["splits"]}
        right = difference.get("accuracy") or {}
        row |= {f"accuracy_{key}": right.get(key) for key in ("difference", "difference_low", "difference_high", "p")}
        if of_seeds:
            group = of_seeds.get(run["name"], {})
            row |= {f"seeds_{key}": group.get(key) for key in ("split", "num", "mean", "sd", "lowest", "highest")}
        for number in range(stages):
            stage = run["stages"][number] if number < len(run["stages"]) else {}
            row[f"stage_{number + 1}_val_auroc"] = stage.get("val_auroc")
        for split in values["splits"]:
            findings = run["metrics"].get(split, {}).get("findings", {})
            row |= {f"{split}_auroc:{name}": findings.get(name, {}).get("auroc") for name in values["findings"]}
        row |= {"not_comparable": run["not_comparable"], "reason": run["reason"], "folder": run["folder"]}
        rows.append(row)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
