"""What a network makes of images before its head: a row of features each, for other methods to work with.

Shapes: N samples, D features, C findings.
"""

from __future__ import annotations

import json
import math
from contextlib import nullcontext
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray

from distcxr.data.dataset import Dataset
from distcxr.engine.checkpoint import Checkpoint
from distcxr.engine.compatible import as_trained
from distcxr.engine.evaluate import Outputs, compute
from distcxr.engine.setup import Setup
from distcxr.engine.step import made_up_batch
from distcxr.models.freeze import evaluation_mode
from distcxr.recipe import Recipe
from distcxr.recipe.augmentation import Statistics
from distcxr.recipe.loss import Loss
from distcxr.runfolder.whole import being_written

_BLOCK = 16_384
"""Rows that are gathered at once: 134 MB of 2,048 features on each rank, whatever the dataset's size."""

_MAP_NUMBERS = 1 << 25
"""Of feature maps, gathered at once: 134 MB."""


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


def embed(setup: Setup, rows: NDArray[np.int64]) -> Outputs:
    """Pooled features of the index rows `rows`, computed as validation computes logits; all ranks call it.

    Only rank 0 keeps them: the others return no row.
    """
    rows = np.sort(rows)
    kept: list[Outputs] = []
    unreadable: list[tuple[int, str]] = []

    def width() -> int:
        return setup.features(made_up_batch(setup)).shape[1]

    for start in range(0, len(rows), _BLOCK):
        block = compute(setup, rows[start : start + _BLOCK], setup.features, width)
        unreadable += block.unreadable
        if setup.runtime.is_main:
            kept.append(block)
    if not kept:
        return Outputs(rows[:0], np.empty((0, 0), dtype=np.float32), tuple(unreadable))
    features_ND = np.concatenate([block.values_NK for block in kept])
    return Outputs(np.concatenate([block.rows for block in kept]), features_ND, tuple(unreadable))


def write_maps(path: Path, setup: Setup, rows: NDArray[np.int64]) -> tuple[int, ...]:
    """Write the last feature map before pooling of each image of `embed`, in its order; all ranks call it.

    Rank 0 writes an array, float32 [N, K, H, W], that `numpy.load(path, mmap_mode="r")` opens: the maps of a dataset
    are larger than memory (200 KB an image of DenseNet-121 at 224 px). Returns its shape.

    Raises ValueError: a network without such a map.
    """
    rows = np.sort(rows)
    with torch.no_grad(), evaluation_mode(setup.module):
        try:
            _, positions, width = setup.maps(made_up_batch(setup)).shape
        except ValueError:
            name = setup.recipe.model.name
            raise ValueError(f"--maps: {name} has no feature map with positions: leave it out") from None
    side, size = math.isqrt(positions), positions * width
    assert side * side == positions, "maps of square images are square"
    at_once, num = max(1, _MAP_NUMBERS // size), 0
    with being_written(path) if setup.runtime.is_main else nullcontext() as part:
        with part.open("wb") if part else nullcontext() as stream:
            for start in range(0, len(rows), at_once):
                block = compute(
                    setup, rows[start : start + at_once], lambda batch: setup.maps(batch).flatten(1), lambda: size
                )
                if stream:
                    if not start:
                        _write_header(stream, (len(rows), width, side, side))
                    maps_NPK = block.values_NK.reshape(-1, positions, width)
                    stream.write(np.ascontiguousarray(maps_NPK.transpose(0, 2, 1)).data)
                num += len(block.rows)
            if stream:  # fewer where a file can't be read; numpy keeps room for any number
                stream.seek(0)
                _write_header(stream, (num, width, side, side))
    return num, width, side, side


def _write_header(stream: BinaryIO, shape: tuple[int, ...]) -> None:
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f4", "fortran_order": False, "shape": shape})


def write_embedded(path: Path, setup: Setup, found: Outputs, checkpoint: Checkpoint) -> None:
    """Write an npz file, whole or not at all; `numpy.load` reads it without pickles.

    Its arrays are `features` [N, D] and beside it [N]: `sample_id` (ascending), `file_name`, `patient_id`, `split`;
    [N, C]: `targets`, `mask` (1 = label known); [C]: `findings`; `unreadable_file_name`, `unreadable_reason`; and
    `about`, JSON: checkpoint, its step, network, image size, hashes of labels, lists and splits.
    """
    index, rows = setup.index, found.rows
    split_of = np.full(len(index), "", dtype="U5")
    for name in ("train", "val", "test"):
        split_of[setup.splits.rows(name)] = name
    about = {
        "checkpoint": str(checkpoint.path),
        "step": checkpoint.step,
        "model": setup.recipe.model.name,
        "library": setup.recipe.model.library,
        "image_size": setup.recipe.data.image_size,
        "hashes": setup.hashes,
    }
    with being_written(path) as part, part.open("wb") as stream:
        np.savez(
            stream,
            features=found.values_NK,
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
