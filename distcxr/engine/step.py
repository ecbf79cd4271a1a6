"""One optimiser update, and the warm-up that makes a resumed run repeat a straight one."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from distcxr.data.augment import identity_parameters, input_side
from distcxr.data.batch import Batch
from distcxr.data.metadata import metadata_width
from distcxr.engine.setup import Setup
from distcxr.engine.state import Run
from distcxr.engine.training import Training
from distcxr.optim import clipped, set_lr


def train_step(run: Run, micro_batches: Sequence[Batch]) -> Tensor:
    """Forward, backward and update for this rank's part of one global batch.

    The loss of every micro-batch is divided by the known labels of the whole global batch: all ranks, accumulation
    included. So the gradient is that of one large batch, whatever the number of ranks.

    Args:
        micro_batches: on the device; `accumulation` of them.

    Returns:
        This rank's share of the global batch's loss, a float32 scalar on the device; the ranks' shares sum to the
        loss. Nothing here waits for the device.
    """
    setup, training = run.setup, run.training
    runtime = setup.runtime
    # Summed over the ranks while the forward pass runs.
    known = runtime.begin_sum(torch.stack([training.loss.count(batch.mask) for batch in micro_batches]).sum())
    share = torch.zeros((), device=runtime.device)
    set_lr(training.optimizer, run.lr)
    for micro_step, batch in enumerate(micro_batches):
        runtime.seed_step(setup.recipe.seed, run.state.step, micro_step)
        last = micro_step == len(micro_batches) - 1
        with nullcontext() if last else runtime.accelerator.no_sync(training.model):
            with training.batch_counts.together():
                logits = setup.logits(training.model, batch, transform=training.transform)
            loss = training.loss(logits, batch.targets, batch.mask) / known().clamp(min=1)
            # DDP averages the ranks' gradients where their sum is meant.
            runtime.accelerator.backward(loss * runtime.world_size)
        share += loss.detach()
    update(training.optimizer, setup)
    if run.ema is not None:
        run.ema.update(run.state.step)
    return share


def update(optimizer: Any, setup: Setup) -> None:
    """Clip the gradients as the recipe asks, change the weights, drop the gradients."""
    accelerator, clip_norm = setup.runtime.accelerator, setup.recipe.train.clip_norm
    if clip_norm is None or accelerator.scaler is not None:
        if clip_norm is not None:  # fp16: the gradients are GradScaler's multiples until it has looked at them
            accelerator.clip_grad_norm_(setup.module.parameters(), clip_norm)
        optimizer.step()
    else:
        with clipped(optimizer.optimizer, clip_norm):
            optimizer.step()
    optimizer.zero_grad()


def warm_up(setup: Setup, training: Training) -> None:
    """Two forwards and backwards that leave no trace, on a batch of the real shape; at the start of every stage.

    DDP lays out its gradient buckets anew after the first backward, which changes the order of summation: without
    this, the first step after a restart sums in another order than the same step of an undisturbed run (1.4e-6
    apart on 4 ranks). It also finds a batch that does not fit the device's memory before the first epoch does.
    """
    recipe, batch = setup.recipe, made_up_batch(setup)
    buffers = [buffer.clone() for buffer in setup.module.buffers()]
    assert setup.inputs(batch).shape[-1] == input_side(recipe.data.image_size, recipe.augment)
    for _ in range(2):
        setup.runtime.seed_step(recipe.seed, 0, 0)
        with training.batch_counts.together():
            logits = setup.logits(training.model, batch, transform=training.transform)
        loss = training.loss(logits, batch.targets, batch.mask) / batch.mask.numel()
        loss.backward()  # type: ignore[no-untyped-call]
        training.optimizer.zero_grad()
    with torch.no_grad():
        for buffer, kept in zip(setup.module.buffers(), buffers, strict=True):
            buffer.copy_(kept)


def made_up_batch(setup: Setup) -> Batch:
    """A micro-batch of the real shape, on the device, with every label known."""
    size, side, device = setup.plan.per_device_batch_size, setup.recipe.data.image_size, setup.runtime.device
    known = torch.ones(size, len(setup.index.findings), dtype=torch.uint8, device=device)
    return Batch(
        pixels=torch.arange(size * side * side, device=device).view(size, 1, side, side).remainder(251).byte(),
        targets=known, mask=known, sample_id=torch.arange(size, device=device),
        augment=identity_parameters(size).to(device),
        metadata=torch.zeros(size, metadata_width(setup.recipe.model.head.metadata), device=device),
    )  # fmt: skip
