"""One optimiser update, and the warm-up that makes a resumed run repeat a straight one."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from distcxr.data.augment import identity_parameters, input_side
from distcxr.data.batch import Batch
from distcxr.data.metadata import metadata_width
from distcxr.engine.bn_averages import GlobalAverages
from distcxr.engine.kept_buffers import KeptBuffers
from distcxr.engine.setup import Setup
from distcxr.engine.state import TrainState
from distcxr.engine.training import Training
from distcxr.engine.whole_batch import WholeBatch, scored_first
from distcxr.models.ema import Ema
from distcxr.optim import clipped, left_out, set_lr, total_norm


class Outcome(NamedTuple):
    """What an update leaves behind, on the device.

    Attributes:
        share: this rank's part of the global batch's loss, float32; the ranks' shares sum to the loss.
        grad_norm: of the update before clipping, the same on all ranks; None where nothing asks for it.
        skipped: with `train.on_nan=skip`, whether the update was left out; the same on all ranks.
    """

    share: Tensor
    grad_norm: Tensor | None
    skipped: Tensor | None


class Updated(Protocol):
    """What an update needs of a run, or of what trains without one."""

    @property
    def setup(self) -> Setup: ...
    @property
    def training(self) -> Training: ...
    @property
    def ema(self) -> Ema | None: ...
    @property
    def state(self) -> TrainState: ...
    @property
    def lr(self) -> float: ...


def train_step(run: Updated, micro_batches: Sequence[Batch]) -> Outcome:
    """Forward, backward and update for this rank's part of one global batch. Nothing here waits for the device.

    The loss of every micro-batch is divided by the known labels of the whole global batch: all ranks, accumulation
    included. So the gradient is that of one large batch, whatever the number of ranks. A loss of pairs is of the pairs
    of the global batch, too: with accumulation every image is then shown to the network twice.

    With `train.on_nan=skip` an update that is not finite on any rank leaves weights, moments and buffers as they were,
    on all ranks; the average of `train.ema` takes these in once more.

    Args:
        micro_batches: on the device; `accumulation` of them.
    """
    setup, training = run.setup, run.training
    runtime = setup.runtime
    micro_batches = [training.transform.with_mixed_labels(batch) for batch in micro_batches]
    # Summed over the ranks while the forward pass runs.
    known = runtime.begin_sum(torch.stack([training.loss.count(batch.mask) for batch in micro_batches]).sum())
    share = torch.zeros((), device=runtime.device)
    skips = setup.recipe.train.on_nan == "skip"
    before = KeptBuffers(setup.module) if skips else None
    is_bad = None
    averages = GlobalAverages(setup.module) if setup.recipe.train.bn_averages == "global" else None
    set_lr(training.optimizer, run.lr)
    whole = None
    if training.loss.of_pairs and len(micro_batches) > 1:
        numbered = [(setup.plan.micro_batch(micro_step), batch) for micro_step, batch in enumerate(micro_batches)]
        whole = WholeBatch(runtime, scored_first(setup, training, run.state.step, numbered), micro_batches)
    for micro_step, batch in enumerate(micro_batches):
        runtime.seed_step(setup.recipe.seed, run.state.step, setup.plan.micro_batch(micro_step))
        last = micro_step == len(micro_batches) - 1
        with nullcontext() if last else runtime.accelerator.no_sync(training.model):
            with training.batch_counts.together():
                logits = setup.logits(training.model, batch, transform=training.transform)
            if training.loss.of_pairs:
                whole = whole or WholeBatch(runtime, [logits.detach()], micro_batches)
                loss = training.loss(*whole.around(logits, micro_step)) / known().clamp(min=1)
                share += loss.detach() / (len(micro_batches) * runtime.world_size)  # every one of them has it whole
            else:
                loss = training.loss(logits, batch.targets, batch.mask) / known().clamp(min=1)
                share += loss.detach()
            if last and skips:  # over the ranks while the backward pass runs
                is_bad = runtime.begin_sum((~share.isfinite()).float())
            # DDP averages the ranks' gradients where their sum is meant.
            runtime.accelerator.backward(loss * runtime.world_size)
            if averages is not None:
                averages.take()
    grad_norm, skipped = update(training.optimizer, setup, None if is_bad is None else is_bad() > 0)
    if averages is not None:
        averages.finish(runtime.sum_over_ranks, runtime.world_size)
    if before is not None and skipped is not None:
        before.restore(skipped)
    if run.ema is not None:
        run.ema.update(run.state.step)
    return Outcome(share, grad_norm, skipped)


def update(optimizer: Any, setup: Setup, is_bad: Tensor | None = None) -> tuple[Tensor | None, Tensor | None]:
    """Clip the gradients as the recipe asks, change the weights, drop the gradients.

    Args:
        is_bad: with `train.on_nan=skip`, whether the loss is not finite, on the device: then nothing is changed, nor
            where the gradient is not finite (fp16: that is GradScaler's to see, every day).

    Returns:
        The gradient's norm where it is known, and whether the update was left out where that is asked.
    """
    accelerator, clip_norm = setup.runtime.accelerator, setup.recipe.train.clip_norm
    norm, skipped = None, is_bad
    if accelerator.scaler is not None:  # fp16: the gradients are GradScaler's multiples until it has looked at them
        if is_bad is not None:
            _spoil(optimizer, is_bad)
        if clip_norm is not None:
            norm = accelerator.clip_grad_norm_(setup.module.parameters(), clip_norm)
        optimizer.step()
    else:
        bare = optimizer.optimizer
        with ExitStack() as changes:
            if clip_norm is not None or is_bad is not None:
                norm = total_norm(bare)
            if clip_norm is not None and norm is not None:
                changes.enter_context(clipped(bare, clip_norm, norm))
            if is_bad is not None and norm is not None:
                skipped = is_bad | ~norm.isfinite()
                changes.enter_context(left_out(bare, skipped))
            optimizer.step()
    optimizer.zero_grad()
    return norm, skipped


def _spoil(optimizer: Any, where: Tensor) -> None:
    """Have GradScaler see a gradient that is not finite, and skip the update, where a loss without one was not."""
    gradients = [parameter.grad for group in optimizer.param_groups for parameter in group["params"]]
    smallest = min((gradient for gradient in gradients if gradient is not None), key=Tensor.numel)
    smallest.add_(torch.where(where, torch.nan, 0.0))


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
    """A micro-batch of the real shape, on the device, with every label known; every second image shows all findings."""
    size, side, device = setup.plan.per_device_batch_size, setup.recipe.data.image_size, setup.runtime.device
    known = torch.ones(size, len(setup.index.findings), dtype=torch.uint8, device=device)
    positive = torch.arange(1, size + 1, device=device).remainder(2).byte()[:, None]
    pixels = torch.arange(size * side * side, device=device).view(size, 1, side, side).remainder(251).byte()
    return Batch(
        pixels=pixels.repeat(1, setup.recipe.data.num_views, 1, 1),
        targets=known * positive, mask=known, sample_id=torch.arange(size, device=device),
        augment=identity_parameters(size).to(device),
        metadata=torch.zeros(size, metadata_width(setup.recipe.metadata), device=device),
    )  # fmt: skip
