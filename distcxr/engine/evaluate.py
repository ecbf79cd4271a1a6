"""Scoring a split: every readable sample exactly once, whatever the number of ranks.

Shapes: B batch, N samples, C findings.
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

from distcxr.data.augment import identity_parameters
from distcxr.data.loader import Loader
from distcxr.data.order import EvalOrder
from distcxr.engine.preempt import Interrupted
from distcxr.engine.state import Evaluation
from distcxr.losses import binary_logits, loss_logits
from distcxr.metrics.gather import gather_by_sample_id, gather_unreadable
from distcxr.metrics.report import Report, build_report
from distcxr.models.freeze import evaluation_mode

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Predicted:
    """What a network says of a split; the same on every rank.

    Attributes:
        rows: int64 [N], index rows in ascending order, files that can't be read left out.
        logits_NC: float32, `losses.binary_logits`: their sigmoid is the predicted probability, whatever the loss.
        unreadable: (index row, reason) of the files left out.
    """

    rows: NDArray[np.int64]
    logits_NC: NDArray[np.float32]
    unreadable: tuple[tuple[int, str], ...]


@dataclass(frozen=True)
class Scores:
    """Logits of a split and what was made of them; the same on every rank.

    Attributes:
        rows, logits_NC: as in `Predicted`.
        loss: the loss that training minimises, its mean over known labels (`cross_entropy`: samples), float64 summed;
            None where it is undefined or not finite.
    """

    rows: NDArray[np.int64]
    logits_NC: NDArray[np.float32]
    loss: float | None
    report: Report


def evaluate(
    run: Evaluation, split: str, tta: Sequence[str] = (), stop: Callable[[], bool] = lambda: False
) -> Scores:  # fmt: skip
    """Score `train`, `val` or `test` with the bare module; `tta` and `stop` as for `predict`."""
    predicted = predict(run, run.splits.rows(split), tta, stop)
    say_unreadable(run, split, predicted)
    return judge(run, split, predicted)


def say_unreadable(run: Evaluation, split: str, predicted: Predicted) -> None:
    """Name in the log what is left out."""
    for row, reason in predicted.unreadable:
        logger.warning(f"{split}: left out {run.index.file_name(row)}: {reason}")


@torch.no_grad()
def predict(
    run: Evaluation, rows: NDArray[np.int64], tta: Sequence[str] = (), stop: Callable[[], bool] = lambda: False
) -> Predicted:
    """Logits of the index rows `rows`; all ranks call it.

    The module is called without DDP, whose buffer broadcast would wait for ever where ranks have unequal numbers of
    batches. The BatchNorm statistics are rank 0's on every rank.

    Args:
        tta: names of views; the mean of their logits and of the plain image's is taken, in this order. A mean of
            logits rather than of probabilities: rare findings live where probabilities are flat, and a temperature
            fitted on it is that of one model.
        stop: called before every batch that all ranks have; the same answer on each of them.

    Raises:
        Interrupted: `stop` said so.
    """
    runtime = run.runtime
    metadata = tuple(run.recipe.model.head.metadata)
    order = EvalOrder(rows, run.plan)
    loader = Loader(run.index, order, run.reader, lambda _, at: identity_parameters(len(at)), metadata)
    runtime.broadcast_buffers(run.module)
    logits = [torch.empty(0, len(run.index.findings), device=runtime.device)]
    ids = [torch.empty(0, dtype=torch.int64, device=runtime.device)]
    unreadable: list[tuple[int, str]] = []
    with evaluation_mode(run.module), closing(loader.epoch(0)) as batches:
        for number, batch in enumerate(batches):
            if number < order.num_common and stop():
                raise Interrupted
            unreadable += batch.unreadable
            on_device = batch.to(runtime.device)
            logits_BC = run.logits(run.module, on_device)
            for view in tta:
                logits_BC = logits_BC + run.logits(run.module, on_device, view)
            logits.append(binary_logits(run.loss.spec.name, logits_BC / (1 + len(tta))))
            ids.append(on_device.sample_id)

    bad = [row for row, _ in unreadable]
    kept = torch.isin(torch.cat(ids), torch.tensor(bad, dtype=torch.int64, device=runtime.device), invert=True)
    unreadable = gather_unreadable(unreadable)
    expected = np.setdiff1d(rows, [row for row, _ in unreadable])
    gathered, _ = gather_by_sample_id(torch.cat(logits)[kept], torch.cat(ids)[kept], expected)
    return Predicted(expected, gathered.numpy(), tuple(unreadable))


def judge(run: Evaluation, split: str, predicted: Predicted) -> Scores:
    """Hold a split's logits against its labels."""
    rows, logits_NC = predicted.rows, predicted.logits_NC
    targets, mask = run.index.targets_NC[rows], run.index.mask_NC[rows]
    report = build_report(
        split, run.index.findings, logits_NC, targets, mask, run.recipe.eval.macro_findings,
        [(run.index.file_name(row), reason) for row, reason in predicted.unreadable],
    )  # fmt: skip
    logits = loss_logits(run.loss.spec.name, torch.from_numpy(logits_NC).double())
    loss = run.loss.to(logits.device)  # float64 is slow on GPUs, and unknown to some
    known = int(loss.count(torch.from_numpy(mask)))
    summed = loss(logits, torch.from_numpy(targets), torch.from_numpy(mask)).item()
    mean = summed / known if known else math.nan
    return Scores(rows, logits_NC, mean if math.isfinite(mean) else None, report)


def average(members: Sequence[Predicted], loss_name: str) -> Predicted:
    """The mean of several networks, float64 summed, over the samples that all of them could read: of their logits, or
    after `cross_entropy` of their log probabilities, so that the mean's probabilities sum to 1 as theirs do.
    """
    if len(members) == 1:
        return members[0]
    rows = members[0].rows
    for member in members[1:]:
        rows = np.intersect1d(rows, member.rows)
    logits = [member.logits_NC[np.searchsorted(member.rows, rows)].astype(np.float64) for member in members]
    unreadable = {row: reason for member in reversed(members) for row, reason in member.unreadable}
    # What is the same for all classes of a sample makes no difference to a softmax: views' logits are averaged alike.
    mean_NC = torch.stack([loss_logits(loss_name, torch.from_numpy(one)) for one in logits]).mean(dim=0)
    binary_NC = binary_logits(loss_name, mean_NC).numpy().astype(np.float32)
    return Predicted(rows, binary_NC, tuple(sorted(unreadable.items())))
