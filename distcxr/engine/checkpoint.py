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
import os
import shutil
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from distcxr.engine.state import Run, TrainState
from distcxr.recipe import Recipe
from distcxr.recipe.schema import IDENTITY_FREE

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
        "identity": run.recipe.identity(),
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
        _flush(file)
    _flush(part)
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
    _flush(place.parent)
    shutil.rmtree(aside, ignore_errors=True)


def _aside(place: Path) -> Path:
    return place.with_name(f".{place.name}.old")


def _flush(path: Path) -> None:
    """Have a file's or folder's bytes on the disk before what comes next."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
        meta["identity"], meta["mean"], meta["std"], meta["hashes"]["labels"]
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


def check_recipe(checkpoint: Checkpoint, recipe: Recipe) -> None:
    """Refuse to go on training from a checkpoint of another recipe, naming the keys that differ.

    With `train.stage` the stages from there on may differ, if the checkpoint has not begun them.
    """
    if checkpoint.meta["identity"] == recipe.identity():
        return
    theirs, ours = _flat(checkpoint.meta["recipe"]), _flat(recipe.model_dump(mode="json"))
    begun = checkpoint.meta["state"]["stage"]
    later = range(begun, max(len(recipe.train.stages), len(checkpoint.meta["recipe"]["train"]["stages"])))
    free = [f"train.stages.{place}" for place in later] if recipe.train.stage == begun + 1 else []
    lines = [
        f"  - {key}: {theirs.get(key)!r} in the checkpoint, {ours.get(key)!r} in the recipe"
        for key in ours | theirs
        if theirs.get(key) != ours.get(key) and not _is_in(key, (*IDENTITY_FREE, *free))
    ]
    if not lines:
        return
    raise CheckpointError(
        f"{checkpoint.path} was made by another recipe:\n" + "\n".join(lines) + "\nTrain with train.resume=never or "
        "another output=FOLDER, or set these keys back"
    )


def check_testable(checkpoint: Checkpoint, recipe: Recipe) -> None:
    """Refuse to test weights with a recipe that would show them other images or another head."""
    whole = Recipe.model_validate(checkpoint.meta["recipe"])  # with the defaults of keys that it is older than
    theirs, ours = (_flat(one.model_dump(mode="json")) for one in (whole, recipe))
    keys = (
        "model.name", "model.library", "model.in_chans", "model.head.kind", "model.head.hidden", "model.head.metadata",
        "data.image_size", "augment.center_crop", "augment.crop",
    )  # fmt: skip
    lines = [
        f"  - {key}: {theirs.get(key)!r} in the checkpoint, {ours.get(key)!r} in the recipe"
        for key in (*keys, "data.findings")
        if theirs.get(key) != ours.get(key)
    ]
    losses = [values.get("loss.name") for values in (theirs, ours)]
    if losses.count("cross_entropy") == 1:  # any other's logits are of findings one by one
        lines.append(f"  - loss.name: {losses[0]!r} in the checkpoint, {losses[1]!r} in the recipe")
    if lines:
        raise CheckpointError(f"{checkpoint.path} was trained differently:\n" + "\n".join(lines))


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values by their whole key, as overrides name them."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, list) and value and all(isinstance(entry, dict) for entry in value):
            value = {str(place): entry for place, entry in enumerate(value)}
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _is_in(key: str, sections: Sequence[str]) -> bool:
    return any(key == section or key.startswith(f"{section}.") for section in sections)


def check_data(checkpoint: Checkpoint, hashes: dict[str, str]) -> None:
    """Refuse to go on with other labels or other images in a split: the order would change in mid-epoch, and patients
    trained on could come to validate.
    """
    theirs = checkpoint.meta["hashes"]
    changed = [name for name in ("labels", "train", "val", "test") if theirs.get(name) != hashes[name]]
    if changed:
        raise CheckpointError(
            f"{checkpoint.path} was trained on other data: {', '.join(changed)} changed since, "
            "for example because files were added or removed. Give data.root the data it was trained on, or start anew "
            "with train.resume=never and another output=FOLDER"
        )


def check_findings(checkpoint: Checkpoint, findings: Sequence[str]) -> None:
    """Refuse other columns than the checkpoint's: `data.findings=all` means what the label file of the day has."""
    theirs = checkpoint.meta["findings"]
    if theirs != list(findings):
        raise CheckpointError(
            f"{checkpoint.path} was trained on the findings {', '.join(theirs)}; with this recipe and label file they "
            f"are {', '.join(findings)}. List the checkpoint's in data.findings"
        )


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
    run.training.optimizer.load_state_dict(stored["optimizer"])
    if run.runtime.accelerator.scaler is not None and stored["scaler"]:
        run.runtime.accelerator.scaler.load_state_dict(stored["scaler"])


def stored_state(checkpoint: Checkpoint) -> TrainState:
    """Where the checkpointed run stood."""
    return TrainState(**checkpoint.meta["state"])
