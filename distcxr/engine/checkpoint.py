"""Checkpoints: what of a run is saved and loaded. Which folders and files they are: `runfolder/layout.py`.

`model.safetensors` holds what is evaluated, so whoever tests, explains or exports need not know of averages. With
`train.ema` that is the average, and `trained.safetensors` holds the weights that training resumes with.

Nothing is ever unpickled: `training.pt` loads with `weights_only=True`.
"""

from __future__ import annotations

import logging
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from distcxr.engine.state import Run, TrainState
from distcxr.optim import load_optimizer
from distcxr.recipe import Recipe
from distcxr.runfolder.layout import (
    BEST,
    META,
    MODEL,
    READABLE_VERSIONS,
    TRAINED,
    TRAINING,
    best_folder,
    checkpoint_being_written,
    copy_checkpoint,
    damaged_files,
    find_checkpoint,
    last_folder,
    last_folders,
    read_meta,
    stage_folder,
)  # fmt: skip

logger = logging.getLogger(__name__)


class CheckpointError(ValueError):
    """A checkpoint that is not whole or does not go with the recipe; the message names it and what to do."""


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


def save(run: Run, folder: Path) -> None:
    """Write the checkpoint `folder` from rank 0. Called at an update boundary; the other ranks do not wait."""
    setup = run.setup
    if not setup.runtime.is_main:
        return
    meta = {
        "findings": list(setup.index.findings),
        "mean": list(setup.transform.mean),
        "std": list(setup.transform.std),
        "world_size": setup.runtime.world_size,
        "recipe": setup.recipe.model_dump(mode="json"),
        "state": asdict(run.state),
        "hashes": setup.hashes,
    }
    scaler = setup.runtime.accelerator.scaler
    training = {"optimizer": run.training.optimizer.state_dict(), "scaler": scaler.state_dict() if scaler else {}}
    with checkpoint_being_written(folder, meta) as part:
        _save_weights(run, part / (MODEL if run.ema is None else TRAINED))
        if run.ema is not None:
            with run.evaluated_weights():
                _save_weights(run, part / MODEL)
        torch.save(training, part / TRAINING)


def save_best(run: Run) -> None:
    """Write `best`, in place of the one before."""
    save(run, best_folder(run.folder))


def _save_weights(run: Run, path: Path) -> None:
    """Write the network's weights and buffers as they are."""
    # safetensors refuses channels_last tensors, and takes no two that share memory.
    weights = {key: value.detach().cpu().contiguous().clone() for key, value in run.setup.module.state_dict().items()}
    if not all(value.isfinite().all() for value in weights.values()):
        raise ValueError(
            f"the weights are not finite after step {run.state.step}: training has diverged. Lower optim.lr or set "
            "train.clip_norm=1; the checkpoints before are still there"
        )
    save_file(weights, path, metadata={"format": "pt"})


def save_last(run: Run) -> None:
    """Write `last-<step>` and remove all but the newest `checkpoint.keep` of them."""
    save(run, last_folder(run.folder, run.state.step))
    if run.setup.runtime.is_main:
        for old in last_folders(run.folder)[run.setup.recipe.checkpoint.keep :]:
            shutil.rmtree(old, ignore_errors=True)


def save_stage(run: Run) -> None:
    """Write `stage-<n>` at the end of stage n, unless a launch before this one has."""
    folder = stage_folder(run.folder, run.stage.number)
    if run.setup.runtime.is_main:
        try:
            if open_checkpoint(folder).step == run.state.step:
                return
        except CheckpointError:
            pass
    save(run, folder)


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
            raise CheckpointError(
                f"{path} has format {version}; this distcxr reads formats {' and '.join(map(str, READABLE_VERSIONS))}. "
                f"Its weights alone can be used: model.weights={path / MODEL}"
            )
        damaged = damaged_files(path, meta["crc32"])
        TrainState(**meta["state"])
        Checkpoint(path, meta).step  # noqa: B018  # that it is a number
        Recipe.model_validate(meta["recipe"])
        meta["mean"], meta["std"], meta["hashes"]["labels"]
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path} is not a checkpoint: it has no {Path(error.filename).name}. Give a folder such as "
            "runs/<recipe>/<time>/checkpoints/best, or the run folder itself"
        ) from None
    except CheckpointError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path / META} is damaged: {error}; use another checkpoint") from None
    if damaged:
        raise CheckpointError(f"{damaged[0]} is damaged: its checksum is wrong; use another checkpoint")
    return Checkpoint(path, meta)


def begun_from(weights: str) -> Checkpoint | None:
    """The checkpoint that `model.weights` names by its folder, its run's or its file of weights; None for other files.

    Raises:
        CheckpointError: a folder that is no whole checkpoint.
    """
    path = Path(weights).expanduser()
    if weights in ("imagenet", "none"):
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
    """The newest whole `last-*` checkpoint of a run; those that are not whole are named and passed over."""
    for path in last_folders(run_folder):
        try:
            return open_checkpoint(path)
        except CheckpointError as error:
            logger.warning(f"passed over a checkpoint: {error}")
    return None


def adopt_best(checkpoint: Checkpoint, run_folder: Path) -> bool:
    """Have in `run_folder` the best checkpoint that `checkpoint` knows of; False if it is not beside it any more.

    After a kill between a validation and the next save, for example, a later best has taken its place.
    """
    theirs, ours = checkpoint.path.with_name(BEST), best_folder(run_folder)
    try:
        best = open_checkpoint(theirs)
    except CheckpointError:
        return False
    if best.step != checkpoint.meta["state"]["best_step"]:
        return False
    if theirs.resolve() != ours.resolve():
        copy_checkpoint(best.path, ours)
    return True


def load_weights(checkpoint: Checkpoint, module: torch.nn.Module) -> None:
    """Load the weights and buffers that are evaluated into `module`, every key or none."""
    _load(checkpoint.path / MODEL, module)


def load_trained_weights(checkpoint: Checkpoint, module: torch.nn.Module) -> None:
    """Load the weights and buffers that training resumes with, where they are others than those evaluated."""
    if TRAINED in checkpoint.meta["crc32"]:
        _load(checkpoint.path / TRAINED, module)


def _load(path: Path, module: torch.nn.Module) -> None:
    try:
        module.load_state_dict(load_file(path), strict=True)
    except (SafetensorError, RuntimeError) as error:
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
