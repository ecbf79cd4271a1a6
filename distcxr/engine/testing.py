"""`--test`: the recipe's test split scored with one checkpoint's weights, or with the mean of several."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from distcxr.data.dataset import Dataset, open_dataset
from distcxr.engine.checkpoint import Checkpoint, open_checkpoint
from distcxr.engine.compatible import (
    as_trained,
    check_testable,
    check_together,
    read_alike,
)
from distcxr.engine.evaluate import Outputs, Scores, average, log_unreadable, predict, score_predicted
from distcxr.engine.final_scores import (
    Weights,
    illustrate,
    operating_of,
    show_results,
    stored_operating,
    trained_with,
    write_operating,
    write_scores,
)  # fmt: skip
from distcxr.engine.folder import describe, folder_for
from distcxr.engine.opening import build_setup, evaluation_plan, log_start
from distcxr.engine.setup import Setup
from distcxr.engine.unseen import check_unseen, shared_patients
from distcxr.metrics.operating import Operating
from distcxr.recipe import Recipe
from distcxr.runfolder import filenames
from distcxr.runfolder.layout import is_best, run_folder_of
from distcxr.runfolder.lock import make_writable
from distcxr.runtime import Runtime

logger = logging.getLogger(__name__)


def score_test_split(recipe: Recipe, paths: Sequence[Path], runtime: Runtime) -> Scores:
    """Score the recipe's test split; the files go to `output`, or to the run folder of the one checkpoint.

    Several checkpoints are an ensemble: each sees the recipe's images through the network, size and crop that it was
    trained with, and their mean (`evaluate.average`) is scored.

    Raises:
        ValueError: a checkpoint that does not fit the recipe or the other checkpoints, or has seen test patients.
    """
    checkpoints = [open_checkpoint(path) for path in paths]
    alone = len(checkpoints) == 1
    if alone:
        check_testable(checkpoints[0], recipe)
    folder = _output(recipe, checkpoints)
    dataset = open_dataset(recipe)
    log_start(recipe, runtime, dataset)
    if not alone:
        check_together(checkpoints, recipe, list(dataset.index.findings))
    for checkpoint in checkpoints:
        check_unseen(checkpoint, dataset)
    folder = _apart(folder, checkpoints, dataset)
    runtime.decided_by_main(lambda: make_writable(folder))
    if runtime.is_main and not any(_is_run_folder(folder, one) for one in checkpoints):
        describe(folder, recipe, runtime, dataset)

    def build(checkpoint: Checkpoint) -> Setup:
        own = recipe if alone else as_trained(recipe, checkpoint)
        return build_setup(own, checkpoint, runtime, dataset, evaluation_plan(own, runtime))

    def ask(setup: Setup) -> dict[str, Outputs]:
        return {split: predict(setup, dataset.splits.rows(split), recipe.eval.tta) for split in splits}

    def ask_another(checkpoint: Checkpoint) -> dict[str, Outputs]:
        with closing(build(checkpoint)) as another:  # freed before the next: two networks at most are on the device
            return ask(another)

    chosen_on = "val" if any(is_best(checkpoint.path) for checkpoint in checkpoints) else None
    weights = Weights(checkpoints[0].step if alone else None, chosen_on)
    with closing(build(checkpoints[0])) as first:  # it makes the pictures afterwards
        operating = runtime.decided_by_main(lambda: _kept(first, checkpoints[0], weights)) if alone else None
        choose = operating is None and all([_may_choose(checkpoint, dataset) for checkpoint in checkpoints])
        splits = ["val", "test"] if choose else ["test"]
        answers = [ask(first), *map(ask_another, checkpoints[1:])]
        means = {split: average([answer[split] for answer in answers], recipe.loss.name) for split in splits}
        if choose:
            operating = operating_of(first, score_predicted(first, "val", means["val"]))
            write_operating(first, folder, operating, weights)
        log_unreadable(first, "test", means["test"])
        test = score_predicted(first, "test", means["test"])
        notes = [note for one in checkpoints for note in one.meta["state"].get("notes", [])]
        notes += _not_known(checkpoints, dataset)
        entries: dict[str, Any] = {"trained_with": trained_with(checkpoints[0].recipe)}
        if not alone:
            of = "log probabilities" if recipe.loss.name == "cross_entropy" else "logits"
            notes = [*notes, f"Ensemble: mean of the {of} of {len(checkpoints)} checkpoints."]
            entries = {"members": _members(first, checkpoints, [answer["test"] for answer in answers])}
        full = write_scores(first, folder, "test", test, weights, operating, notes, **entries)
        illustrate(first, folder, test)
        show_results(folder, {"test": full}, weights)
    logger.info(f"written: {folder / filenames.metrics('test')}, {folder / filenames.predictions('test')}")
    return test


def _output(recipe: Recipe, checkpoints: Sequence[Checkpoint]) -> Path:
    """Where the files go."""
    first = checkpoints[0]
    if len(checkpoints) > 1:
        if recipe.output is None:
            raise ValueError(
                "several checkpoints have no run folder in common: give a folder for the results, output=FOLDER"
            )
        if theirs := [str(one.path) for one in checkpoints if _is_run_folder(recipe.output, one)]:
            raise ValueError(
                f"output={recipe.output} is the run folder of {theirs[0]}, and would lose its own results: "
                "choose another for the ensemble's"
            )
        return recipe.output
    # What the run itself reported, from its best weights, stays.
    return recipe.output or folder_for(first) / ("." if is_best(first.path) else filenames.tested(first.path.name))


def _not_known(checkpoints: Sequence[Checkpoint], dataset: Dataset) -> list[str]:
    """What `check_unseen` could not check, for the readers of the report."""
    others = [one.path for one in checkpoints if shared_patients(one, dataset, ("train",), "test") is None]
    return [
        f"{path} was trained with another label file: whether it saw patients of this split is not known, and the "
        "figures may be flattered."
        for path in others
    ]


def _apart(folder: Path, checkpoints: Sequence[Checkpoint], dataset: Dataset) -> Path:
    """A folder of its own within a run's, where the run had other labels or splits: its hashes are not the result's."""
    for one in checkpoints:
        differ = not read_alike(one.recipe.data, dataset.data) or any(
            one.meta["hashes"].get(name) != dataset.hashes[name] for name in ("labels", "train", "val", "test")
        )
        if differ and _is_run_folder(folder, one):
            return folder / filenames.tested(one.path.name, dataset.hashes["test"][:8])
    return folder


def _is_run_folder(folder: Path, checkpoint: Checkpoint) -> bool:
    return run_folder_of(checkpoint.path.resolve()) == folder.resolve()


def _kept(setup: Setup, checkpoint: Checkpoint, weights: Weights) -> Operating | None:
    """Thresholds that the checkpoint's run chose with the same weights and labels."""
    folder = run_folder_of(checkpoint.path)
    if folder is None or not read_alike(checkpoint.recipe.data, setup.recipe.data):
        return None
    return stored_operating(setup, folder, weights)


def _may_choose(checkpoint: Checkpoint, dataset: Dataset) -> bool:
    """Whether thresholds may be chosen on the validation split: not on patients that the weights were trained on."""
    seen = shared_patients(checkpoint, dataset, ("train",), "val")
    if seen is None:
        return True  # not known; `check_unseen` warns of it
    if len(seen):
        logger.warning(f"{checkpoint.path} was trained on {len(seen):,} patients of this val split: no thresholds")
    return not len(seen)


def _members(setup: Setup, checkpoints: Sequence[Checkpoint], tests: list[Outputs]) -> list[dict[str, Any]]:
    """What each network of an ensemble scores alone, for the JSON; logged, too."""
    found: list[dict[str, Any]] = []
    for checkpoint, test in zip(checkpoints, tests, strict=True):
        model = checkpoint.recipe.model.name
        auroc = score_predicted(setup, "test", test).report.macro_auroc
        shown = "undefined" if auroc is None else f"{auroc:.4f}"
        logger.info(f"{checkpoint.path} alone ({model}, step {checkpoint.step}): macro AUROC {shown}")
        named = {"checkpoint": str(checkpoint.path), "model": model, "step": checkpoint.step, "auroc": auroc}
        found.append(named | {"trained_with": trained_with(checkpoint.recipe)})
    return found
