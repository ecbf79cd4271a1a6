"""Runs tested on other data sets: every run on every data set, on the findings that both name.

    run: network, size, crop, normalisation, thresholds, temperatures ──┐
    recipe of a data set: root, labels, split, views ───────────────────┴─► external/<name>/ of the run ─► matrix.html

Nothing is chosen on the other data. Where patients of it were trained on, nothing is scored, and the table names them.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from distcxr.data.dataset import Dataset, open_dataset
from distcxr.data.shared_findings import with_columns
from distcxr.device import arithmetic_of
from distcxr.engine.checkpoint import open_checkpoint
from distcxr.engine.compatible import as_read
from distcxr.engine.evaluate import evaluate
from distcxr.engine.external_pairs import Pair, Tested, pair_of
from distcxr.engine.final_scores import Weights, trained_with, write_page, write_scores
from distcxr.engine.folder import describe
from distcxr.engine.inference import available_precision
from distcxr.engine.opening import build_setup, evaluation_plan
from distcxr.engine.validated import validated
from distcxr.metrics.figures_json import figure
from distcxr.recipe import Recipe
from distcxr.recipe.loss import Loss
from distcxr.report.matrix import write_matrix
from distcxr.runfolder import filenames
from distcxr.runfolder.contents import read_environment
from distcxr.runfolder.layout import is_best
from distcxr.runfolder.lock import make_writable
from distcxr.runtime import Runtime

logger = logging.getLogger(__name__)

_ITS_OWN = "run's own val"
"""What chose checkpoint and thresholds: no split of the other data, though one may be called val, too."""


def score_elsewhere(
    recipe: Recipe, paths: Sequence[Path], others: Mapping[str, Recipe], split: str, runtime: Runtime
) -> dict[str, Any]:
    """Score the checkpoints `paths` on `split` of the data sets that the recipes `others` name; all ranks call it.

    Args:
        recipe: its `output`, or the folder of the one run, gets the table; its `train.per_device_batch_size` holds for
            all runs.

    Returns:
        What `matrix.json` holds.

    Raises:
        ValueError: data that can't be read, a split without labels, a checkpoint outside a run folder, or no run and
            data set that can be scored; with the reasons.
    """
    checkpoints = [open_checkpoint(path) for path in paths]
    named = [one.path.resolve() for one in checkpoints]
    if twice := [path for path in named if named.count(path) > 1]:
        raise ValueError(f"{twice[0]} is named twice: every run is a row of the table, name it once")
    runs = [Tested(one, validated(one), name) for one, name in zip(checkpoints, _names(named), strict=True)]
    if len(runs) > 1 and recipe.output is None:
        raise ValueError("several runs have no folder in common: give one for the table, output=FOLDER")
    folder = recipe.output or runs[0].folder / filenames.EXTERNAL
    for run in runs:
        runtime.decided_by_main(lambda run=run: make_writable(run.folder))  # type: ignore[misc]
    runtime.decided_by_main(lambda: make_writable(folder))
    datasets = {name: _opened(name, other, split) for name, other in others.items()}
    for name, dataset in datasets.items():
        num = dataset.counts[split]
        logger.info(
            f"{name}: {num['num_images']:,} images of {num['num_patients']:,} patients in its {split} split (labels "
            f"{dataset.index.label_hash[:8]}…)"
        )
    pairs = runtime.decided_by_main(
        lambda: [
            (at, name, pair_of(runs[at], name, datasets[name], split)) for at in range(len(runs)) for name in datasets
        ]
    )
    refused = [f"{runs[at].name} on {name}: {pair.reason}" for at, name, pair in pairs if pair.reason]
    if len(refused) == len(pairs):
        raise ValueError("\n".join(refused) if len(refused) == 1 else "nothing can be scored:\n" + "\n".join(refused))
    for line in refused:
        logger.warning(f"not scored: {line}")
    values = _described(runs, datasets, split, folder)
    for at, name, pair in pairs:
        found = _unscored(pair)
        if pair.reason is None:
            found |= _score(runs[at], name, datasets[name], others[name], pair, split, recipe, runtime, folder)
        values["cells"].append({"run": runs[at].name, "data": name} | found)
    shown = runtime.decided_by_main(lambda: write_matrix(folder, values))
    logger.info(f"{shown}\nwritten: {folder / filenames.MATRIX}, and the same as matrix.md, matrix.csv and matrix.json")
    return values


def _names(paths: Sequence[Path]) -> list[str]:
    """What to call each checkpoint: `densenet121/TIME`, and a checkpoint that is not the best by its name, too."""
    names = []
    for path in paths:
        run = path.parent.parent
        names.append(f"{run.parent.name}/{run.name}" + ("" if is_best(path) else f"/{path.name}"))
    return [name if names.count(name) == 1 else str(path) for name, path in zip(names, paths, strict=True)]


def _opened(name: str, recipe: Recipe, split: str) -> Dataset:
    try:
        dataset = open_dataset(recipe)
    except ValueError as error:
        raise type(error)(f"{name}: {error}") from error
    rows = dataset.splits.rows(split)
    if not dataset.index.mask_NC[rows].any():
        findings = ", ".join(dataset.index.findings)
        raise ValueError(
            f"{name}: none of the {len(rows):,} images of its {split} split has a known label of {findings}: there is "
            "nothing to score. Name another split, --split val, or a label file that has them"
        )
    return dataset


def _score(
    run: Tested, name: str, dataset: Dataset, other: Recipe, pair: Pair, split: str, recipe: Recipe, runtime: Runtime,
    matrix: Path,
) -> dict[str, Any]:  # fmt: skip
    """Score a run on a data set and write its files; figures for the table on rank 0."""
    checkpoint, known = run.checkpoint, run.known
    own = _as_the_run(run, dataset, other, pair, recipe, runtime)
    aligned = replace(dataset, index=with_columns(dataset.index, checkpoint.meta["findings"], pair.shared))
    folder = runtime.decided_by_main(lambda: _free_folder(run.folder / filenames.EXTERNAL / name, dataset))
    runtime.decided_by_main(lambda: make_writable(folder))
    if runtime.is_main:
        describe(folder, own, runtime, aligned)
    on_run = runtime.with_precision(own.train.precision)  # the runs of one table may differ in it
    chosen = "thresholds and temperatures are of the run's own validation"
    chosen = chosen if known.operating else "; ".join(known.problems)
    notes = [f"Tested on other data ({name}): {chosen}.", *pair.notes]
    plan = evaluation_plan(own, on_run)
    with arithmetic_of(own), closing(build_setup(own, checkpoint, on_run, aligned, plan)) as setup:
        scores = evaluate(setup, split, own.eval.tta)
        weights = Weights(checkpoint.step, _ITS_OWN if is_best(checkpoint.path) else None)
        data = {
            "name": name, "dataset": dataset.data.dataset, "split": split, "hashes": dataset.hashes,
            "findings": pair.shared, "in_distribution": pair.is_own,
        }  # fmt: skip
        full = write_scores(
            setup, folder, split, scores, weights, known.operating, notes, chosen_on=_ITS_OWN, loss=None,
            data=data, trained_with=trained_with(checkpoint.recipe),
        )  # fmt: skip
    if full is None:
        return {}
    write_page(folder)
    areas = {known.name: full.areas.auroc[column] for column, known in enumerate(scores.scored.known)}
    return {
        **figure("auroc", full.areas.macro_auroc),
        "reason": full.areas.macro_auroc.reason if full.areas.macro_auroc.value is None else None,
        "macro_findings": list(full.report.macro_findings),
        "num_samples": full.report.num_samples,
        "num_patients": full.num_patients,
        "findings": {one: figure("auroc", areas[one]) | {"reason": areas[one].reason} for one in pair.shared},
        "folder": os.path.relpath(folder, matrix),
    }


def _as_the_run(run: Tested, dataset: Dataset, other: Recipe, pair: Pair, recipe: Recipe, runtime: Runtime) -> Recipe:
    """The run's recipe with the data of another: images are shown as its own validation's were."""
    theirs, known = run.checkpoint.recipe, run.known
    sources = {key: sha256 for key, sha256 in theirs.sources.items() if key in ("model.name", "data.reader")}
    sources |= {key: sha256 for key, sha256 in other.sources.items() if key.startswith("data.") and key not in sources}
    views = theirs.eval.tta if known.tta is None else list(known.tta)
    wanted = theirs.eval.macro_findings
    averaged = [name for name in pair.averaged if wanted is None or name in wanted] or pair.averaged
    precision = available_precision(known.precision or theirs.train.precision, runtime.device)
    size = recipe.train.per_device_batch_size or theirs.train.per_device_batch_size
    update = {
        "output": None,
        "data": as_read(dataset.data, run.checkpoint),
        "sources": sources,
        "loss": Loss(name="cross_entropy") if theirs.loss.name == "cross_entropy" else Loss(),  # for its softmax alone
        "eval": theirs.eval.model_copy(update={"tta": views, "macro_findings": averaged}),
        "train": theirs.train.model_copy(update={"precision": precision, "per_device_batch_size": size}),
    }
    return theirs.model_copy(update=update)


def _free_folder(folder: Path, dataset: Dataset) -> Path:
    """The folder, or one beside it where it holds results of other data under the same name."""
    path = folder / filenames.ENVIRONMENT
    if path.exists():
        try:
            same = read_environment(path).get("hashes") == dataset.hashes
        except ValueError:
            same = False
        if not same:
            return folder.with_name(f"{folder.name}_{dataset.hashes['test'][:8]}")
    return folder


def _unscored(pair: Pair) -> dict[str, Any]:
    return {
        "auroc": None, "auroc_low": None, "auroc_high": None, "reason": pair.reason, "in_distribution": pair.is_own,
        "notes": pair.notes, "shared": pair.shared, "macro_findings": pair.averaged, "num_samples": None,
        "num_patients": None, "findings": {}, "folder": None,
    }  # fmt: skip


def _described(runs: Sequence[Tested], datasets: Mapping[str, Dataset], split: str, matrix: Path) -> dict[str, Any]:
    """The rows and columns of the table, without its cells."""
    return {
        "split": split,
        "runs": [
            {
                "name": run.name, "trained_on": run.trained_on,
                "model": run.checkpoint.recipe.model.name, "step": run.checkpoint.step,
                "checkpoint": os.path.relpath(run.checkpoint.path, matrix),
            }
            for run in runs
        ],
        "data": [
            {"name": name, "dataset": dataset.data.dataset, "hashes": dataset.hashes, **dataset.counts[split]}
            for name, dataset in datasets.items()
        ],
        "cells": [],
    }  # fmt: skip
