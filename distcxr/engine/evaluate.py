"""Scoring a split: every readable sample exactly once, whatever the number of ranks."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from distcxr.data.augment import identity_parameters
from distcxr.data.loader import Loader
from distcxr.data.order import EvalOrder
from distcxr.engine.state import Evaluation
from distcxr.losses import LOSSES
from distcxr.metrics.gather import gather_by_sample_id, gather_unreadable
from distcxr.metrics.report import Report, build_report

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scores:
    """Logits of a split and what was made of them; the same on every rank.

    Attributes:
        rows: int64 [N], index rows in ascending order, files that can't be read left out.
        logits_NC: float32.
        loss: mean over known labels, float64 summed; None where it is undefined or not finite.
    """

    rows: NDArray[np.int64]
    logits_NC: NDArray[np.float32]
    loss: float | None
    report: Report


@torch.no_grad()
def evaluate(run: Evaluation, split: str) -> Scores:
    """Score `val` or `test` with the bare module.

    The module is called without DDP, whose buffer broadcast would wait for ever where ranks have unequal numbers of
    batches. The BatchNorm statistics are rank 0's on every rank.
    """
    runtime, rows = run.runtime, run.splits.rows(split)
    loader = Loader(run.index, EvalOrder(rows, run.plan), run.reader, lambda _, at: identity_parameters(len(at)))
    runtime.broadcast_buffers(run.module)
    run.module.eval()
    logits = [torch.empty(0, len(run.index.findings), device=runtime.device)]
    ids = [torch.empty(0, dtype=torch.int64, device=runtime.device)]
    unreadable: list[tuple[int, str]] = []
    for batch in loader.epoch(0):
        unreadable += batch.unreadable
        on_device = batch.to(runtime.device)
        with runtime.accelerator.autocast():
            logits.append(run.module(run.inputs(on_device)).float())
        ids.append(on_device.sample_id)
    run.module.train()

    bad = [sample_id for sample_id, _ in unreadable]
    kept = torch.isin(torch.cat(ids), torch.tensor(bad, dtype=torch.int64, device=runtime.device), invert=True)
    unreadable = gather_unreadable(unreadable)
    expected = np.setdiff1d(rows, [sample_id for sample_id, _ in unreadable])
    gathered, _ = gather_by_sample_id(torch.cat(logits)[kept], torch.cat(ids)[kept], expected)
    for sample_id, reason in unreadable:
        logger.warning(f"{split}: left out {run.index.file_name(sample_id)}: {reason}")
    targets, mask = run.index.targets_NC[expected], run.index.mask_NC[expected]
    report = build_report(
        split, run.index.findings, gathered.numpy(), targets, mask, run.recipe.eval.macro_findings,
        [(run.index.file_name(sample_id), reason) for sample_id, reason in unreadable],
    )  # fmt: skip
    known = int(mask.sum())
    loss = LOSSES[run.recipe.loss.name](gathered.double(), torch.from_numpy(targets), torch.from_numpy(mask))
    mean = loss.item() / known if known else math.nan
    return Scores(expected, gathered.numpy(), mean if math.isfinite(mean) else None, report)
