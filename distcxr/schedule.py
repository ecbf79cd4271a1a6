"""The learning rate as a pure function of the step, and for `plateau` of the validation scores so far."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

Name = Literal["constant", "cosine", "step", "plateau"]


def lr_at(
    step: int,
    *,
    name: Name,
    base_lr: float,
    warmup_steps: int,
    total_steps: int,
    min_lr: float = 0.0,
    factor: float = 0.1,
    factor_every: int = 1,
    reductions: int = 0,
) -> float:
    """Learning rate of update `step`, counted from 0 (not of micro-steps or of processes).

    The warm-up is linear: update 0 has `base_lr / warmup_steps`, update `warmup_steps - 1` has `base_lr`. From
    that peak (update 0 without a warm-up) `constant` stays, and `cosine` falls along half a cosine to `min_lr`,
    which the last update, `total_steps - 1`, has exactly. `step` multiplies by `factor` at every `factor_every`-th
    update, counted from update 0 (also while it warms up), as PyTorch's StepLR. `plateau` has been multiplied by
    `factor` `reductions` times, down to `min_lr`. A run that ends early keeps `total_steps`, the recipe's horizon.

    Raises ValueError for a step outside the schedule, a warm-up that is longer, and `min_lr` above `base_lr`.
    """
    if total_steps < 1:
        raise ValueError(f"a schedule of {total_steps} steps: the split is smaller than a batch")
    if not 0 <= step < total_steps:
        raise ValueError(f"step {step} is outside the schedule, which has steps 0 to {total_steps - 1}")
    if not 0 <= warmup_steps <= total_steps:
        raise ValueError(f"schedule.warmup is {warmup_steps} steps, of {total_steps} in all: make it shorter")
    if name in ("cosine", "plateau") and not 0 <= min_lr <= base_lr:
        raise ValueError(f"schedule.min_lr={min_lr}: give a number from 0 to the learning rate, {base_lr}")

    peak = max(warmup_steps - 1, 0)
    rise = (step + 1) / warmup_steps if step < peak else 1.0
    if name == "step":
        return base_lr * rise * factor ** (step // factor_every)
    if name == "plateau":
        return max(base_lr * factor**reductions, min_lr) * rise
    if step < peak:
        return base_lr * (step + 1) / warmup_steps
    if name == "constant" or step == peak:
        return base_lr
    progress = (step - peak) / (total_steps - 1 - peak)
    return min_lr + (base_lr - min_lr) * 0.5 * (1.0 + math.cos(math.pi * progress))


def reductions(scores: Sequence[float | None], patience: int) -> int:
    """How often `plateau` has multiplied the rate after these validations.

    As PyTorch's ReduceLROnPlateau: `patience` validations in a row that are not better than the best are waited for,
    the next one multiplies, and waiting begins anew. Unlike there, whatever is better at all counts as better
    (threshold 0), and it has no cooldown. The higher a score the better; None, where it is undefined, is not better.
    """
    best, waited, times = -math.inf, 0, 0
    for score in scores:
        if score is not None and score > best:
            best, waited = score, 0
        else:
            waited += 1
        if waited > patience:
            times, waited = times + 1, 0
    return times
