"""Scoring a split: every readable sample exactly once, whatever the number of ranks.

Shapes: B batch, N samples, C findings, K values of a sample.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distcxr.data.batch import Batch
from distcxr.data.order import EvalOrder
from distcxr.engine.preempt import Interrupted
from distcxr.engine.setup import Setup
from distcxr.losses import binary_logits, loss_logits
from distcxr.metrics.accuracy import accuracy
from distcxr.metrics.gather import gather_by_sample_id, gather_unreadable
from distcxr.metrics.scored import Scored
from distcxr.metrics.summary import Summary, summarise
from distcxr.models.freeze import evaluation_mode
from distcxr.stall.signs import SIGNS

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outputs:
    """What a network makes of samples.

    Attributes:
        rows: int64 [N], index rows in ascending order, files that can't be read left out.
        values_NK: float32. Of `predict` K is C: logits as of `losses.binary_logits`, so their sigmoid is the predicted
            probability, whatever the loss.
        unreadable: (index row, reason) of the files left out.
    """

    rows: NDArray[np.int64]
    values_NK: NDArray[np.float32]
    unreadable: tuple[tuple[int, str], ...]


@dataclass(frozen=True)
class Scores:
    """Logits of a split and what was made of them; the same on every rank.

    Attributes:
        rows, logits_NC: as `predict` gives them.
        scored: logits and labels, for every figure.
        loss: the loss that training minimises, its mean over known labels (`cross_entropy`: samples), float64 summed;
            None where it is undefined or not finite.
        accuracy: share of the samples with known labels for which the likeliest class is right; None without
            `cross_entropy`, or where it is undefined.
    """

    rows: NDArray[np.int64]
    logits_NC: NDArray[np.float32]
    loss: float | None
    report: Summary
    scored: Scored
    accuracy: float | None


def evaluate(
    setup: Setup, split: str, tta: Sequence[str] = (), stop: Callable[[], bool] = lambda: False
) -> Scores:  # fmt: skip
    """Score `train`, `val` or `test` with the bare module; `tta` and `stop` as for `predict`."""
    predicted = predict(setup, setup.splits.rows(split), tta, stop)
    log_unreadable(setup, split, predicted)
    return score_predicted(setup, split, predicted)


def log_unreadable(setup: Setup, split: str, predicted: Outputs) -> None:
    """Name in the log what is left out."""
    for row, reason in predicted.unreadable:
        logger.warning(f"{split}: left out {setup.index.file_name(row)}: {reason}")


def predict(
    setup: Setup, rows: NDArray[np.int64], tta: Sequence[str] = (), stop: Callable[[], bool] = lambda: False
) -> Outputs:
    """Logits of the index rows `rows`, as `compute` makes them; `tta` as for `logits_of`, `stop` as for `compute`."""
    return compute(setup, rows, logits_of(setup, tta), lambda: len(setup.index.findings), stop)


def logits_of(setup: Setup, tta: Sequence[str] = ()) -> Callable[[Batch], Tensor]:
    """For `compute`: what makes a batch's logits, float32 [B, C].

    Args:
        tta: names of views; the mean of their logits and of the plain image's is taken, in this order. A mean of
            logits rather than of probabilities: rare findings live where probabilities are flat, and a temperature
            fitted on it is that of one model.
    """

    def logits(batch: Batch) -> Tensor:
        logits_BC = setup.logits(setup.module, batch)
        for view in tta:
            logits_BC = logits_BC + setup.logits(setup.module, batch, view)
        return binary_logits(setup.loss.spec.name, logits_BC / (1 + len(tta)))

    return logits


def compute(
    setup: Setup, rows: NDArray[np.int64], values: Callable[[Batch], Tensor], width: Callable[[], int],
    stop: Callable[[], bool] = lambda: False,
) -> Outputs:  # fmt: skip
    """What the network makes of the plain images of the index rows `rows`; all ranks call it, and get the same.

    The module is called without DDP: its buffer broadcast would wait for ever where ranks have unequal numbers of
    batches. The BatchNorm statistics are rank 0's on every rank.

    Args:
        values: float32 [B, K] of a batch on the device, the network in evaluation mode.
        width: K; called where this rank has no batch.
        stop: called before every batch that all ranks have; the same answer on each of them.

    Raises:
        Interrupted: `stop` was true.
    """
    num_common = EvalOrder(rows, setup.plan).num_common
    setup.runtime.broadcast_buffers(setup.module)

    def before(number: int) -> None:
        if number < num_common and stop():
            raise Interrupted
        SIGNS.tick()

    values_BK, sample_id_B, own_unreadable = _of_this_rank(setup, rows, values, width, before)
    unreadable = gather_unreadable(own_unreadable)
    expected = np.setdiff1d(rows, [row for row, _ in unreadable])
    gathered, _ = gather_by_sample_id(values_BK, sample_id_B, expected)
    return Outputs(expected, gathered.numpy(), tuple(unreadable))


def compute_alone(
    setup: Setup, rows: NDArray[np.int64], values: Callable[[Batch], Tensor], before: Callable[[int], None]
) -> Outputs:
    """`compute` by one process, which asks no other for anything: the program around it may have a group of its own.

    Args:
        rows: ascending, one at least.
        before: called with its number before each batch.
    """
    values_NK, sample_id_N, unreadable = _of_this_rank(setup, rows, values, lambda: 0, before)
    return Outputs(sample_id_N.cpu().numpy(), values_NK.cpu().numpy(), tuple(unreadable))


@torch.no_grad()
def _of_this_rank(
    setup: Setup, rows: NDArray[np.int64], values: Callable[[Batch], Tensor], width: Callable[[], int],
    before: Callable[[int], None],
) -> tuple[Tensor, Tensor, list[tuple[int, str]]]:  # fmt: skip
    """Values [B, K] and sample ids [B] of what this rank could read of its share, on the device; what it could not."""
    device = setup.runtime.device
    parts: list[Tensor] = []
    ids: list[Tensor] = []
    unreadable: list[tuple[int, str]] = []
    with evaluation_mode(setup.module), closing(setup.batches(rows)) as batches:
        for number, batch in enumerate(batches):
            before(number)
            unreadable += batch.unreadable
            on_device = batch.to(device)
            parts.append(values(on_device))
            ids.append(on_device.sample_id)
        if not parts:  # more ranks than images
            parts = [torch.empty(0, width(), device=device)]
            ids = [torch.empty(0, dtype=torch.int64, device=device)]
    bad = [row for row, _ in unreadable]
    kept = torch.isin(torch.cat(ids), torch.tensor(bad, dtype=torch.int64, device=device), invert=True)
    return torch.cat(parts)[kept], torch.cat(ids)[kept], unreadable


def score_predicted(setup: Setup, split: str, predicted: Outputs) -> Scores:
    """Compare a split's logits with its labels."""
    rows, logits_NC = predicted.rows, predicted.values_NK
    targets, mask = setup.index.targets_NC[rows], setup.index.mask_NC[rows]
    scored = Scored.of(setup.index.findings, logits_NC, targets, mask, setup.index.patient_id[rows])
    unreadable = [(setup.index.file_name(row), reason) for row, reason in predicted.unreadable]
    report = summarise(split, scored, setup.recipe.eval.macro_findings, unreadable)
    right = accuracy(logits_NC, targets, mask) if setup.loss.spec.name == "cross_entropy" else None
    return Scores(rows, logits_NC, _mean_loss(setup, rows, logits_NC)[0], report, scored, right)


def _mean_loss(setup: Setup, rows: NDArray[np.int64], logits_NC: NDArray[np.float32]) -> tuple[float | None, int]:
    """The loss as `Scores.loss`, and of how many known labels (`cross_entropy`: samples)."""
    logits = loss_logits(setup.loss.spec.name, torch.from_numpy(logits_NC).double())
    loss = setup.loss.to(logits.device)  # float64 is slow on GPUs, and unknown to some
    targets, mask = (torch.from_numpy(labels[rows]) for labels in (setup.index.targets_NC, setup.index.mask_NC))
    known = int(loss.count(mask))
    mean = loss(logits, targets, mask).item() / known if known else math.nan
    return mean if math.isfinite(mean) else None, known


def batch_losses(setup: Setup, scores: Scores, step: int) -> list[dict[str, float | None]]:
    """The loss of one batch after the other, of `train.global_batch_size` readable images in the split's order: the
    same on any number of ranks, which share batches out otherwise."""
    size, found = setup.recipe.train.global_batch_size, []
    for number, start in enumerate(range(0, len(scores.rows), size)):
        part = slice(start, start + size)
        loss, known = _mean_loss(setup, scores.rows[part], scores.logits_NC[part])
        images = len(scores.rows[part])
        found.append({"step": step, "batch": number, "num_images": images, "num_known": known, "loss": loss})
    return found


def average(members: Sequence[Outputs], loss_name: str) -> Outputs:
    """The mean of several networks, float64 summed, over the samples that all of them could read: of their logits, or
    after `cross_entropy` of their log probabilities, so that the mean's probabilities sum to 1 as theirs do.
    """
    if len(members) == 1:
        return members[0]
    rows = members[0].rows
    for member in members[1:]:
        rows = np.intersect1d(rows, member.rows)
    logits = [member.values_NK[np.searchsorted(member.rows, rows)].astype(np.float64) for member in members]
    unreadable = {row: reason for member in reversed(members) for row, reason in member.unreadable}
    # What is the same for all classes of a sample makes no difference to a softmax: views' logits are averaged alike.
    mean_NC = torch.stack([loss_logits(loss_name, torch.from_numpy(one)) for one in logits]).mean(dim=0)
    binary_NC = binary_logits(loss_name, mean_NC).numpy().astype(np.float32)
    return Outputs(rows, binary_NC, tuple(sorted(unreadable.items())))
