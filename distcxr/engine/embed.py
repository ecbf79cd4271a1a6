"""What a network makes of images before its head: a row of features each, for other methods to work with.

Shapes: B batch, N samples, D features, C findings.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from distcxr.data.augment import input_side
from distcxr.data.dataset import Dataset
from distcxr.engine.checkpoint import Checkpoint
from distcxr.engine.compatible import as_trained
from distcxr.engine.evaluate import compute
from distcxr.engine.setup import Setup
from distcxr.models.fusion import pooled_features
from distcxr.recipe import Recipe
from distcxr.recipe.augment import Statistics
from distcxr.recipe.loss import Loss
from distcxr.runfolder.whole import being_written

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


def as_embedder(recipe: Recipe, checkpoint: Checkpoint, dataset: Dataset) -> tuple[Recipe, Checkpoint | None]:
    """A recipe that shows its own images to a checkpoint's network as that was shown its own, and what to load.

    Network, size, crop and normalisation are the checkpoint's. Features need no head: where the images have other
    findings than the checkpoint, its backbone is loaded alone.

    Returns:
        For `build_setup`: the recipe, and the checkpoint, or None where the recipe's `model.weights` name it.
    """
    own = as_trained(recipe, checkpoint).model_copy(update={"loss": Loss()})
    if list(dataset.index.findings) == checkpoint.meta["findings"]:
        return own, checkpoint
    normalize = own.augment.normalize
    if normalize == "dataset":  # measured on their images, not on these
        normalize = Statistics(mean=checkpoint.meta["mean"][0], std=checkpoint.meta["std"][0])
    update = {
        "augment": own.augment.model_copy(update={"normalize": normalize}),
        "model": own.model.model_copy(update={"weights": str(checkpoint.path), "new_head": True}),
    }
    return own.model_copy(update=update), None


def embed(setup: Setup, rows: NDArray[np.int64]) -> Embedded:
    """Pooled features of the index rows `rows`, computed as validation computes logits; all ranks call it."""
    rows = np.sort(rows)
    kept_rows: list[NDArray[np.int64]] = []
    kept: list[NDArray[np.float32]] = []
    unreadable: list[tuple[int, str]] = []
    for start in range(0, len(rows), _BLOCK):
        block, features_ND, bad = compute(setup, rows[start : start + _BLOCK], setup.features, lambda: _width(setup))
        unreadable += bad
        if setup.runtime.is_main:
            kept_rows.append(block)
            kept.append(features_ND)
    if not kept:
        return Embedded(np.empty(0, dtype=np.int64), np.empty((0, 0), dtype=np.float32), tuple(unreadable))
    return Embedded(np.concatenate(kept_rows), np.concatenate(kept), tuple(unreadable))


def write_embedded(path: Path, setup: Setup, found: Embedded, checkpoint: Checkpoint) -> None:
    """Write an npz file, whole or not at all; `numpy.load` reads it without pickles.

    Its arrays are `features` [N, D] and beside it [N]: `sample_id` (ascending), `file_name`, `patient_id`, `split`;
    [N, C]: `targets`, `mask` (1 = label known); [C]: `findings`; `unreadable_file_name`, `unreadable_reason`; and
    `about`, JSON: checkpoint, its step, network, image size, hashes of labels, lists and splits.
    """
    dataset, rows = setup.dataset, found.rows
    index = dataset.index
    split_of = np.full(len(index), "", dtype="U5")
    for name in ("train", "val", "test"):
        split_of[dataset.splits.rows(name)] = name
    about = {
        "checkpoint": str(checkpoint.path),
        "step": checkpoint.step,
        "model": setup.recipe.model.name,
        "library": setup.recipe.model.library,
        "image_size": setup.recipe.data.image_size,
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


def _width(setup: Setup) -> int:
    """D, for a rank that has no image to learn it from."""
    side = input_side(setup.recipe.data.image_size, setup.recipe.augment)
    image = torch.zeros(1, setup.recipe.model.in_chans, side, side, device=setup.runtime.device)
    return pooled_features(setup.module, image).shape[1]
