"""Lateral views beside frontal images, for `data.lateral: second_input`.

    index: study, view ──► pair_laterals ──► index.lateral ──► with_laterals: the rows to read ──► PixelReader
    Batch.pixels [B, 2, S, S] ◄── side_by_side ◄──────────────────────────────── pixels ◄──────────────┘

A reader is asked for both images of a sample in one request, so it need not know of pairs.

Shapes: N samples, B of a batch, L of them with a lateral view.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distcxr.data.index import SampleIndex
from distcxr.data.quarantine import read_quarantine
from distcxr.recipe.data import Data

Unreadable = tuple[tuple[int, str], ...]
"""(position, reason) of each file that can't be read."""


def is_frontal(labels: SampleIndex) -> NDArray[np.bool_]:
    """Which images lateral views can be beside, bool [N]: those known to be PA or AP; without a study those, too, of
    which the view is not known, such as all of RSNA's."""
    found: NDArray[np.bool_] = np.isin(labels.view, ("PA", "AP")) | ((labels.view == "") & (_studies(labels) < 0))
    return found


def pair_laterals(data: Data, labels: SampleIndex) -> SampleIndex:
    """The index with the lateral view of each frontal image: of the same patient's study, the first in its order that
    `data.quarantine` does not name.

    Raises ValueError: no image has one.
    """
    is_lateral = labels.view == "LATERAL"
    studies = _studies(labels)
    study_of = list(zip(labels.patient_id.tolist(), studies.tolist(), strict=True))
    usable = is_lateral & (studies >= 0)
    if data.quarantine is not None:
        usable &= ~np.isin(labels.path, [os.fsencode(path) for path in read_quarantine(data.quarantine, labels)])
    first: dict[tuple[int, int], int] = {}
    for row in np.flatnonzero(usable).tolist():
        first.setdefault(study_of[row], row)
    frontal = np.flatnonzero(is_frontal(labels))
    lateral_N = np.full(len(labels), -1, dtype=np.int64)
    lateral_N[frontal] = [first.get(study_of[row], -1) for row in frontal.tolist()]
    if not (lateral_N >= 0).any():
        raise ValueError(
            f"data.lateral: {data.lateral}: no image has a lateral view in its study: of {len(labels):,} images "
            f"{len(frontal):,} are frontal (PA, AP), {np.count_nonzero(is_lateral):,} lateral, and of "
            f"{np.count_nonzero(studies >= 0):,} the study is known. Set it to none"
        )
    return replace(labels, lateral=lateral_N)


def describe_pairs(index: SampleIndex, splits: Iterable[tuple[str, NDArray[np.int64]]]) -> str:
    """A line for the log: how many images of each split have a lateral view."""
    assert index.lateral is not None
    counts = [f"{np.count_nonzero(index.lateral[rows] >= 0):,} of {len(rows):,} {name}" for name, rows in splits]
    return f"lateral views beside frontal images: {', '.join(counts)}"


def pair_hash(index: SampleIndex, rows: NDArray[np.int64]) -> str:
    """sha256 of which lateral views are beside the images `rows`, by their paths."""
    assert index.lateral is not None
    lateral = index.lateral[rows]
    paths = np.where(lateral < 0, b"", index.path[lateral])
    return hashlib.sha256(b"\n".join(paths.tolist())).hexdigest()


def with_laterals(index: SampleIndex, sample_id: NDArray[np.int64]) -> NDArray[np.int64]:
    """The rows to read for samples, int64 [B + L]: the samples themselves, then the lateral views that there are."""
    lateral = _laterals(index, sample_id)
    return np.concatenate([sample_id, lateral[lateral >= 0]])


def side_by_side(
    index: SampleIndex, sample_id: NDArray[np.int64], pixels: Tensor, bad: Unreadable
) -> tuple[Tensor, Unreadable]:
    """What was read for `with_laterals`, uint8 [B + L, 1, S, S], as [B, 2, S, S]; and (position, reason) of each sample
    with an image that can't be read.

    An image without a lateral view is there twice, so that BatchNorm sees X-rays alone; the network has no other use
    for the second.
    """
    num, lateral = len(sample_id), _laterals(index, sample_id)
    having = np.flatnonzero(lateral >= 0)
    second = pixels[:num].clone()
    second[torch.from_numpy(having).to(pixels.device)] = pixels[num:]
    both = torch.cat([pixels[:num], second], dim=1)
    reasons: dict[int, str] = {}
    for position, reason in bad:
        if position >= num:
            sample = int(having[position - num])
            position, reason = sample, f"its lateral view {index.file_name(int(lateral[sample]))}: {reason}"
        reasons.setdefault(position, reason)
    return both.pin_memory() if pixels.is_pinned() else both, tuple(sorted(reasons.items()))


def _studies(labels: SampleIndex) -> NDArray[np.int64]:
    return np.full(len(labels), -1) if labels.study is None else labels.study


def _laterals(index: SampleIndex, sample_id: NDArray[np.int64]) -> NDArray[np.int64]:
    """The row of each sample's lateral view, int64 [B]; -1 = none."""
    return np.full(len(sample_id), -1) if index.lateral is None else index.lateral[sample_id]
