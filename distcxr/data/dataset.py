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

from distcxr.data.cohort import describe_cohort
from distcxr.data.index import MissingDataError, SampleIndex
from distcxr.data.labels import resolve_findings
from distcxr.data.sources.read import read_index
from distcxr.data.splits import (
    NAMES,
    Splits,
    by_patient,
    describe_hashes,
    findings_without_positives,
    from_index,
    from_lists,
    official,
)
from distcxr.data.store.pack_format import pack_folder
from distcxr.data.where import narrow
from distcxr.own_parts import open_parts
from distcxr.recipe import Recipe
from distcxr.recipe.data import Data

logger = logging.getLogger(__name__)

ROOT_VARIABLE = "DISTCXR_NIH_ROOT"

_READING = ("dataset", "function", "columns", "patient_pattern", "uncertain")
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
        lines = describe_hashes(self.data, self.index, self.splits)
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
        """sha256 by name: `labels`, each list file and each split."""
        return {"labels": self.index.label_hash, **self.splits.list_hashes}

    def patients_of(self, other: Data, splits: Iterable[str]) -> NDArray[np.int64]:
        """Patients of this index with images in `splits` of another recipe's `data` section over the same label file.

        Its `where` and `max_*_samples` apply: who was left out there was not trained on. Its caps do not: they change
        with every stage, and all stages together may have shown any image.

        Returns int64, ascending: ids as this index has them.
        """
        labels = self.labels
        if any(getattr(other, key) != getattr(self.data, key) for key in _READING):
            assert self.data.root is not None
            ours = {key: getattr(self.data, key) for key in ("missing", "source", "pack")}
            labels = read_index(other.model_copy(update=ours), self.data.root)
        theirs = make_splits(other, labels, resolve_findings(other.findings, labels.findings))
        rows = np.concatenate([theirs.rows(name) for name in splits])
        return np.unique(self.index.patient_id[np.isin(self.index.path, labels.path[rows])])


def data_root(recipe: Recipe) -> Path:
    """Folder of the dataset: the recipe's, or for NIH's the one in `DISTCXR_NIH_ROOT`."""
    data = recipe.data
    named = data.root or (os.environ.get(ROOT_VARIABLE) if data.dataset == "nih" else None)
    if named:
        return Path(named).expanduser()
    if data.dataset == "nih":
        raise ValueError(
            f"the recipe has no data.root and {ROOT_VARIABLE} is not set: add data.root=PATH to the command, where "
            "PATH holds Data_Entry_2017_v2020.csv, the two lists and images/"
        )
    raise ValueError(
        f"the recipe has no data.root: add data.root=PATH to the command, where the {data.dataset} data is"
    )


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
    findings = resolve_findings(data.findings, labels.findings)
    strangers = [name for name in recipe.eval.macro_findings or () if name not in findings]
    if strangers:
        raise ValueError(f"eval.macro_findings names {', '.join(strangers)}; data.findings are {', '.join(findings)}")
    if len(np.unique(labels.patient_id)) == len(labels):
        logger.warning(
            f"each of the {len(labels):,} images counts as a patient of its own: if {data.dataset} does not "
            "name patients, images of one patient may be in two splits, which flatters results"
        )
    return Dataset(data, labels.with_findings(findings), make_splits(data, labels, findings), labels)


def make_splits(data: Data, labels: SampleIndex, findings: tuple[str, ...]) -> Splits:
    """The splits that a recipe's `data` section asks for; `labels` has every finding of the label file."""
    return narrow(data, labels, _whole_splits(data, labels), findings)


def _whole_splits(data: Data, index: SampleIndex) -> Splits:
    fraction, seed = data.val_fraction, data.split_seed
    if data.split == "official":
        if data.dataset == "nih":
            return official(index, val_fraction=fraction, seed=seed)
        return from_index(index, val_fraction=fraction, seed=seed)
    if data.split == "by_patient":
        return by_patient(index, ratios=data.ratios, seed=seed)
    assert data.lists is not None
    lists = data.lists
    return from_lists(index, train=lists.train, val=lists.val, test=lists.test, val_fraction=fraction, seed=seed)
