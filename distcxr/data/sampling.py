"""Sampling of the training split: which images an epoch has, and how often, by caps per label and by weights of labels
and of the members of a joint data set.

The labels of an image are the recipe's findings that it is known to show. Images that show none of them form a label
of their own, `none of these`; with all of NIH's findings in the recipe that is No Finding.

Shapes: N training images, L labels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from distcxr.data.index import SampleIndex
from distcxr.data.labels import lost_findings
from distcxr.data.order import BatchPlan, TrainOrder, hash64
from distcxr.recipe.selection import Sampling

NONE = "none of these"

_STREAM = 0xCA9  # keeps the cap's choice apart from other hashes of the same seed


def train_order(
    index: SampleIndex, rows: NDArray[np.int64], spec: Sampling, *, seed: int, stage: int, plan: BatchPlan
) -> TrainOrder:
    """The order of a stage's epochs over the training split `rows`, int64 [N], ascending: first the cap, then the
    weights. It has as many samples an epoch as there are images after the cap, and notes the effect on each label.

    Args:
        spec: the recipe's `data.sampling`, or the stage's.
        seed: with `stage` (from 0) it decides which images the cap leaves out, with the epoch the order.

    Raises ValueError: fewer images than a global batch, or a cap that leaves a label without images.
    """
    weighted = len({member.weight for member in index.members}) > 1
    if spec.cap_per_label is None and spec.balance == "none" and not weighted:
        return TrainOrder(rows, seed, plan)
    if weighted and spec.redraw == "epoch":
        raise ValueError("data.sampling.redraw=epoch does not go with data.members of different weights")
    names, shown_NL = labels_of(index, rows)
    notes, rows_of = [], None
    if spec.cap_per_label is not None:
        before_L, num_before = shown_NL.sum(axis=0), len(rows)
        rows_of = _Capped(rows, shown_NL, spec.cap_per_label, seed, stage) if spec.redraw == "epoch" else None
        kept_N = capped(shown_NL, spec.cap_per_label, _ranks(rows, seed, stage))
        rows, shown_NL = rows[kept_N], shown_NL[kept_N]
        after_L = shown_NL.sum(axis=0)
        key = f"data.sampling.cap_per_label={spec.cap_per_label}"
        if lost := lost_findings(names, before_L, after_L):
            raise ValueError(
                f"{key} leaves no training image of {lost}: other findings on the same images fill the cap first. "
                "Raise it, or leave that finding out of data.findings"
            )
        if len(rows) < plan.global_batch_size <= num_before:
            raise ValueError(
                f"{key} leaves {len(rows):,} of {num_before:,} training images, fewer than "
                f"train.global_batch_size={plan.global_batch_size}: raise the cap or lower the batch"
            )
        changed = (f"{name} {old:,} -> {new:,}" for name, old, new in zip(names, before_L, after_L, strict=True))
        again = ", drawn anew for every epoch" if rows_of else ""
        notes.append(f"{key}: {len(rows):,} of {num_before:,} training images{again}; {', '.join(changed)}")
    cumulative_N = None
    if spec.balance != "none" or weighted:
        balanced = spec.balance != "none"
        weight_N = label_weights(shown_NL, root=spec.balance == "sqrt") if balanced else np.ones(len(rows))
        if weighted:
            member_N = index.member_of(rows)
            weight_N = weight_N * np.array([member.weight for member in index.members])[member_N]
            share_M = np.bincount(member_N, weight_N, len(index.members)) / weight_N.sum()
            shares = _shares([member.name for member in index.members], share_M)
            notes.append(f"data.members: weights: samples of an epoch, on average: {shares}")
        cumulative_N = np.cumsum(weight_N)
        if balanced:
            shares = _shares(names, weight_N @ shown_NL / cumulative_N[-1])
            notes.append(f"data.sampling.balance={spec.balance}: samples that show it, on average: {shares}")
    return TrainOrder(rows, seed, plan, cumulative_N, rows_of, tuple(notes))


def _shares(names: Sequence[str], shares: NDArray[np.float64]) -> str:
    return ", ".join(f"{name} {100 * share:.1f} %" for name, share in zip(names, shares, strict=True))


def _ranks(rows: NDArray[np.int64], seed: int, *words: int) -> NDArray[np.uint64]:
    return hash64(seed, _STREAM, *words, rows.astype(np.uint64))


class _Capped:
    """The rows that a cap keeps in an epoch; epoch 0 has those of the stage."""

    def __init__(self, rows: NDArray[np.int64], shown_NL: NDArray[np.bool_], cap: int, seed: int, stage: int) -> None:
        self._rows, self._shown_NL, self._cap, self._words = rows, shown_NL, cap, (seed, stage)
        self._last: tuple[int, NDArray[np.int64]] = (-1, rows)

    def __call__(self, epoch: int) -> NDArray[np.int64]:
        if self._last[0] != epoch:  # a resumed or a stopped epoch asks twice
            words = (*self._words, epoch) if epoch else self._words
            self._last = epoch, self._rows[capped(self._shown_NL, self._cap, _ranks(self._rows, *words))]
        return self._last[1]


def labels_of(index: SampleIndex, rows: NDArray[np.int64]) -> tuple[tuple[str, ...], NDArray[np.bool_]]:
    """Names of the labels that any of `rows` shows, and which image shows which: bool [N, L], one or more in a row."""
    shown = (index.targets_NC[rows] & index.mask_NC[rows]) != 0
    shown_NL = np.concatenate([shown, ~shown.any(axis=1, keepdims=True)], axis=1)
    met_L = shown_NL.sum(axis=0) > 0
    names = tuple(name for name, met in zip((*index.findings, NONE), met_L, strict=True) if met)
    return names, np.ascontiguousarray(shown_NL[:, met_L])


def capped(shown_NL: NDArray[np.bool_], cap: int, rank_N: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Which images stay when no label should have more than `cap`: bool [N].

    1. A label with `cap` images or fewer keeps them all.
    2. The other images come one by one, ordered by their rarest label, the rarest first, then by `rank_N`. An image
       stays while each of its labels has fewer than `cap` so far.

    So a label is above the cap only by images of step 1, and ends below it only if it had no more or if the rest of
    its images show another label that is full. The price of rarest first: under a low cap a common label consists of
    images that show a rarer one beside it.

    Args:
        shown_NL: which image shows which label, one or more each.
        rank_N: uint64 [N], random numbers that order images with the same rarest label.
    """
    num_L = shown_NL.sum(axis=0)
    kept_N: NDArray[np.bool_] = shown_NL[:, num_L <= cap].sum(axis=1) > 0
    free_L = np.maximum(cap - shown_NL[kept_N].sum(axis=0), 0)  # step 1 may have gone beyond the cap
    rarity_L = np.argsort(np.argsort(num_L, kind="stable"))
    rarest_N = np.where(shown_NL, rarity_L, len(num_L)).min(axis=1)
    queue = np.lexsort((rank_N, rarest_N))
    queue = queue[~kept_N[queue]]
    while len(queue):  # each time round fills a label, so there are L rounds at most
        queue = queue[~shown_NL[queue][:, free_L <= 0].any(axis=1)]
        full_N = (np.cumsum(shown_NL[queue], axis=0) > free_L).any(axis=1)
        stop = int(full_N.argmax()) if full_N.any() else len(queue)
        kept_N[queue[:stop]] = True
        free_L -= shown_NL[queue[:stop]].sum(axis=0)
        queue = queue[stop:]
    return kept_N


def label_weights(shown_NL: NDArray[np.bool_], *, root: bool) -> NDArray[np.float64]:
    """Sampling weight of each image: float64 [N].

    An image weighs the sum of 1 / n over its labels (of 1 / sqrt(n) with `root`), n being the number of images that
    show the label. This amounts to sampling a label first, all equally often (or in proportion to sqrt(n)), and
    then any of its images. A label is sampled more often than that where it occurs together with others.
    """
    num_L = shown_NL.sum(axis=0).astype(np.float64)
    weights: NDArray[np.float64] = shown_NL @ (1 / np.sqrt(num_L) if root else 1 / num_L)
    return weights
