"""The learning rate as a pure function of the step: nothing to save, nothing that counts processes."""

from __future__ import annotations

import math
from typing import Literal, cast


def lr_at(
    step: int,
    *,
    name: Literal["constant", "cosine"],
    base_lr: float,
    warmup_steps: int,
    total_steps: int,
    min_lr: float = 0.0,
) -> float:
    """Learning rate of update `step`.

    The warm-up is linear: update 0 has `base_lr / warmup_steps`, update `warmup_steps - 1` has `base_lr`. From
    that peak (update 0 without a warm-up) `constant` stays, and `cosine` falls along half a cosine to `min_lr`,
    which the last update, `total_steps - 1`, has exactly.

    Args:
        step: 0-based number of the update (not of micro-steps or of processes).
        base_lr: the peak, above 0.
        warmup_steps: 0 to `total_steps`.
        total_steps: the recipe's horizon, all its epochs; a run that ends early keeps it.
        min_lr: 0 to `base_lr`; `constant` does not use it.

    Raises:
        ValueError: an unknown name or a value out of range, `step` included.
    """
    if total_steps < 1:
        raise ValueError(f"a schedule of {total_steps} steps: the split is smaller than a batch")
    if not 0 <= step < total_steps:
        raise ValueError(f"step {step} is outside the schedule, which has steps 0 to {total_steps - 1}")
    if not 0 <= warmup_steps <= total_steps:
        raise ValueError(f"schedule.warmup is {warmup_steps} steps, of {total_steps} in all: make it shorter")
    if not (math.isfinite(base_lr) and base_lr > 0):
        raise ValueError(f"optim.lr={base_lr}: give a finite number above 0")
    if name == "cosine" and not 0 <= min_lr <= base_lr:
        raise ValueError(f"schedule.min_lr={min_lr}: give a number from 0 to optim.lr={base_lr}")
    if name not in ("constant", "cosine"):
        raise ValueError(f"schedule.name={cast(str, name)}: give 'constant' or 'cosine'")

    peak = max(warmup_steps - 1, 0)
    if step < peak:
        return base_lr * (step + 1) / warmup_steps
    if name == "constant" or step == peak:
        return base_lr
    progress = (step - peak) / (total_steps - 1 - peak)
    return min_lr + (base_lr - min_lr) * 0.5 * (1.0 + math.cos(math.pi * progress))
