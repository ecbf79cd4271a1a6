"""What of a run can be scored on other data: shared findings, and patients that it has seen."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path

import numpy as np

from distcxr.data.dataset import Dataset, open_dataset
from distcxr.data.index import SampleIndex
from distcxr.data.labels import NO_FINDING
from distcxr.data.shared_findings import shared_findings, with_columns
from distcxr.engine.checkpoint import Checkpoint
from distcxr.engine.compatible import shared_patients
from distcxr.engine.folder import folder_for
from distcxr.engine.validated import Validated, scored_folder
from distcxr.losses import check_exclusive
from distcxr.own_parts import open_parts

_IDS_OF_ITS_OWN = ("csv", "folders", "python")
"""Kinds of data set in which two with other label files are other data sets: their patients are numbered anew."""


@dataclass(frozen=True)
class Tested:
    """A run to test: its checkpoint and what its own validation chose."""

    checkpoint: Checkpoint
    known: Validated
    name: str

    @cached_property
    def folder(self) -> Path:
        """Where its results are; ValueError outside a run folder."""
        folder_for(self.checkpoint)
        found = scored_folder(self.checkpoint.path)
        assert found is not None
        return found

    @property
    def trained_on(self) -> str:
        """What to call the data it was trained on: where anybody makes such, with their folder's name."""
        data = self.checkpoint.recipe.data
        root = data.root if data.dataset in _IDS_OF_ITS_OWN else None
        return data.dataset if root is None else f"{data.dataset} {root.name}"

    @cached_property
    def own_files(self) -> tuple[set[str], set[str]] | None:
        """All image files of the data set that it was trained on, and those of train and val; None where these are
        not to be had."""
        recipe = self.checkpoint.recipe
        try:
            open_parts(recipe.own_functions(), recipe.sources, only="data.")
            own = open_dataset(recipe)
        except (ValueError, OSError):
            return None
        seen = np.concatenate([own.splits.train, own.splits.val])
        files = _files(own.index)
        return set(files), {files[row] for row in seen.tolist()}


@dataclass
class Pair:
    """A run on a data set.

    Attributes:
        shared: findings that both have: the run's names, and the data set's for each.
        reason: why nothing is scored; None where something is.
        notes: sentences that belong beside the figures.
    """

    shared: dict[str, str]
    is_own: bool
    reason: str | None
    notes: list[str] = field(default_factory=list)

    @property
    def averaged(self) -> list[str]:
        """Findings that the macro average names: all but No Finding, unless there is no other."""
        return [name for name in self.shared if name != NO_FINDING] or list(self.shared)


def pair_of(run: Tested, name: str, dataset: Dataset, split: str) -> Pair:
    """What of a run can be scored on a data set; rank 0 alone asks."""
    checkpoint, theirs = run.checkpoint, run.checkpoint.recipe
    ours, rows = checkpoint.meta["findings"], dataset.splits.rows(split)
    shared = shared_findings(ours, dataset.index.findings)
    same_labels = checkpoint.meta["hashes"]["labels"] == dataset.index.label_hash
    own = None if same_labels else run.own_files
    is_own = same_labels or (own is not None and not own[0].isdisjoint(_files(dataset.index)))
    pair = Pair(shared, is_own, None)
    if not shared:
        pair.reason = (
            f"they have no finding in common: the run has {', '.join(ours)}; {name} has "
            f"{', '.join(dataset.index.findings)}"
        )
    elif theirs.data.reader and dataset.data.source != "png":
        source = dataset.data.source
        pair.reason = f"the run reads image files with its own data.reader, and {name} is data.source={source}"
    elif theirs.loss.name == "cross_entropy":
        aligned = with_columns(dataset.index, ours, shared)
        try:
            check_exclusive(split, ours, aligned.targets_NC[rows], aligned.mask_NC[rows], aligned.file_names(rows))
        except ValueError as error:
            pair.reason = str(error)
    if same_labels:
        seen = shared_patients(checkpoint, dataset, ("train", "val"), split)
    elif own is not None:
        was_seen = np.array([file in own[1] for file in _files(dataset.index)], dtype=np.bool_)
        seen = np.intersect1d(dataset.index.patient_id[was_seen], dataset.index.patient_id[rows])
    else:
        seen = None
        if theirs.data.dataset == dataset.data.dataset and theirs.data.dataset not in _IDS_OF_ITS_OWN:
            pair.notes.append(
                f"The run was trained on {theirs.data.dataset} with another label file, which is not there any more: "
                "whether it saw these patients is not known, and the figures may be flattered."
            )
    if pair.reason is None and seen is not None and len(seen):
        pair.reason = (
            f"leak: the run was trained or chosen on {len(seen):,} patients of this {split} split, such as {seen[0]}"
        )
    return pair


def _files(index: SampleIndex) -> list[str]:
    """Every image's file, whatever links lead to its folder."""
    real = cache(os.path.realpath)
    split = map(os.path.split, index.files(range(len(index))))
    return [os.path.join(real(folder), name) for folder, name in split]
