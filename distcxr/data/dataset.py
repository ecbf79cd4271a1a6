"""Opens the dataset that a recipe names: its index and its splits."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distcxr.data.cohort import describe_cohort, describe_members
from distcxr.data.index import JointMember, MissingDataError, SampleIndex
from distcxr.data.labels import resolve_findings
from distcxr.data.laterals import describe_pairs, pair_hash, pair_laterals
from distcxr.data.read import read_index, root_of
from distcxr.data.splits import (
    NAMES,
    Splits,
    describe_hashes,
    findings_without_positives,
    whole_splits,
)
from distcxr.data.store.pack_format import pack_folder
from distcxr.data.where import narrow
from distcxr.own_parts import open_parts
from distcxr.recipe import Recipe
from distcxr.recipe.data import Data

logger = logging.getLogger(__name__)

_READING = ("dataset", "function", "columns", "patient_pattern", "uncertain", "radiologists")
"""Keys of a recipe's `data` that change what is read from the label file: names of findings, labels or patients."""


@dataclass(frozen=True)
class Dataset:
    """Index and splits of a dataset, with hashes of the labels and lists they came from."""

    data: Data  # the recipe's section, its `root` filled in
    index: SampleIndex  # every image of the dataset, in a split or not, with the findings that are learnt
    splits: Splits  # rows of the index, after `data.where` and `data.max_*_samples`
    labels: SampleIndex  # the index with every finding of the label file

    def describe(self) -> list[str]:
        """Lines for the log: labels and lists by their hashes, images of each split, findings that can't be learnt."""
        lines = describe_hashes(self.data, self.index, self.splits) + describe_members(self.index, self.splits)
        if self.index.lateral is not None:
            lines.append(describe_pairs(self.index, [(name, self.splits.rows(name)) for name in NAMES]))
        absent = findings_without_positives(self.index, self.splits.train)
        if absent:
            lines.append(f"no training image shows {', '.join(absent)}: the model can't learn them")
        return lines

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """`num_images` and `num_patients` of each split."""
        return {
            name: {"num_images": len(rows), "num_patients": len(np.unique(self.index.patient_id[rows]))}
            for name, rows in ((name, self.splits.rows(name)) for name in NAMES)
        }

    @property
    def cohort(self) -> dict[str, Any]:
        """Flow of the images, demographics and prevalence: `describe_cohort`."""
        return describe_cohort(self.index, self.splits)

    @property
    def hashes(self) -> dict[str, str]:
        """sha256 by name: `labels`, each list file and each split; `laterals` where they are beside frontal images."""
        found = {"labels": self.index.label_hash, **self.splits.list_hashes}
        if self.index.lateral is not None:
            rows = np.concatenate([self.splits.rows(name) for name in NAMES])
            found["laterals"] = pair_hash(self.index, rows)
        return found

    def patients_of(self, other: Data, splits: Iterable[str], member: JointMember | None = None) -> NDArray[np.int64]:
        """Patients of this index with images in `splits` of another recipe's `data` section over the same label file,
        or over that of one of this data set's members.

        Its `where` and `max_*_samples` apply: who was left out there was not trained on. Its caps do not: they change
        with every stage, and all stages together may have shown any image.

        Returns int64, ascending: ids as this index has them.
        """
        labels = self.labels
        # What is read of a joint data set or of PadChest depends on more keys, `where` for one.
        always = {"joint", "padchest"} & {other.dataset, self.data.dataset}
        if member is not None:
            labels = read_index(other.model_copy(update={"missing": self.data.missing, "source": "png"}), member.root)
        elif always or any(getattr(other, key) != getattr(self.data, key) for key in _READING):
            assert self.data.root is not None
            ours = {key: getattr(self.data, key) for key in ("missing", "source", "pack")}
            roots = {member.title: member.root for member in self.data.members}
            members = [one.model_copy(update={"root": roots.get(one.title, one.root)}) for one in other.members]
            labels = read_index(other.model_copy(update=ours | {"members": members}), self.data.root)
        theirs = make_splits(other, labels, resolve_findings(other.findings, labels.findings))
        rows = np.concatenate([theirs.rows(name) for name in splits])
        paths = labels.path[rows]
        if member is not None:
            paths = np.char.add(os.fsencode(f"{member.name}/"), paths)
        return np.unique(self.index.patient_id[np.isin(self.index.path, paths)])


def data_root(recipe: Recipe) -> Path:
    """`root_of` the recipe's dataset."""
    return root_of(recipe.data)


def open_dataset(recipe: Recipe) -> Dataset:
    """Read the labels, split by patient, check that no patient is in two splits, and apply `data.where` and limits.
    Raises ValueError: with the file, row or key that is wrong."""
    root = data_root(recipe)
    open_parts(recipe.own_functions(), recipe.sources, only="data.")
    data = recipe.data.model_copy(update={"root": root})
    try:
        labels = read_index(data, root)
    except MissingDataError as error:
        if data.source == "png" and (pack_folder(data, root) / "pack.json").exists():
            raise MissingDataError(
                f"{error}\nA pack is in {pack_folder(data, root)}: data.source=pack reads that, without image files"
            ) from error
        raise
    if data.lateral != "none":
        labels = pair_laterals(data, labels)
    findings = resolve_findings(data.findings, labels.findings)
    strangers = [name for name in recipe.eval.macro_findings or () if name not in findings]
    if strangers:
        raise ValueError(f"eval.macro_findings names {', '.join(strangers)}; data.findings are {', '.join(findings)}")
    member = labels.member_of(range(len(labels)))
    for number in np.unique(member).tolist():
        patients = labels.patient_id[member == number]
        if len(np.unique(patients)) == len(patients):
            name = data.dataset if number < 0 else labels.members[number].name
            logger.warning(
                f"each of the {len(patients):,} images counts as a patient of its own: if {name} does not "
                "name patients, images of one patient may be in two splits, which flatters results"
            )
    return Dataset(data, labels.with_findings(findings), make_splits(data, labels, findings), labels)


def make_splits(data: Data, labels: SampleIndex, findings: tuple[str, ...]) -> Splits:
    """The splits that a recipe's `data` section asks for; `labels` has every finding of the label file."""
    return narrow(data, labels, whole_splits(data, labels), findings)
