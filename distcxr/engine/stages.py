"""What a run trains, stage by stage: resolved from the recipe once. A recipe without stages has a single one.

`stops_early` is the rule that ends one before its last step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from torch import nn

from distcxr.data.augment.mixing import check_pairs
from distcxr.data.index import SampleIndex
from distcxr.data.order import BatchPlan, TrainOrder
from distcxr.data.sampling import train_order
from distcxr.loss_building import check_weights
from distcxr.models.adapters import has_adapters
from distcxr.models.freeze import trainable_names
from distcxr.models.maps import takes_any_size
from distcxr.recipe import Recipe
from distcxr.recipe import train as recipe_train
from distcxr.recipe.augmentation import Augment
from distcxr.recipe.keys import to_steps
from distcxr.recipe.loss import Loss
from distcxr.recipe.train import EarlyStop, Schedule
from distcxr.schedule import lr_at, reductions


@dataclass(frozen=True)
class Horizon:
    """All durations of a stage in steps. They are counted from the stage's first step."""

    epochs: int
    steps_per_epoch: int
    total_steps: int
    """Of the stage and its schedule; neither early stopping nor `train.max_steps` changes it."""
    warmup_steps: int
    factor_every: int
    """Of the schedule `step`."""
    log_every: int
    eval_every: int
    save_every: int

    @classmethod
    def of(cls, recipe: Recipe, schedule: Schedule, *, steps_per_epoch: int, epochs: int) -> Horizon:
        """Resolve the recipe's durations for a stage."""

        def steps(duration: str) -> int:
            return to_steps(duration, steps_per_epoch=steps_per_epoch, epochs=epochs)

        return cls(
            epochs=epochs,
            steps_per_epoch=steps_per_epoch,
            total_steps=steps_per_epoch * epochs,
            warmup_steps=steps(schedule.warmup),
            factor_every=max(1, steps(schedule.every)),
            log_every=max(1, steps(recipe.logging.every)),
            eval_every=max(1, steps(recipe.eval.every)),
            save_every=max(1, steps(recipe.checkpoint.every)),
        )


@dataclass(frozen=True)
class Stage:
    """A part of training, whole: nothing is left to look up in the recipe.

    Attributes:
        number: from 1.
        title: what log and errors call it; empty where the recipe has no stages.
        patterns: parameters that are trained, as `train.trainable`.
        parameters: their names, in the network's order; `name_parameters` fills it in.
        carry: whether moments of parameters that the stage before trained, too, are kept.
        order: the samples of its epochs.
    """

    number: int
    title: str
    patterns: tuple[str, ...] | None
    base_lr: float
    carry: bool
    loss: Loss
    augment: Augment
    schedule: Schedule
    order: TrainOrder
    horizon: Horizon
    parameters: tuple[str, ...] = ()

    def lr_at(self, step: int, validations: Sequence[float | None]) -> float:
        """Learning rate of the stage's update `step`, from 0, after the stage's `validations` so far."""
        schedule, horizon = self.schedule, self.horizon
        return lr_at(
            step, name=schedule.name, base_lr=self.base_lr, warmup_steps=horizon.warmup_steps,
            total_steps=horizon.total_steps, min_lr=schedule.min_lr, factor=schedule.factor,
            factor_every=horizon.factor_every, reductions=reductions(validations, schedule.patience),
        )  # fmt: skip

    def has_ended(self, steps: int, validations: Sequence[float | None], rule: EarlyStop) -> bool:
        """Whether it has no step left after `steps` updates, or by its `validations` so far no longer helps."""
        return steps == self.horizon.total_steps or stops_early(
            validations, patience=rule.patience, min_delta=rule.min_delta
        )


def plan_stages(recipe: Recipe, index: SampleIndex, rows: NDArray[np.int64], plan: BatchPlan) -> tuple[Stage, ...]:
    """Every stage of the recipe over the training split `rows`, or the one stage of a recipe without.

    Raises:
        ValueError: too few images for a batch, an odd number of them where they are mixed in pairs, a schedule that
            does not fit, or another number of loss weights than of findings; names the stage.
    """
    train = recipe.train
    alone = recipe_train.Stage(epochs=train.epochs)
    planned = []
    for number, spec in enumerate(train.stages or (alone,), start=1):
        title = f"stage {number} of {len(train.stages)}" if train.stages else ""
        title += f" ({spec.name})" if spec.name else ""
        schedule = spec.schedule or recipe.schedule
        patterns = train.trainable if spec.trainable is None else spec.trainable
        try:
            order = train_order(
                index, rows, spec.sampling or recipe.data.sampling, seed=recipe.seed, stage=number - 1, plan=plan
            )
            stage = Stage(
                number=number,
                title=title,
                patterns=None if patterns is None else tuple(patterns),
                base_lr=spec.lr or recipe.optim.lr,
                carry=spec.optimizer == "carry",
                loss=spec.loss or recipe.loss,
                augment=spec.augment or recipe.augment,
                schedule=schedule,
                order=order,
                horizon=Horizon.of(recipe, schedule, steps_per_epoch=len(order), epochs=spec.epochs),
            )
            stage.lr_at(0, ())
            check_weights(stage.loss, index.findings)
            check_pairs(stage.augment, plan)
        except ValueError as error:
            raise ValueError(f"{title}: {error}" if title else str(error)) from None
        planned.append(stage)
    return tuple(planned)


def name_parameters(stages: Sequence[Stage], module: nn.Module) -> tuple[Stage, ...]:
    """The stages with the names of the parameters that each trains: all of them, before the first begins.

    Args:
        module: as built, see `trainable_names`.

    Raises:
        ValueError: a stage that trains nothing, a pattern that names no parameter, or images of another size than the
            network takes; names the stage.
    """
    named, adapters = [], has_adapters(name for name, _ in module.named_parameters())
    for stage in stages:
        key = f"trainable of {stage.title}" if stage.title else "train.trainable"
        if stage.augment.train_size is not None and not takes_any_size(module):
            where = f" of {stage.title}" if stage.title else ""
            raise ValueError(
                f"augment.train_size={stage.augment.train_size}{where}: this network takes images of one size only. "
                "Train it at each size in a run of its own, the second with model.weights=RUN of the first"
            )
        try:
            names = trainable_names(module, stage.patterns)
        except ValueError as error:
            raise ValueError(f"{key}: {error}") from None
        if not names:
            raise ValueError(f"{key}: {list(stage.patterns or ())} trains nothing: the network holds these fixed")
        for pattern in (stage.patterns or ()) if adapters else ():
            if not trainable_names(module, [pattern]):
                raise ValueError(
                    f"{key}: {pattern!r} has neither adapters nor the head, and with model.lora nothing else is "
                    "trained: leave it out, or leave out model.lora"
                )
        named.append(replace(stage, parameters=tuple(names)))
    if adapters and not any(has_adapters(stage.parameters) for stage in named):
        raise ValueError(
            f"model.lora: {' and '.join(sorted({str(list(stage.patterns or ())) for stage in named}))} of "
            "train.trainable trains none of its adapters: leave out train.trainable, or leave out model.lora"
        )
    return tuple(named)


def stops_early(scores: Sequence[float | None], *, patience: int | None, min_delta: float) -> bool:
    """Whether `patience` validations in a row have not been better than the best by more than `min_delta`.

    Args:
        scores: of a stage's validations so far, the higher the better; None, where it is undefined, is not better.
        patience: None never stops.
    """
    best, waited = -math.inf, 0
    for score in scores:
        if score is not None and score > best + min_delta:
            best, waited = score, 0
        else:
            waited += 1
        if patience is not None and waited >= patience:
            return True
    return False
