"""Checkpoints: how they are checked, found and loaded. Written: `saving.py`; their files: `runfolder/layout.py`.

`model.safetensors` holds what is evaluated, so whoever tests, explains or exports need not know of averages. With
`train.ema` that is the average, and `trained.safetensors` holds the weights that training resumes with.

Nothing is ever unpickled: `training.pt` loads with `weights_only=True`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from distcxr.engine.state import Run, TrainState
from distcxr.models.adapters import has_adapters, merged
from distcxr.models.foundation import FOUNDATIONS
from distcxr.optim import load_optimizer
from distcxr.own_parts import PartError, check_recorded
from distcxr.recipe import Recipe
from distcxr.recipe.model import Lora
from distcxr.runfolder.layout import BEST, best_folder, copy_checkpoint, find_checkpoint, last_folders, others_of_step
from distcxr.runfolder.manifest import META, MODEL, READABLE_VERSIONS, TRAINED, TRAINING, damaged_files, read_meta

logger = logging.getLogger(__name__)


class CheckpointError(ValueError):
    """A checkpoint that is not whole or does not go with the recipe; the message names it and what to do."""


class OtherFormat(CheckpointError):
    """A checkpoint of a format that this version does not read: not damaged, so nothing is to be put in its place."""


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint on disk and the content of its `checkpoint.json`."""

    path: Path
    meta: dict[str, Any]

    @property
    def step(self) -> int:
        """Optimiser updates done."""
        return int(self.meta["state"]["step"])

    @property
    def recipe(self) -> Recipe:
        """What it was trained with; keys that it is older than have their defaults."""
        return Recipe.model_validate(self.meta["recipe"])


def open_checkpoint(path: Path) -> Checkpoint:
    """Check that a checkpoint is whole, to the last bit.

    Args:
        path: a checkpoint folder, or a run folder for its `best`.

    Raises:
        CheckpointError: naming the file that is missing, damaged or of another format.
    """
    path = find_checkpoint(path)
    try:
        meta = read_meta(path)
        version = meta["format_version"]
        if version not in READABLE_VERSIONS:
            raise OtherFormat(
                f"{path} has format {version}; this distcxr reads formats {' and '.join(map(str, READABLE_VERSIONS))}. "
                f"Its weights alone can be used: model.weights={path / MODEL}"
            )
        damaged = damaged_files(path, meta)
        TrainState(**meta["state"])
        Checkpoint(path, meta).step  # noqa: B018  # that it is a number
        recipe = Recipe.model_validate(meta["recipe"])
        check_recorded(recipe.own_functions(), recipe.sources, str(path / META))
        meta["mean"], meta["std"], meta["hashes"]["labels"]
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path} is not a checkpoint: it has no {Path(error.filename).name}. Give a folder such as "
            "runs/<recipe>/<time>/checkpoints/best, or the run folder itself"
        ) from None
    except (CheckpointError, PartError):
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path / META} is damaged: {error}; use another checkpoint") from None
    if damaged:
        raise CheckpointError(f"{damaged[0]}; use another checkpoint")
    return Checkpoint(path, meta)


def begun_from(weights: str) -> Checkpoint | None:
    """The checkpoint that `model.weights` names by its folder, its run's or its file of weights; None for other files.

    Raises:
        CheckpointError: a folder that is no whole checkpoint.
    """
    path = Path(weights).expanduser()
    if weights in ("imagenet", "none", *FOUNDATIONS):
        return None
    if path.is_dir():
        return open_checkpoint(path)
    if path.name not in (MODEL, TRAINED) or not (path.parent / META).is_file():
        return None
    try:
        return open_checkpoint(path.parent)
    except CheckpointError as error:  # its weights alone can be used
        logger.warning(f"whether {path} saw patients of this test split is not known: {error}")
        return None


def newest_checkpoint(run_folder: Path) -> Checkpoint | None:
    """The newest whole `last-*` checkpoint of a run; those that are not whole are named and passed over.

    Raises:
        OtherFormat: it was written by a later version.
    """
    for path in last_folders(run_folder):
        try:
            return open_checkpoint(path)
        except OtherFormat:
            raise
        except CheckpointError as error:
            logger.warning(f"passed over a checkpoint: {error}")
    return None


@dataclass(frozen=True)
class Best:
    """What became of the best checkpoint that a state knows of.

    Attributes:
        is_there: whether it is in the run folder, whole.
        lost: a sentence, where the run may end with other weights for it.
    """

    is_there: bool
    lost: str | None = None


def adopt_best(checkpoints: Path, state: Mapping[str, Any], run_folder: Path) -> Best:
    """Have in `run_folder` the best checkpoint that `state` knows of; rank 0 alone asks.

    Where it is gone or damaged it is made anew from a `last` or `stage` of the same step. One of a later step is no
    loss: after a kill between a validation and the next save the same validation makes it again.

    Args:
        checkpoints: the folder that the state's checkpoint lies in.
        state: of a checkpoint, as in `checkpoint.json`.

    Raises:
        StorageError: it can't be copied.
    """
    theirs, ours, step = checkpoints / BEST, best_folder(run_folder), state["best_step"]
    if step is None:
        return Best(is_there=False)
    try:
        best = open_checkpoint(theirs)
    except CheckpointError as error:
        problem = str(error)
    else:
        if best.step == step:
            if theirs.resolve() != ours.resolve():
                copy_checkpoint(best.path, ours)
            return Best(is_there=True)
        if best.step > state["step"]:
            logger.info(f"{theirs} is of step {best.step}, which is yet to come again: it is made anew there")
            return Best(is_there=False)
        problem = f"{theirs} is of step {best.step}"
    for path in others_of_step(checkpoints, step):
        try:
            same = open_checkpoint(path)
        except CheckpointError:
            continue
        copy_checkpoint(same.path, ours)
        logger.warning(f"the best checkpoint, of step {step}, was made anew from {path}: {problem}")
        return Best(is_there=True)
    return Best(
        is_there=False,
        lost=f"The best checkpoint was lost after step {state['step']}: the best validation, at step {step}, can no "
        f"longer be chosen, and the final weights may be others than those of an undisturbed run ({problem}).",
    )


def load_weights(checkpoint: Checkpoint, module: torch.nn.Module) -> None:
    """Load the weights and buffers that are evaluated into `module`, every key or none.

    Into a network without adapters those of a run with `model.lora` go merged.
    """
    lora = checkpoint.recipe.model.lora
    plain = lora is not None and not has_adapters(name for name, _ in module.named_parameters())
    _load(checkpoint.path / MODEL, module, lora if plain else None)


def load_trained_weights(checkpoint: Checkpoint, module: torch.nn.Module) -> None:
    """Load the weights and buffers that training resumes with, where they are others than those evaluated."""
    if TRAINED in checkpoint.meta["crc32"]:
        _load(checkpoint.path / TRAINED, module)


def _load(path: Path, module: torch.nn.Module, lora: Lora | None = None) -> None:
    try:
        state = load_file(path)
        module.load_state_dict(state if lora is None else merged(state, lora.scale), strict=True)
    except (SafetensorError, RuntimeError, KeyError) as error:
        raise CheckpointError(f"{path} does not fit the model: {error}") from None


def load_training(checkpoint: Checkpoint, run: Run) -> None:
    """Load the optimiser and GradScaler, on the device of the model."""
    path = checkpoint.path / TRAINING
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
        optimizer, kept = stored["optimizer"], stored["scaler"]
    except Exception as error:  # PyTorch documents few of what it raises
        raise CheckpointError(
            f"{path} can't be loaded: {type(error).__name__} {error}; use another checkpoint"
        ) from None
    try:
        load_optimizer(run.training.optimizer, optimizer)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise CheckpointError(f"{path} does not fit the optimiser: {error}; use another checkpoint") from None
    scaler = run.setup.runtime.accelerator.scaler
    if scaler is not None and kept:
        scaler.load_state_dict(kept)
