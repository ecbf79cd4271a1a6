"""A learning-rate range test (Smith, WACV 2017): the rate rises from update to update until the loss diverges.

recipe ──► what a run trains with, nothing of it kept ──► loss of each update ──► means of neighbours ──► suggestions
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import count, islice, takewhile

import numpy as np

from distcxr.data.batch import Batch
from distcxr.data.dataset import open_dataset
from distcxr.engine.opening import batch_plan, build_setup
from distcxr.engine.own_functions import check_functions, with_sources
from distcxr.engine.setup import Setup
from distcxr.engine.stages import name_parameters, plan_stages
from distcxr.engine.state import TrainState
from distcxr.engine.step import train_step, warm_up
from distcxr.engine.training import Training
from distcxr.models.ema import Ema
from distcxr.recipe import Recipe
from distcxr.runtime import Runtime

_DIVERGED = 4.0  # times the lowest: as in fastai and Lightning
_MEMORY = 0.9  # of the mean over the updates so far, which that looks at
_NEIGHBOURS = 20  # the suggestions look at means over a twentieth of the test to either side


@dataclass(frozen=True)
class Found:
    """What the test gave.

    Attributes:
        lrs: of each update that was made, rising.
        losses: of the same, before the update, over the whole global batch.
        smoothed: means of neighbouring losses, cut where they count as diverged.
        diverged: whether the test ended because the loss did.
        steepest: the rate at which the smoothed loss falls fastest; None where it never falls.
        tenth: a tenth of the rate at its lowest; None there, too.
    """

    lrs: tuple[float, ...]
    losses: tuple[float, ...]
    smoothed: tuple[float, ...]
    diverged: bool
    steepest: float | None
    tenth: float | None


@dataclass(frozen=True)
class _Search:
    """What `train_step` needs of a run."""

    setup: Setup
    training: Training
    rates: Sequence[float]
    state: TrainState = field(default_factory=TrainState)
    ema: Ema | None = None

    @property
    def lr(self) -> float:
        return self.rates[self.state.step]


def find_lr(
    recipe: Recipe, runtime: Runtime, rates: Sequence[float],
    report: Callable[[int, float], None] = lambda done, loss: None,
) -> Found:  # fmt: skip
    """Train with these rates, one an update, until the loss diverges; on data, augmentation, batches and precision of
    the recipe's first stage, or of `train.stage`. Nothing is written, and every rank finds the same.

    The network runs as written (`train.compile` is for speed), each process with its own BatchNorm statistics.

    Args:
        rates: rising; of the head, where `optim.layer_decay` gives layers their own.
        report: called by every rank with the updates made and the loss of the newest.

    Raises:
        ValueError: what a run would stop at before its first step.
    """
    recipe = with_sources(recipe)
    dataset, plan = open_dataset(recipe), batch_plan(recipe, runtime)
    check_functions(recipe, dataset)
    stages = plan_stages(recipe, dataset.index, dataset.splits.train, plan)
    losses: list[float] = []
    with closing(build_setup(recipe, None, runtime, dataset, plan, trains=True)) as setup:
        stage = name_parameters(stages, setup.module)[(recipe.train.stage or 1) - 1]
        search = _Search(setup, Training(setup, stage), rates)
        warm_up(setup, search.training)
        with closing(_global_batches(search)) as batches:
            for micro_batches in islice(batches, len(rates)):
                share = train_step(search, micro_batches).share
                losses.append(runtime.sum_over_ranks(share).item())
                search.state.step += 1
                report(len(losses), losses[-1])
                if has_diverged(losses):
                    break
    return suggest(rates[: len(losses)], losses)


def rising(lowest: float, highest: float, num: int) -> list[float]:
    """`num` rates from the lowest to the highest, each the same times the one before."""
    return [lowest * (highest / lowest) ** (step / (num - 1)) for step in range(num)]


def has_diverged(losses: Sequence[float]) -> bool:
    """Whether the newest loss is not finite, or the mean of the newest losses is above the first one and four times
    the lowest such mean."""
    means = _running_means(losses)
    return len(means) < len(losses) or means[-1] > max(losses[0], _DIVERGED * min(means))


def suggest(lrs: Sequence[float], losses: Sequence[float]) -> Found:
    """Smooth the losses of rising rates, and read two rates off them.

    The means have no lag, as a running mean would: its lowest is at too high a rate. Where fewer neighbours are to one
    side than to the other, at the ends, nothing is read off.
    """
    reach = max(1, len(losses) // _NEIGHBOURS)
    means = _running_means(losses)
    bound = max(losses[0], _DIVERGED * min(means)) if means else 1.0
    cut = np.minimum(np.nan_to_num(losses, nan=bound, posinf=bound), bound)
    smoothed = np.array([cut[max(0, at - reach) : at + reach + 1].mean() for at in range(len(cut))])
    steepest = tenth = None
    last = len(smoothed) - reach
    if last - reach >= 3:
        lowest = reach + int(np.argmin(smoothed[reach:last]))
        slope = np.gradient(smoothed, np.log10(lrs))[reach : lowest + 1]
        if lowest > reach and slope.min() < 0:
            steepest, tenth = float(lrs[reach + int(np.argmin(slope))]), float(lrs[lowest]) / 10
    return Found(
        lrs=tuple(lrs), losses=tuple(losses), smoothed=tuple(smoothed.tolist()), diverged=has_diverged(losses),
        steepest=steepest, tenth=tenth,
    )  # fmt: skip


def _running_means(losses: Sequence[float]) -> list[float]:
    """Of the losses so far, the newer ones counting more, after each; up to the first that is not finite."""
    means, total, weight = [], 0.0, 0.0
    for loss in takewhile(math.isfinite, losses):
        total, weight = _MEMORY * total + (1 - _MEMORY) * loss, _MEMORY * weight + 1 - _MEMORY
        means.append(total / weight)
    return means


def _global_batches(search: _Search) -> Generator[list[Batch]]:
    """This rank's micro-batches of one global batch after the other, on the device, over as many epochs as it takes."""
    setup = search.setup
    for epoch in count():
        with closing(search.training.loader.epoch(epoch)) as batches:
            while group := list(islice(batches, setup.plan.accumulation)):
                yield [batch.to(setup.runtime.device) for batch in group]
