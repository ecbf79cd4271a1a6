"""`distcxr probe`: a linear head on a network that stays as it is, fitted to convergence.

    images ──► network without head, once ──► features ──► a head for each penalty ──► validation's best ──┐
                                                                                                           │
          run folder, as a training's: checkpoint, validations.csv, metrics_val.json, report  ◄── head ◄───┘

Features are those of `embed`: of plain images, without augmentation.
"""

from __future__ import annotations

import csv
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rich.console import Console

from distcxr.engine.build import build_run
from distcxr.engine.embeddings import embed
from distcxr.engine.evaluate import Outputs, log_unreadable, score_predicted
from distcxr.engine.fit import close_epoch, finish
from distcxr.engine.head_fit import LinearHead, converged, fit_heads
from distcxr.engine.saving import begin_save
from distcxr.engine.state import Run
from distcxr.engine.validate import by_metric, take_in
from distcxr.losses import binary_logits
from distcxr.metrics.summary import area_text
from distcxr.models.heads import find_head
from distcxr.recipe import Recipe
from distcxr.recipe.selection import Sampling
from distcxr.recipe.train import Schedule, Train
from distcxr.runfolder import filenames
from distcxr.runfolder.history import append_steps
from distcxr.runfolder.layout import holds_checkpoints
from distcxr.runfolder.whole import being_written
from distcxr.runtime import Runtime
from distcxr.tracking.terminal import table_text

logger = logging.getLogger(__name__)

PENALTIES = (1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0)
"""Strengths that are tried without `--l2`."""

_CONVEX = ("bce", "cross_entropy")


@dataclass(frozen=True)
class _Chosen:
    """What rank 0 hands to the others: a head, and validation's logits with it."""

    head: LinearHead
    val: Outputs
    note: str


def as_probe(recipe: Recipe) -> Recipe:
    """The recipe of a run that fits a linear head once and does nothing else.

    Raises:
        ValueError: a loss that is not convex, another head than a linear one, adapters, or a run in `output`.
    """
    head = recipe.model.head
    if recipe.loss.name not in _CONVEX:
        raise ValueError(
            f"loss.name={recipe.loss.name}: a probe is fitted to the minimum of a convex loss: {' or '.join(_CONVEX)}"
        )
    if head.kind != "linear" or head.metadata:
        raise ValueError(
            "model.head: a probe is a linear layer on the network's features: set model.head.kind=linear "
            "model.head.metadata=[], or train other heads with train.trainable=[head]"
        )
    if recipe.data.lateral != "none":
        raise ValueError("data.lateral: a probe's network sees one image: set data.lateral=none")
    if recipe.model.lora is not None:
        raise ValueError("model.lora: a probe leaves the network as it is: set model.lora=null")
    if recipe.output is not None and holds_checkpoints(recipe.output):
        raise ValueError(f"{recipe.output} holds a run, which a probe would overwrite: give another output=FOLDER")
    kept = ("global_batch_size", "per_device_batch_size", "precision", "tf32", "channels_last", "deterministic")
    train = Train(
        epochs=1, max_steps=1, trainable=["head"], resume="never",
        **{key: getattr(recipe.train, key) for key in kept},
    )  # fmt: skip
    update = {
        "data": recipe.data.model_copy(update={"sampling": Sampling()}),
        "schedule": Schedule(name="constant"),
        "train": train,
        "eval": recipe.eval.model_copy(update={"splits": ["val"], "weights": "best"}),
    }
    return recipe.model_copy(update=update)


def probe(
    recipe: Recipe, recipe_name: str, penalties: Sequence[float], runtime: Runtime, console: Console
) -> None:  # fmt: skip
    """Fit the head of a recipe's network for every penalty, keep validation's best as a run, and score validation.

    All ranks call it; rank 0 fits, on its device. The test split is never looked at.

    Args:
        recipe: of `as_probe`.

    Raises:
        ValueError: as at a training's start, and where no training or no validation image can be read.
    """
    if recipe.model.weights == "none":
        logger.warning("model.weights=none: the features are those of an untrained network")
    run = build_run(recipe, recipe_name, runtime, console)
    try:
        _probe(run, penalties)
    finally:
        run.saver.close()
        run.setup.close()
        if run.progress:
            run.progress.close()
    logger.info(f"run folder: {run.folder}")


def _probe(run: Run, penalties: Sequence[float]) -> None:
    setup, state, started_s = run.setup, run.state, time.monotonic()
    found = {split: embed(setup, setup.splits.rows(split)) for split in ("train", "val")}
    for split, outputs in found.items():
        log_unreadable(setup, split, outputs)
    chosen = setup.runtime.decided_by_main(lambda: _sweep(run, found["train"], found["val"], penalties))
    _, layer = find_head(setup.module)
    assert layer.bias is not None, "heads are made with a bias"
    with torch.no_grad():
        layer.weight.copy_(chosen.head.weight_CD.view_as(layer.weight))
        layer.bias.copy_(chosen.head.bias_C)
    state.note(chosen.note)
    elapsed_s = time.monotonic() - started_s
    state.step, state.epoch, state.batch, state.ended = 1, 1, 0, True  # the whole fit counts as one update and epoch
    state.epoch_loss, state.epoch_train_s = chosen.head.train_loss * run.horizon.steps_per_epoch, elapsed_s
    if setup.runtime.is_main:
        speed = round(sum(len(outputs.rows) for outputs in found.values()) / elapsed_s, 1)
        append_steps(run.folder, [{"step": 1, "epoch": 0, "loss": chosen.head.train_loss, "img_per_s": speed}])
    take_in(run, score_predicted(setup, "val", chosen.val))
    close_epoch(run)
    begin_save(run, best=True, last=True)
    finish(run)


def _sweep(run: Run, train: Outputs, val: Outputs, penalties: Sequence[float]) -> _Chosen:
    """Fit every penalty, write `probe.csv`, and choose by validation's `eval.best_metric`; of equals the strongest."""
    setup, metric = run.setup, run.setup.recipe.eval.best_metric
    if not len(train.rows) or not len(val.rows):
        raise ValueError(f"of the {'val' if len(train.rows) else 'train'} split no image can be read: nothing to fit")
    device, index = setup.runtime.device, setup.index
    features = {name: torch.from_numpy(one.values_NK).to(device) for name, one in (("train", train), ("val", val))}
    targets, mask = (torch.from_numpy(part[train.rows]).to(device) for part in (index.targets_NC, index.mask_NC))
    logger.info(
        f"fitting {len(penalties)} heads of {features['train'].shape[1]:,} features to {len(train.rows):,} images"
    )
    rows: list[dict[str, Any]] = []
    best: tuple[float, LinearHead, Outputs] | None = None
    for head in fit_heads(features["train"], targets, mask, setup.loss, penalties):
        logits = binary_logits(setup.loss.spec.name, head.logits(features["val"]))
        outputs = Outputs(val.rows, logits.cpu().numpy(), val.unreadable)
        scores = score_predicted(setup, "val", outputs)
        score = by_metric(scores, metric)
        auroc = scores.report.macro_auroc
        rows.append(
            {
                "l2": head.penalty,
                "train_loss": head.train_loss,
                "val_loss": scores.loss,
                "val_auroc": auroc,
                "val_accuracy": scores.accuracy,
                "weight_norm": float(head.weight_CD.norm()),
                "iterations": head.iterations,
                "gradient": head.gradient,
                "chosen": 0,
            }
            | {f"auroc_{name}": one.auroc for name, one in scores.report.findings.items()}
        )
        logger.info(f"l2 {head.penalty:g}: validation macro AUROC {area_text(auroc)}, {head.iterations} iterations")
        if not converged(head):
            logger.warning(f"l2 {head.penalty:g}: not converged after {head.iterations} iterations")
        if best is None or (score is not None and score > best[0]):
            best = (-np.inf if score is None else score, head, outputs)
    assert best is not None, "there is a penalty"
    _, head, outputs = best
    chosen = next(row for row in rows if row["l2"] == head.penalty)
    chosen["chosen"] = 1
    rows.sort(key=lambda row: row["l2"])
    with being_written(run.folder / filenames.PROBE) as part, part.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    logger.info(f"{filenames.PROBE}\n{table_text(_table(rows), width=None)}")
    if len(rows) > 2 and chosen in (rows[0], rows[-1]):
        logger.warning(
            f"l2 {head.penalty:g} is at the end of those tried: widen them with --l2, since a better one may lie beyond"
        )
    note = (
        f"Linear probe: the head was fitted to features of the plain images, the rest of the network is as "
        f"model.weights={setup.recipe.model.weights} has it; l2 {head.penalty:g} was chosen among {len(rows)} by "
        f"validation's {metric}."
    )
    return _Chosen(head, outputs, note)


def _table(rows: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    def cell(value: float | None, form: str) -> str:
        return "undefined" if value is None else format(value, form)

    header = ("l2", "train loss", "val loss", "val macro AUROC", "iterations", "")
    shown = [
        (
            f"{row['l2']:g}", cell(row["train_loss"], ".4f"), cell(row["val_loss"], ".4f"),
            cell(row["val_auroc"], ".4f"), str(row["iterations"]), "chosen" if row["chosen"] else "",
        )
        for row in rows
    ]  # fmt: skip
    return [header, *shown]
