"""Before the first run of a sweep starts: would the last one, days later, find its data and its network?"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch
from torch import nn

from distcxr.data.dataset import Dataset, open_dataset
from distcxr.data.order import BatchPlan
from distcxr.data.readers import make as readers
from distcxr.engine.opening import build_network
from distcxr.engine.own_functions import check_functions, with_sources
from distcxr.engine.stages import name_parameters, plan_stages
from distcxr.jobs.grid import Planned
from distcxr.models.adapters import check_peft_installed
from distcxr.models.factory import check_named
from distcxr.models.foundation import FOUNDATIONS
from distcxr.own_parts import PartError, blamed
from distcxr.recipe import Recipe
from distcxr.tracking.services import check_installed


def check_runs(planned: Sequence[Planned]) -> dict[str, int]:
    """Open every dataset, and build every network without its weights' numbers: seconds, and no memory to speak of.

    Returns:
        Parameters of each run's network by the run's name.

    Raises:
        ValueError: labels or lists that can't be read, an unknown network, stages or `train.trainable` that can't be, a
            package or a file of weights that is not there. All of them are named.
    """
    mistakes: list[str] = []
    datasets: dict[str, Dataset | None] = {}
    num_parameters: dict[str, int] = {}
    for run in planned:
        recipe = run.recipe
        try:
            recipe = with_sources(recipe)
        except PartError as error:
            mistakes.append(f"{run.name}: {error}")
            continue
        data = repr((recipe.data, recipe.eval.macro_findings))
        if data not in datasets:
            try:
                datasets[data] = open_dataset(recipe)
            except ValueError as error:
                if blamed(error):
                    raise  # its traceback shows where
                datasets[data] = None
                mistakes.append(f"{run.name}: {error}")
        try:
            dataset = datasets[data]
            num_parameters[run.name] = _num_parameters(recipe, dataset)
            if dataset:
                check_functions(recipe, dataset)
            _check_weights(run)
            check_packages(recipe)
        except ValueError as error:
            if blamed(error):
                raise
            mistakes.append(f"{run.name}: {error}")
    if mistakes:
        raise ValueError("\n  - ".join(["nothing was started:", *mistakes]))
    return num_parameters


def check_packages(recipe: Recipe) -> None:
    """Those that not everybody needs, without starting them. Raises ValueError: as a run would."""
    if recipe.model.lora is not None:
        check_peft_installed()
    readers.check_packages(recipe.data)
    check_installed(recipe.logging.trackers)


def _num_parameters(recipe: Recipe, dataset: Dataset | None) -> int:
    """Of the recipe's network, which all of its stages fit."""
    findings = ("unknown",) if dataset is None else dataset.index.findings
    module = _network(recipe, findings)
    if dataset is not None:
        size = recipe.train.global_batch_size  # on how many ranks makes no difference to a stage's steps
        plan = BatchPlan(global_batch_size=size, per_device_batch_size=size)
        name_parameters(plan_stages(recipe, dataset.index, dataset.splits.train, plan), module)
    return sum(parameter.numel() for parameter in module.parameters())


def _network(recipe: Recipe, findings: tuple[str, ...]) -> nn.Module:
    """Without its weights' numbers, where that can be."""
    if recipe.model.library != "python":  # a user's own may read files, and is tried
        with suppress(NotImplementedError), torch.device("meta"):  # torchvision's RegNets compute widths with tensors
            return build_network(recipe, findings)
    return build_network(recipe, findings)


def _check_weights(run: Planned) -> None:
    """A file that another run of the sweep will have written is not looked for."""
    model, weights = run.recipe.model, run.recipe.model.weights
    if weights in FOUNDATIONS:
        check_named(model.name, library=model.library, weights=weights)
    elif weights not in ("imagenet", "none") and run.after is None and not Path(weights).expanduser().exists():
        raise ValueError(f"model.weights={weights}: there is no such file or folder")
