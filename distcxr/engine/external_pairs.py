"""What of a run can be scored on other data: shared findings, and patients that it has seen."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distcxr.data.dataset import Dataset, open_dataset
from distcxr.data.index import SampleIndex
from distcxr.data.labels import NO_FINDING
from distcxr.data.metadata import check_metadata
from distcxr.data.people import nih_patient, people_of, same_images
from distcxr.data.shared_findings import shared_findings, with_columns
from distcxr.engine.checkpoint import Checkpoint, CheckpointError, begun_from
from distcxr.engine.folder import folder_for
from distcxr.engine.unseen import shared_patients
from distcxr.engine.validated import Validated, scored_folder
from distcxr.loss_building import check_exclusive
from distcxr.own_parts import open_parts
from distcxr.recipe.data import Data

logger = logging.getLogger(__name__)

_NUMBERED_ANEW = ("csv", "folders", "python")
"""Kinds of data set with patients that compare with no other's, nor with those of another label file."""


@dataclass(frozen=True)
class Ancestor:
    """A checkpoint by the data that it was trained on: a run's own, or that of an earlier run which it began with."""

    checkpoint: Checkpoint

    @cached_property
    def own(self) -> Dataset | None:
        """The data set; None where it is not to be had any more."""
        recipe = self.checkpoint.recipe
        try:
            open_parts(recipe.own_functions(), recipe.sources, only="data.")
            return open_dataset(recipe)
        except (ValueError, OSError):
            return None

    @cached_property
    def files(self) -> list[str]:
        """The image files of `own`."""
        return [] if self.own is None else _files(self.own.index)

    def met(self, dataset: Dataset, split: str) -> tuple[bool, NDArray[np.int64] | None]:
        """Whether it was trained on this data set, in whichever split; and the patients of `split` that it was trained
        or chosen on, None where that is not known.

        They go by the label file where that is the same, else by patients' numbers where these compare, by files, and
        by names of NIH's images, which a copy of them has.
        """
        index, own = dataset.index, self.own
        seen = shared_patients(self.checkpoint, dataset, ("train", "val"), split)
        if seen is not None:
            return True, seen
        if own is None:
            return False, None if _may_share(self.checkpoint.recipe.data, dataset) else np.empty(0, dtype=np.int64)
        rows, files = np.concatenate([own.splits.train, own.splits.val]), _files(index)
        seen_files = {self.files[row] for row in rows.tolist()}
        ours, theirs = ([nih_patient(os.path.basename(file)) for file in each] for each in (self.files, files))
        seen_names = {ours[row] for row in rows.tolist()} - {""}
        both = zip(files, theirs, strict=True)
        was_seen = np.array([file in seen_files or name in seen_names for file, name in both], dtype=np.bool_)
        one, other = own.data.dataset, dataset.data.dataset
        numbered_alike = not {one, other} & {*_NUMBERED_ANEW, "joint"}
        same_people = numbered_alike and people_of(one, own.index.root) == people_of(other, index.root)
        if same_people:
            was_seen |= np.isin(index.patient_id, own.index.patient_id[rows])
        is_own = same_people or not {*self.files, *ours}.isdisjoint({*files, *theirs} - {""})
        if not is_own and _may_share(own.data, dataset):
            return False, None
        return is_own, np.intersect1d(index.patient_id[was_seen], index.patient_id[dataset.splits.rows(split)])


def _may_share(data: Data, dataset: Dataset) -> bool:
    """Whether images of both may be the same by what the two data sets, or their members, are called."""
    theirs, ours = (
        [one.dataset for one in section.members] if section.members else [section.dataset]
        for section in (data, dataset.data)
    )
    return any(same_images(a, b) or (a == b and a not in _NUMBERED_ANEW) for a in theirs for b in ours)


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
        if data.members:
            return " + ".join(member.title for member in data.members)
        root = data.root if data.dataset in _NUMBERED_ANEW else None
        return data.dataset if root is None else f"{data.dataset} {root.name}"

    @cached_property
    def ancestors(self) -> list[Ancestor]:
        """Its own checkpoint, that of the run it began with, and so on, as far as they are there and whole."""
        found: list[Ancestor] = []
        checkpoint: Checkpoint | None = self.checkpoint
        while checkpoint is not None and checkpoint.path not in [one.checkpoint.path for one in found]:
            found.append(Ancestor(checkpoint))
            try:
                checkpoint = begun_from(checkpoint.meta["recipe"]["model"]["weights"])
            except CheckpointError as error:
                logger.warning(f"whether {self.name} began with weights that saw these patients is not known: {error}")
                break
        return found


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
    shared = shared_findings(run.checkpoint.meta["findings"], dataset.index.findings)
    met = [ancestor.met(dataset, split) for ancestor in run.ancestors]
    pair = Pair(shared, any(is_own for is_own, _ in met), _why_not(run.checkpoint, name, dataset, split, shared))
    if any(seen is None for _, seen in met):
        pair.notes.append(
            f"The run, or one that it began with, was trained on images that may be those of {name}, with another "
            "label file: whether it saw these patients is not known, and the figures may be flattered."
        )
    seen = np.unique(np.concatenate([found for _, found in met if found is not None] or [np.empty(0, np.int64)]))
    if pair.reason is None and len(seen):
        who = "the run" if len(met) == 1 else "the run, or one that it began with,"
        pair.reason = (
            f"leak: {who} was trained or chosen on {len(seen):,} patients of this {split} split, such as {seen[0]}"
        )
    return pair


def _why_not(checkpoint: Checkpoint, name: str, dataset: Dataset, split: str, shared: dict[str, str]) -> str | None:
    """Why a checkpoint can't be asked about a data set, a sentence; None where it can."""
    ours, theirs, source = checkpoint.meta["findings"], checkpoint.recipe, dataset.data.source
    if not shared:
        has = ", ".join(dataset.index.findings)
        return f"they have no finding in common: the run has {', '.join(ours)}; {name} has {has}"
    if theirs.data.reader and source != "png":
        return f"the run reads image files with its own data.reader, and {name} is data.source={source}"
    if theirs.data.lateral != "none" and dataset.index.lateral is None:
        return (
            "the run takes a lateral view beside each frontal image: give the data set's recipe "
            f"data.lateral={theirs.data.lateral}"
        )
    try:
        check_metadata(dataset.index, dataset.splits.train, theirs.model.head.metadata)
        if theirs.loss.name == "cross_entropy":
            aligned = with_columns(dataset.index, ours, shared)
            for one in ("train", "val", "test"):
                rows = dataset.splits.rows(one)
                check_exclusive(one, ours, aligned.targets_NC[rows], aligned.mask_NC[rows], aligned.file_names(rows))
    except ValueError as error:
        return str(error)
    return None


def _files(index: SampleIndex) -> list[str]:
    """Every image's file, whatever links lead to its folder."""
    real = cache(os.path.realpath)
    split = map(os.path.split, index.files(range(len(index))))
    return [os.path.join(real(folder), name) for folder, name in split]
