"""What a network makes of images before its head: a row of features each, for other methods to work with.

Shapes: B batch, N samples, D features, C findings.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from distcxr.data.augment import identity_parameters, input_side
from distcxr.data.dataset import Dataset
from distcxr.data.loader import Loader
from distcxr.data.order import EvalOrder
from distcxr.engine.checkpoint import Checkpoint
from distcxr.engine.state import Evaluation
from distcxr.metrics.gather import gather_by_sample_id, gather_unreadable
from distcxr.models.freeze import evaluation_mode
from distcxr.models.fusion import pooled_features
from distcxr.recipe import Recipe
from distcxr.recipe.augment import Statistics
from distcxr.recipe.loss import Loss
from distcxr.runfolder.whole import being_written

logger = logging.getLogger(__name__)

_BLOCK = 16_384
"""Rows that are gathered at once: 134 MB of 2,048 features on each rank, whatever the dataset's size."""


@dataclass(frozen=True)
class Embedded:
    """Features of a dataset's images; on rank 0 alone, the others keep none.

    Attributes:
        rows: int64 [N], index rows in ascending order, files that can't be read left out.
        features_ND: float32.
        unreadable: (index row, reason) of the files left out.
    """

    rows: NDArray[np.int64]
    features_ND: NDArray[np.float32]
    unreadable: tuple[tuple[int, str], ...]


def as_embedder(recipe: Recipe, checkpoint: Checkpoint, findings: Sequence[str]) -> tuple[Recipe, Checkpoint | None]:
    """A recipe that shows its own images to a checkpoint's network as that was shown its own, and what to load.

    Network, size, crop and normalisation are the checkpoint's. Features need no head: where the images have other
    findings than the checkpoint, its backbone is loaded alone.

    Returns:
        For `build_evaluation`: the recipe, and the checkpoint, or None where the recipe's `model.weights` name it.
    """
    theirs = checkpoint.recipe
    data = recipe.data.model_copy(update={"image_size": theirs.data.image_size})
    own = recipe.model_copy(update={"data": data, "augment": theirs.augment, "model": theirs.model, "loss": Loss()})
    if list(findings) == checkpoint.meta["findings"]:
        return own, checkpoint
    normalize = theirs.augment.normalize
    if normalize == "dataset":  # measured on their images, not on these
        normalize = Statistics(mean=checkpoint.meta["mean"][0], std=checkpoint.meta["std"][0])
    update = {
        "augment": theirs.augment.model_copy(update={"normalize": normalize}),
        "model": theirs.model.model_copy(update={"weights": str(checkpoint.path), "new_head": True}),
    }
    return own.model_copy(update=update), None


@torch.no_grad()
def embed(run: Evaluation, rows: NDArray[np.int64]) -> Embedded:
    """Pooled features of the index rows `rows`, computed as validation computes logits; all ranks call it."""
    runtime, names = run.runtime, tuple(run.recipe.model.head.metadata)
    rows = np.sort(rows)
    kept_rows: list[NDArray[np.int64]] = []
    kept: list[NDArray[np.float32]] = []
    all_unreadable: list[tuple[int, str]] = []
    with evaluation_mode(run.module):
        for start in range(0, len(rows), _BLOCK):
            block = rows[start : start + _BLOCK]
            order = EvalOrder(block, run.plan)
            loader = Loader(run.index, order, run.reader, lambda _, at: identity_parameters(len(at)), names)
            features, ids = [], []
            unreadable: list[tuple[int, str]] = []
            for batch in loader.epoch(0):
                unreadable += batch.unreadable
                on_device = batch.to(runtime.device)
                images = run.inputs(on_device, dtype=runtime.compute_dtype)
                with runtime.accelerator.autocast():
                    features_BD = pooled_features(run.module, images).float()
                bad = {row for row, _ in batch.unreadable}
                good = [place for place, row in enumerate(batch.sample_id.tolist()) if row not in bad]
                features.append(features_BD[good].cpu())
                ids.append(batch.sample_id[good])
            if not features:  # more ranks than images
                features, ids = [torch.empty(0, _width(run))], [torch.empty(0, dtype=torch.int64)]
            unreadable = gather_unreadable(unreadable)
            expected = np.setdiff1d(block, [row for row, _ in unreadable])
            gathered, _ = gather_by_sample_id(torch.cat(features), torch.cat(ids), expected)
            all_unreadable += unreadable
            if runtime.is_main:
                kept_rows.append(expected)
                kept.append(gathered.numpy())
    if not runtime.is_main or not kept:
        return Embedded(np.empty(0, dtype=np.int64), np.empty((0, 0), dtype=np.float32), tuple(all_unreadable))
    return Embedded(np.concatenate(kept_rows), np.concatenate(kept), tuple(all_unreadable))


def write_embedded(path: Path, run: Evaluation, found: Embedded, dataset: Dataset, checkpoint: Checkpoint) -> None:
    """Write an npz file, whole or not at all; `numpy.load` reads it without pickles.

    Its arrays are `features` [N, D] and beside it [N]: `sample_id` (ascending), `file_name`, `patient_id`, `split`;
    [N, C]: `targets`, `mask` (1 = label known); [C]: `findings`; `unreadable_file_name`, `unreadable_reason`; and
    `about`, JSON: checkpoint, its step, network, image size, hashes of labels, lists and splits.
    """
    index, rows = dataset.index, found.rows
    split_of = np.full(len(index), "", dtype="U5")
    for name in ("train", "val", "test"):
        split_of[dataset.splits.rows(name)] = name
    about = {
        "checkpoint": str(checkpoint.path),
        "step": checkpoint.step,
        "model": run.recipe.model.name,
        "library": run.recipe.model.library,
        "image_size": run.recipe.data.image_size,
        "hashes": dataset.hashes,
    }
    with being_written(path) as part, part.open("wb") as stream:
        np.savez(
            stream,
            features=found.features_ND,
            sample_id=rows,
            file_name=np.array(index.file_names(rows), dtype=np.str_),
            patient_id=index.patient_id[rows],
            split=split_of[rows],
            targets=index.targets_NC[rows],
            mask=index.mask_NC[rows],
            findings=np.array(index.findings, dtype=np.str_),
            unreadable_file_name=np.array(index.file_names([row for row, _ in found.unreadable]), dtype=np.str_),
            unreadable_reason=np.array([reason for _, reason in found.unreadable], dtype=np.str_),
            about=np.array(json.dumps(about)),
        )


def _width(run: Evaluation) -> int:
    """D, for a rank that has no image to learn it from."""
    side = input_side(run.recipe.data.image_size, run.recipe.augment)
    image = torch.zeros(1, run.recipe.model.in_chans, side, side, device=run.runtime.device)
    return pooled_features(run.module, image).shape[1]
