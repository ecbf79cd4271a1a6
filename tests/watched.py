"""A recipe's own file trained on synthetic data, with what the engine held at every update."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tiny
from rich.console import Console
from torch import nn

import distcxr.engine.fit as fitting
from distcxr.engine.build import build_run
from distcxr.engine.opening import batch_plan
from distcxr.engine.state import Run
from distcxr.engine.step import Outcome, train_step
from distcxr.recipe import Recipe, load_recipe

RECIPES = Path(__file__).parents[1] / "recipes"
SMALL = (
    "data.image_size=64", "data.val_fraction=0.25", "data.loader=torch", "data.num_workers=0", "model.weights=none",
    "train.precision=no",
    "train.global_batch_size=8", "train.channels_last=false", "eval.replicates=2", "eval.pictures=0",
    "eval.localise=false", "eval.splits=[]", "checkpoint.every=1000ep", "logging.images=0",
)  # fmt: skip
"""Overrides that make any recipe fit two CPU cores; they change no claim that a test looks at."""


@dataclass(frozen=True)
class Update:
    """What was held while one update was made."""

    stage: int
    epoch: int
    trained: frozenset[str]
    """Names of the parameters that require a gradient."""
    stepped: frozenset[str]
    """Names of the parameters that the optimiser has."""
    lr: frozenset[float]
    """Of all parameter groups."""
    measuring: frozenset[str]
    """Names of the BatchNorm layers that take statistics."""
    samples: tuple[int, ...]


def load(recipe: str, *overrides: str) -> Recipe:
    """`recipes/<recipe>.yaml`."""
    return load_recipe(RECIPES / f"{recipe}.yaml", overrides)


def build(recipe: str, folder: Path | None, data: Path, *overrides: str) -> Run:
    """A run of `recipes/<recipe>.yaml` over `data`, ready for its first step."""
    logging.getLogger("distcxr").setLevel(logging.INFO)
    loaded = load(recipe, f"data.root={data}", f"output={folder}", *SMALL, *overrides)
    return build_run(loaded, Path(recipe).stem, tiny.runtime(loaded), Console(quiet=True))


def published_batch(recipe: str) -> int:
    """Images of one update as the engine shares them out, with nothing overridden."""
    loaded = load(recipe)
    return batch_plan(loaded, tiny.runtime(loaded)).global_batch_size


def train(run: Run) -> list[Update]:
    """Train it whole; returns what each update held."""
    updates: list[Update] = []

    def watching(run: Run, micro_batches: Sequence[Any]) -> Outcome:
        outcome = train_step(run, micro_batches)  # which sets the learning rate
        updates.append(_held(run, micro_batches))
        return outcome

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitting, "train_step", watching)
        fitting.fit(run)
    run.setup.close()
    return updates


def _held(run: Run, micro_batches: Sequence[Any]) -> Update:
    names = {id(parameter): name for name, parameter in run.setup.module.named_parameters()}
    groups = run.training.optimizer.param_groups
    return Update(
        stage=run.state.stage,
        epoch=run.state.epoch,
        trained=frozenset(name for name, parameter in run.setup.module.named_parameters() if parameter.requires_grad),
        stepped=frozenset(names[id(parameter)] for group in groups for parameter in group["params"]),
        lr=frozenset(group["lr"] for group in groups),
        measuring=frozenset(
            name for name, m in run.setup.module.named_modules() if isinstance(m, nn.BatchNorm2d) and m.training
        ),
        samples=tuple(row for batch in micro_batches for row in batch.sample_id.tolist()),
    )
