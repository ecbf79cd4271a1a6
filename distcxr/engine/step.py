"""One optimiser update, and the warm-up that makes a resumed run repeat a straight one."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from distcxr.data.augment import identity_parameters, input_side
from distcxr.data.batch import Batch
from distcxr.engine.state import Run
from distcxr.losses import LOSSES
from distcxr.optim import set_lr


def train_step(run: Run, micro_batches: Sequence[Batch]) -> Tensor:
    """Forward, backward and update for this rank's part of one global batch.

    The loss of every micro-batch is divided by the known labels of the whole global batch: all ranks, accumulation
    included. So the gradient is that of one large batch, whatever the number of ranks.

    Args:
        micro_batches: on the device; `accumulation` of them.

    Returns:
        This rank's share of the global batch's loss, a float32 scalar on the device; the ranks' shares sum to the
        loss. Nothing here waits for the device, but for fp16's GradScaler, which asks it once an update.
    """
    accelerator, loss_sum = run.runtime.accelerator, LOSSES[run.recipe.loss.name]
    known = run.runtime.sum_over_ranks(torch.stack([batch.mask.sum() for batch in micro_batches]).sum())
    share = torch.zeros((), device=run.runtime.device)
    set_lr(run.optimizer, run.lr)
    for micro_step, batch in enumerate(micro_batches):
        run.runtime.seed_step(run.recipe.seed, run.state.step, micro_step)
        last = micro_step == len(micro_batches) - 1
        with nullcontext() if last else accelerator.no_sync(run.model):
            logits = run.model(run.inputs(batch)).float()
            loss = loss_sum(logits, batch.targets, batch.mask) / known.clamp(min=1)
            # DDP averages the ranks' gradients where their sum is meant.
            accelerator.backward(loss * run.runtime.world_size)
        share += loss.detach()
    if run.recipe.train.clip_norm is not None:
        accelerator.clip_grad_norm_(run.model.parameters(), run.recipe.train.clip_norm)
    run.optimizer.step()
    run.optimizer.zero_grad()
    return share


def warm_up(run: Run) -> None:
    """Two forwards and backwards that leave no trace, on a batch of the real shape.

    DDP lays out its gradient buckets anew after the first backward, which changes the order of summation: without
    this, the first step after a restart sums in another order than the same step of an undisturbed run (1.4e-6
    apart on 4 ranks). It also finds a batch that does not fit the device's memory before the first epoch does.
    """
    recipe, device = run.recipe, run.runtime.device
    size, side = run.plan.per_device_batch_size, recipe.data.image_size
    buffers = [buffer.clone() for buffer in run.module.buffers()]
    pixels = torch.arange(size * side * side, device=device).view(size, 1, side, side).remainder(251).byte()
    known = torch.ones(size, len(run.index.findings), dtype=torch.uint8, device=device)
    batch = Batch(
        pixels=pixels, targets=known, mask=known, sample_id=torch.arange(size, device=device),
        augment=identity_parameters(size).to(device),
    )  # fmt: skip
    assert run.inputs(batch).shape[-1] == input_side(side, recipe.augment)
    for _ in range(2):
        run.runtime.seed_step(recipe.seed, 0, 0)
        logits = run.model(run.inputs(batch)).float()
        (LOSSES[recipe.loss.name](logits, batch.targets, batch.mask) / known.numel()).backward()  # type: ignore[no-untyped-call]
        run.optimizer.zero_grad()
    with torch.no_grad():
        for buffer, kept in zip(run.module.buffers(), buffers, strict=True):
            buffer.copy_(kept)
