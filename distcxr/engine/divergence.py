"""Updates with a loss or a gradient that is not finite: found when losses are read, written to a file, explained.

A gradient that is not finite is a reason of its own, except under fp16: GradScaler makes some, skips those updates and
lowers its scale, and a finite loss shows that nothing else was wrong.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch

from distcxr.data.augment import columns_of, draw_parameters
from distcxr.engine.state import Run
from distcxr.runfolder.diverged import in_json, write_diverged
from distcxr.runfolder.filenames import diverged
from distcxr.runfolder.layout import last_folders, step_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Update:
    """An update as it was read from the device.

    Attributes:
        row: of `steps.csv`, with its loss over all ranks.
        batch: its global batch of the epoch.
        grad_norm: None where it is not known.
        is_finite: whether loss and gradient were.
        shares: each rank's part of the loss; empty where all updates read with it are finite.
    """

    row: dict[str, Any]
    batch: int
    grad_norm: float | None
    is_finite: bool
    shares: tuple[float, ...] = ()

    @property
    def step(self) -> int:
        """Its number, from 1."""
        return int(self.row["step"])

    @property
    def loss(self) -> float:
        """Over all ranks."""
        return float(self.row["loss"])


def read_updates(run: Run) -> tuple[list[Update], int]:
    """Read the waiting updates from the device; and the files that no rank could read meanwhile. All ranks call it.

    The only host sync of a window without a bad update.
    """
    runtime, pending = run.setup.runtime, run.steps.pending
    num = len(pending)
    shares = torch.stack([update.share for update in pending]).float()
    counts = torch.tensor([float(run.steps.num_unreadable)], device=runtime.device)
    summed = runtime.sum_over_ranks(torch.cat([shares, counts]))
    own = [update.grad_norm for update in pending if update.grad_norm is not None]  # of all updates or of none
    own += [update.skipped for update in pending if update.skipped is not None]
    values: list[float] = torch.cat([summed, torch.stack([one.float() for one in own])] if own else [summed]).tolist()
    losses, num_unreadable, rest = values[:num], round(values[num]), values[num + 1 :]
    norms = rest[:num] if pending[0].grad_norm is not None else [None] * num
    skipped = rest[-num:] if pending[0].skipped is not None else [0.0] * num
    is_fp16 = runtime.accelerator.scaler is not None
    updates = []
    for update, loss, norm, left_out in zip(pending, losses, norms, skipped, strict=True):
        is_finite = math.isfinite(loss) and (is_fp16 or norm is None or math.isfinite(norm)) and not left_out
        updates.append(Update(update.row | {"loss": loss}, update.batch, norm, is_finite))
    if not all(update.is_finite for update in updates):
        by_rank = torch.zeros(runtime.world_size, num, device=runtime.device)
        by_rank[runtime.rank] = shares
        columns = zip(*runtime.sum_over_ranks(by_rank).tolist(), strict=True)
        updates = [replace(update, shares=column) for update, column in zip(updates, columns, strict=True)]
    return updates, num_unreadable


def last_to_keep(run: Run, updates: Sequence[Update]) -> int:
    """How many of the updates come before the one that ends the run; all of them where none does."""
    train = run.setup.recipe.train
    left = train.max_skips - run.state.num_skipped if train.on_nan == "skip" else 0
    for number, update in enumerate(updates):
        if not update.is_finite:
            left -= 1
            if left < 0:
                return number
    return len(updates)


def write_file(run: Run, updates: Sequence[Update], number: int, *, skipped: bool) -> None:
    """Write what is known of `updates[number]`, on rank 0: its images on all ranks, and the updates read with it."""
    if not run.setup.runtime.is_main:
        return
    update, setup = updates[number], run.setup
    scaler = setup.runtime.accelerator.scaler
    content = {
        "step": update.step,
        "epoch": update.row["epoch"],
        "batch": update.batch,
        "stage": run.state.stage,
        "skipped": skipped,
        "loss": in_json(update.loss),
        "grad_norm": in_json(update.grad_norm),
        "lr": update.row["lr"],
        "grad_scale": scaler.get_scale() if scaler is not None else None,
        "world_size": setup.runtime.world_size,
        "accumulation": setup.plan.accumulation,
        "identity": setup.recipe.identity(),
        "recipe": setup.recipe.model_dump(mode="json"),
        "hashes": setup.hashes,
        "augment_columns": list(columns_of(run.training.stage.augment)),
        "ranks": [_rank(run, update, rank) for rank in range(setup.runtime.world_size)],
        "steps": [
            {"step": one.step, "loss": in_json(one.loss), "grad_norm": in_json(one.grad_norm), "lr": one.row["lr"]}
            for one in updates
        ],
    }
    try:
        path = write_diverged(run.folder, content)
    except OSError as error:
        path = run.folder / diverged(update.step)
        logger.warning(f"{path} can't be written ({error.strerror or error}): its images are not kept")
        return
    if skipped:
        logger.warning(
            f"step {update.step}: {_what(update)}; the update was left out, {run.state.num_skipped} of at most "
            f"train.max_skips={setup.recipe.train.max_skips}. `distcxr replay {path}` shows the images"
        )


def _rank(run: Run, update: Update, rank: int) -> dict[str, Any]:
    """What a rank trained on. Order and augmentation are functions of (seed, epoch, position): nothing was kept."""
    setup, stage = run.setup, run.stage
    order = replace(stage.order, plan=replace(setup.plan, rank=rank))
    micro_batches = list(islice(order.epoch(update.row["epoch"], update.batch), setup.plan.accumulation))
    samples = [row for _, rows in micro_batches for row in rows.tolist()]
    augment = [
        row
        for positions, _ in micro_batches
        for row in draw_parameters(
            stage.augment, seed=setup.recipe.seed, epoch=update.row["epoch"], positions=positions
        ).tolist()
    ]
    return {
        "rank": rank, "loss": in_json(update.shares[rank]), "sample_id": samples,
        "files": setup.index.file_names(samples), "augment": augment,
    }  # fmt: skip


def _what(update: Update) -> str:
    if math.isfinite(update.loss):
        return f"the gradient's norm is {update.grad_norm} (the loss {update.loss:.4g})"
    return f"the loss is {update.loss}"


def message(run: Run, update: Update) -> str:
    """What ended the run, what to change before it is started again, and where the images are named."""
    train, num = run.setup.recipe.train, run.state.num_skipped
    more = f", after {num} updates left out (train.max_skips={train.max_skips})" if train.on_nan == "skip" else ""
    path = run.folder / diverged(update.step)
    replay = f". `distcxr replay {path}` shows its images and where they stop being finite" if path.is_file() else ""
    return f"{_what(update)} at step {update.step}{more}: training has diverged. {remedies(run)}{replay}"


def remedies(run: Run) -> str:
    """What to change, and from where a run with the change begins: of what this run has, nothing that it has not."""
    train, stage = run.setup.recipe.train, run.stage
    own = train.stages and train.stages[stage.number - 1].lr is not None
    changes = [f"{f'train.stages.{stage.number - 1}.lr' if own else 'optim.lr'} (lower than {stage.base_lr:g})"]
    changes.append("train.clip_norm" + ("=1" if train.clip_norm is None else f" (lower than {train.clip_norm:g})"))
    if train.precision != "no":
        changes.append("train.precision=" + ("bf16 or no" if train.precision == "fp16" else "no"))
    changes.append("train.on_nan=skip" if train.on_nan == "stop" else f"train.max_skips (more than {train.max_skips})")
    last = last_folders(run.folder)
    begin = f"resumes from step {step_of(last[0])}" if last else "begins anew, as there is no checkpoint yet,"
    return (
        f"The same command {begin} and is likely to end here again: give output={run.folder} and change one of "
        + ", ".join(changes)
    )
