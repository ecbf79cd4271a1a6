"""Checkpoints: folders that are either whole or not there.

    checkpoints/last-00000120/   model.safetensors   weights and buffers, contiguous, loadable anywhere
                                 trained.safetensors with `train.ema` alone, see below
                                 training.pt         optimiser and GradScaler; loads with weights_only=True
                                 checkpoint.json     written last: version, recipe, state, checksums of the others
    checkpoints/stage-1/         the same, at the end of a stage
    checkpoints/best/            the same, of the best validation so far

`model.safetensors` holds what is judged, so whoever tests, explains or exports need not know of averages. With
`train.ema` that is the average, and `trained.safetensors` holds the weights that training goes on from.

A folder is written under another name, flushed to disk and renamed. Nothing is ever unpickled.
"""

from __future__ import annotations

import json
import logging
import shutil
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from distcxr.engine.state import Run, TrainState
from distcxr.optim import load_optimizer
from distcxr.recipe import Recipe
from distcxr.runfolder.whole import flush

logger = logging.getLogger(__name__)

FORMAT_VERSION = 2
_MODEL, _TRAINED, _TRAINING, _META = "model.safetensors", "trained.safetensors", "training.pt", "checkpoint.json"


class CheckpointError(ValueError):
    """A checkpoint that is not whole or does not go with the recipe; the message names it and says what to do."""


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint on disk and what its `checkpoint.json` says."""

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


def save(run: Run, name: str) -> None:
    """Write `checkpoints/<name>` from rank 0. Called at an update boundary; the other ranks go on."""
    if not run.runtime.is_main:
        return
    folder = run.folder / "checkpoints"
    folder.mkdir(exist_ok=True)
    for left_by_a_kill in folder.glob(".*.part"):
        shutil.rmtree(left_by_a_kill, ignore_errors=True)
    part = folder / f".{name}.part"
    part.mkdir()
    _save_weights(run, part / (_MODEL if run.ema is None else _TRAINED))
    if run.ema is not None:
        with run.judged_weights():
            _save_weights(run, part / _MODEL)
    scaler = run.runtime.accelerator.scaler
    training = {"optimizer": run.training.optimizer.state_dict(), "scaler": scaler.state_dict() if scaler else {}}
    torch.save(training, part / _TRAINING)
    meta = {
        "format_version": FORMAT_VERSION,
        "findings": list(run.index.findings),
        "mean": list(run.transform.mean),
        "std": list(run.transform.std),
        "world_size": run.runtime.world_size,
        "recipe": run.recipe.model_dump(mode="json"),
        "state": run.state.to_dict(),
        "hashes": run.hashes,
        "crc32": {file.name: _crc32(file) for file in sorted(part.iterdir())},
    }
    (part / _META).write_text(json.dumps(meta, indent=1, allow_nan=False))
    for file in part.iterdir():
        flush(file)
    flush(part)
    _put_in_place(part, folder / name)


def _save_weights(run: Run, path: Path) -> None:
    """Write the network's weights and buffers as they are."""
    # safetensors refuses channels_last tensors, and takes no two that share memory.
    weights = {key: value.detach().cpu().contiguous().clone() for key, value in run.module.state_dict().items()}
    if not all(value.isfinite().all() for value in weights.values()):
        raise ValueError(
            f"the weights are not finite after step {run.state.step}: training has diverged. Lower optim.lr or set "
            "train.clip_norm=1; the checkpoints before are still there"
        )
    save_file(weights, path, metadata={"format": "pt"})


def _put_in_place(part: Path, place: Path) -> None:
    """Rename `part` to `place`; an old folder there steps aside first and is found by `open_checkpoint` if we die."""
    aside = _aside(place)
    if place.exists():
        shutil.rmtree(aside, ignore_errors=True)
        place.rename(aside)
    part.rename(place)
    flush(place.parent)
    shutil.rmtree(aside, ignore_errors=True)


def _aside(place: Path) -> Path:
    return place.with_name(f".{place.name}.old")


def _crc32(path: Path) -> int:
    """Checksum of a file: about a second a gigabyte."""
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            checksum = zlib.crc32(block, checksum)
    return checksum


def save_last(run: Run) -> None:
    """Write `last-<step>` and remove all but the newest `checkpoint.keep` of them."""
    save(run, f"last-{run.state.step:08d}")
    if run.runtime.is_main:
        for old in last_folders(run.folder)[run.recipe.checkpoint.keep :]:
            shutil.rmtree(old, ignore_errors=True)


def save_stage(run: Run) -> None:
    """Write `stage-<n>` at the end of stage n, unless a launch before this one has."""
    place = stage_folder(run.folder, run.stage.number)
    if run.runtime.is_main:
        try:
            if open_checkpoint(place).step == run.state.step:
                return
        except CheckpointError:
            pass
    save(run, place.name)


def stage_folder(run_folder: Path, number: int) -> Path:
    """Where a run keeps what stage `number` left."""
    return run_folder / "checkpoints" / f"stage-{number}"


def last_folders(run_folder: Path) -> list[Path]:
    """`last-*` folders of a run, newest first."""
    found = (run_folder / "checkpoints").glob("last-*")
    return sorted((path for path in found if path.name[5:].isdigit()), key=lambda path: -int(path.name[5:]))


def open_checkpoint(path: Path) -> Checkpoint:
    """Check that a checkpoint is whole, to the last bit.

    Args:
        path: a checkpoint folder, or a run folder, whose `best` is then meant.

    Raises:
        CheckpointError: naming the file that is missing, damaged or of another format.
    """
    if (path / "checkpoints").is_dir():
        path = path / "checkpoints" / "best"
    if not path.exists() and _aside(path).exists():
        path = _aside(path)
    try:
        meta = json.loads((path / _META).read_text())
        version = meta["format_version"]
        if version != FORMAT_VERSION:
            raise CheckpointError(
                f"{path} has format {version}; this distcxr reads format {FORMAT_VERSION}. Its weights alone can be "
                f"used: model.weights={path / _MODEL}"
            )
        files = [file for file in (_MODEL, _TRAINED, _TRAINING) if file != _TRAINED or file in meta["crc32"]]
        damaged = [file for file in files if _crc32(path / file) != meta["crc32"][file]]
        TrainState(**meta["state"])
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
        raise CheckpointError(f"{path / _META} is damaged: {error}; use another checkpoint") from None
    if damaged:
        raise CheckpointError(f"{path / damaged[0]} is damaged: its checksum is wrong; use another checkpoint")
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
    if path.name not in (_MODEL, _TRAINED) or not (path.parent / _META).is_file():
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
    theirs, ours = checkpoint.path.parent / "best", run_folder / "checkpoints" / "best"
    try:
        best = open_checkpoint(theirs)
    except CheckpointError:
        return False
    if best.step != checkpoint.meta["state"]["best_step"]:
        return False
    if theirs.resolve() != ours.resolve():
        part = ours.with_name(".best.part")
        shutil.rmtree(part, ignore_errors=True)
        shutil.copytree(best.path, part)
        _put_in_place(part, ours)
    return True


def load_weights(checkpoint: Checkpoint, module: torch.nn.Module) -> None:
    """Load the weights and buffers that are judged into `module`, every key or none."""
    _load(checkpoint.path / _MODEL, module)


def load_trained_weights(checkpoint: Checkpoint, module: torch.nn.Module) -> None:
    """Load the weights and buffers that training goes on from, where they are others than those that are judged."""
    if _TRAINED in checkpoint.meta["crc32"]:
        _load(checkpoint.path / _TRAINED, module)


def _load(path: Path, module: torch.nn.Module) -> None:
    try:
        module.load_state_dict(load_file(path), strict=True)
    except (SafetensorError, RuntimeError) as error:
        raise CheckpointError(f"{path} does not fit the model: {error}") from None


def load_training(checkpoint: Checkpoint, run: Run) -> None:
    """Load the optimiser and GradScaler, on the device of the model."""
    stored = torch.load(checkpoint.path / _TRAINING, map_location="cpu", weights_only=True)
    load_optimizer(run.training.optimizer, stored["optimizer"])
    if run.runtime.accelerator.scaler is not None and stored["scaler"]:
        run.runtime.accelerator.scaler.load_state_dict(stored["scaler"])


def stored_state(checkpoint: Checkpoint) -> TrainState:
    """Where the checkpointed run stood."""
    return TrainState(**checkpoint.meta["state"])
