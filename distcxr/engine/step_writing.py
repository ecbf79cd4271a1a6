"""What is written of updates, at the steps where something is due: `steps.csv`, TensorBoard, the terminal."""

from __future__ import annotations

import logging
import math
import resource
import time
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from distcxr.engine.divergence import Update, last_to_keep, message, read_updates, write_file
from distcxr.engine.state import Run
from distcxr.runfolder import filenames
from distcxr.runfolder.history import append_steps
from distcxr.runfolder.loss_spikes import Spike, typical_loss

logger = logging.getLogger(__name__)


def write_steps(run: Run) -> None:
    """Read the waiting losses from the device and write them: `steps.csv`, TensorBoard, the terminal.

    Raises:
        ValueError: training has diverged; what came before is written, and a file that names the images.
    """
    setup, steps, state = run.setup, run.steps, run.state
    if not steps.pending:
        return
    updates, num_unreadable = read_updates(run)
    elapsed_s = max(time.monotonic() - steps.started_s, 1e-9)
    figures = {
        "img_per_s": len(updates) * setup.plan.global_batch_size / elapsed_s,
        "data_wait_pct": 100 * steps.data_s / elapsed_s,
        "memory_mb": _memory_mb(setup.runtime.device),
    }
    num_kept = last_to_keep(run, updates)
    kept = updates[:num_kept]
    rows = [update.row | figures for update in kept]
    finite = [update for update in kept if update.is_finite]
    state.num_unreadable += num_unreadable
    state.epoch_loss += sum(update.loss for update in finite)
    state.epoch_train_s += elapsed_s
    if setup.runtime.is_main:
        append_rows(run, map(_rounded, rows))
    if run.tracker:
        for update in finite:
            run.tracker.scalars(_curves(update), update.step)
        run.tracker.scalars({f"train/{name}": value for name, value in figures.items()}, state.step)
    for number, update in enumerate(kept):
        if not update.is_finite:
            state.num_skipped, state.epoch_skipped = state.num_skipped + 1, state.epoch_skipped + 1
            write_file(run, updates, number, skipped=True)
    if num_kept < len(updates):
        run.saver.wait()  # the message names the newest checkpoint
        write_file(run, updates, num_kept, skipped=False)
        raise ValueError(message(run, updates[num_kept]))
    _log_spikes(run, finite)
    if run.progress and run.due(run.horizon.log_every):
        run.progress.show(rows[-1]["step"], rows[-1]["epoch"], rows[-1])
    steps.start_window()
    if state.num_unreadable > setup.recipe.data.max_errors:
        raise ValueError(
            f"{state.num_unreadable} files of one epoch can't be read, more than data.max_errors="
            f"{setup.recipe.data.max_errors}; log.txt and the terminal name them"
        )


def append_rows(run: Run, rows: Iterable[dict[str, Any]]) -> None:
    """Append rows to `steps.csv`, and those that wait; a table is no reason to end a run that can still be saved."""
    waiting = [*run.steps.unwritten, *rows]
    try:
        append_steps(run.folder, waiting)
    except OSError as error:
        if not run.steps.unwritten:
            path = run.folder / filenames.STEPS
            logger.warning(f"{path} can't be written ({error.strerror or error}): tried again with the next rows")
        run.steps.unwritten = waiting
    else:
        run.steps.unwritten = []


def _curves(update: Update) -> dict[str, float]:
    """A finite update's points, by tag."""
    points = {"train/loss": update.loss, "train/lr": update.row["lr"]}
    if update.grad_norm is not None and math.isfinite(update.grad_norm):  # fp16 skips those that are not
        points["train/grad_norm"] = update.grad_norm
    return points


def _log_spikes(run: Run, updates: Sequence[Update]) -> None:
    """Log the highest of the losses that are far above those before; the report marks them all."""
    spikes = []
    for update in updates:
        typical = typical_loss(run.steps.recent, update.loss)
        if typical is not None:
            spikes.append(Spike(update.step, update.loss, typical))
        run.steps.recent.append(update.loss)
    if spikes:
        highest = max(spikes, key=lambda spike: spike.loss)
        more = f"; {len(spikes)} spikes since the last line" if len(spikes) > 1 else ""
        logger.warning(f"step {highest.step}: the loss spikes to {highest}{more}")


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    """The row with speeds rounded; the loss keeps every digit, so runs can be compared bit for bit."""
    return row | {name: round(row[name], 1) for name in ("img_per_s", "data_wait_pct", "memory_mb")}


def _memory_mb(device: torch.device) -> float:
    """Peak memory in MB: of the GPU where there is one, of this process otherwise."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3  # kilobytes on Linux
