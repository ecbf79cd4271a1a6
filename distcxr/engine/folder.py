"""Which run folder a training uses and which checkpoint it resumes; and what is written of its start."""

from __future__ import annotations

import logging
import os
import platform
import re
import subprocess
import sys
import time
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from distcxr.data.dataset import Dataset
from distcxr.device import device_name
from distcxr.engine.checkpoint import Checkpoint, OtherFormat, newest_checkpoint, open_checkpoint
from distcxr.engine.compatible import check_recipe
from distcxr.recipe import Recipe
from distcxr.recipe.load import to_yaml
from distcxr.runfolder import filenames
from distcxr.runfolder.contents import read_environment
from distcxr.runfolder.layout import (
    holds_checkpoints,
    last_folders,
    put_aside_as_damaged,
    run_folder_of,
    stage_folder,
    step_of,
)  # fmt: skip
from distcxr.runfolder.lock import claim, is_claimed_elsewhere, make_writable
from distcxr.runfolder.rank_files import forget_earlier
from distcxr.runfolder.whole import remove_parts, write_json, write_whole
from distcxr.runtime import Runtime
from distcxr.version import __version__

logger = logging.getLogger(__name__)

_PACKAGES = (
    "torch", "torchvision", "timm", "accelerate", "nvidia-dali-cuda130", "nvidia-dali-cuda120", "numpy", "pillow",
)  # fmt: skip

_CREDENTIALS = re.compile(r"(://)[^/@\s]+@")  # of an address such as https://user:token@host


def choose_folder(recipe: Recipe, recipe_name: str) -> tuple[Path, Checkpoint | None]:
    """The run folder and the checkpoint to resume, by `output`, `train.resume` and `train.stage`. Rank 0 alone asks.

    Raises:
        ValueError: the folder can't be written, or holds a run that would be lost.
        CheckpointError: the checkpoint named is not whole, or was made by another recipe.
    """
    resume, stage = recipe.train.resume, recipe.train.stage
    checkpoint = None
    if resume not in ("auto", "never"):
        checkpoint = newest_checkpoint(Path(resume)) or open_checkpoint(Path(resume))
        folder = recipe.output or folder_for(checkpoint)
    elif recipe.output is not None:
        folder = recipe.output
        if resume == "auto":
            checkpoint = newest_checkpoint(folder)
        if stage is not None:
            checkpoint = _left_for(stage, folder, checkpoint)
        if resume == "never" and holds_checkpoints(folder) and checkpoint is None:
            raise ValueError(
                f"{folder} holds a run, and train.resume=never would overwrite it: "
                "choose another output=FOLDER, or train.resume=auto to resume it"
            )
    else:
        if resume == "auto":
            checkpoint = _newest_unfinished(recipe, filenames.RUNS / recipe_name)
        folder = folder_for(checkpoint) if checkpoint else _new_folder(filenames.RUNS / recipe_name)
        if stage is not None:
            checkpoint = _left_for(stage, folder, checkpoint)
    if checkpoint is not None:
        check_recipe(checkpoint, recipe)
    make_writable(folder)
    claim(folder)
    remove_parts(folder)
    forget_earlier(folder)
    _step_aside(folder, checkpoint, explicit=resume != "auto")
    return folder, checkpoint


def _left_for(stage: int, folder: Path, found: Checkpoint | None) -> Checkpoint | None:
    """The checkpoint to begin `stage` from: `found` if it is in that stage or a later one, else what the stage before
    left in `folder`, if it did."""
    if found is not None and found.meta["state"]["stage"] >= stage:
        return found
    left = stage_folder(folder, stage - 1)
    return open_checkpoint(left) if left.exists() else found


def _step_aside(folder: Path, checkpoint: Checkpoint | None, *, explicit: bool) -> None:
    """Checkpoints newer than the one to resume: they would be taken for this run's own later on.

    `auto` passed over them because they are damaged, all of them perhaps: they are renamed. Whoever names an older
    one has to name a folder for the branch.
    """
    reached = checkpoint.step if checkpoint else -1
    newer = [path for path in last_folders(folder) if step_of(path) > reached]
    if newer and explicit and checkpoint:
        raise ValueError(
            f"{folder} holds newer checkpoints than {checkpoint.path.name} (step {checkpoint.step}), such as "
            f"{newer[0].name}: they would be lost. Give output=FOLDER for the new branch"
        )
    for path in put_aside_as_damaged(newer):
        logger.warning(f"put aside as {path}; the next launch that finds a damaged checkpoint removes it")


def folder_for(checkpoint: Checkpoint) -> Path:
    """The run folder that a checkpoint lies in, for results; ValueError if it lies in none."""
    folder = run_folder_of(checkpoint.path)
    if folder is None:
        raise ValueError(f"{checkpoint.path} is not in a run folder: give the folder for the results, output=FOLDER")
    return folder


def _new_folder(runs: Path) -> Path:
    """`runs/<recipe>/<time>`, with a number where two runs start in the same second."""
    name = time.strftime("%Y-%m-%d_%H-%M-%S")
    candidates = (runs / (name if number == 1 else f"{name}_{number}") for number in range(1, 1000))
    return next(folder for folder in candidates if not folder.exists())


def _newest_unfinished(recipe: Recipe, runs: Path) -> Checkpoint | None:
    """The newest checkpoint of the newest run of the same recipe that stopped before its last step or its scores."""
    for folder in sorted(runs.glob("*/"), key=lambda path: path.name, reverse=True):
        if is_claimed_elsewhere(folder):
            continue
        try:
            checkpoint = newest_checkpoint(folder)
        except OtherFormat as error:
            logger.warning(f"passed over a run: {error}")
            continue
        if checkpoint is None or checkpoint.recipe.identity() != recipe.identity():
            continue
        state = checkpoint.meta["state"]
        steps_left = not state["ended"] and checkpoint.step < (recipe.train.max_steps or sys.maxsize)
        work_left = steps_left or state.get("owes_validation", False)
        if work_left or not all((folder / filenames.metrics(split)).exists() for split in recipe.eval.splits):
            return checkpoint
        return None
    return None


def describe(
    folder: Path, recipe: Recipe, runtime: Runtime, dataset: Dataset, *, name: str | None = None,
    total_steps: int | None = None,
) -> None:  # fmt: skip
    """Write `recipe.yaml` and `environment.json`; the descriptions of earlier launches are kept under `earlier`.

    Args:
        name: of the recipe, where it has one.
        total_steps: updates of the whole run if nothing ends it early; None where nothing is trained.
    """
    resolved = recipe.model_copy(update={"output": folder, "data": dataset.data})
    write_whole(folder / filenames.RECIPE, to_yaml(resolved))
    path = folder / filenames.ENVIRONMENT
    earlier: list[Any] = []
    if path.exists():
        try:
            before = read_environment(path)
            before.pop("cohort", None)  # long; the hashes of its labels and lists stay
            earlier = [*before.pop("earlier", []), before]
        except (ValueError, TypeError) as error:
            logger.warning(f"{error}; its record of earlier launches is lost")
    environment = {
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": [_CREDENTIALS.sub(r"\1***@", word) for word in sys.argv],
        "distcxr": __version__,
        "commit": _commit(),
        "recipe": name,
        "identity": resolved.identity(),
        "versions": {"python": platform.python_version(), "cuda": torch.version.cuda} | _versions(),
        "hardware": _hardware(runtime),
        "world_size": runtime.world_size,
        "backend": runtime.backend,
        "total_steps": total_steps,
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
        "hashes": dataset.hashes,
        "splits": dataset.counts,
        "cohort": dataset.cohort,
        "earlier": earlier,
    }
    write_json(path, environment)


def _commit() -> str | None:
    """Commit of this checkout of distcxr, with `+changes` where files differ from it; None if installed otherwise."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        described = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty=+changes"],
            capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip()


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _hardware(runtime: Runtime) -> dict[str, Any]:
    return {
        "host": platform.node(),
        "device": device_name(runtime.device),
        "num_gpus": torch.cuda.device_count(),
        "cores": len(os.sched_getaffinity(0)),
    }
