"""From a recipe to the index of its dataset and the splits of it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from distcxr.data.index import SampleIndex
from distcxr.data.labels import resolve_findings
from distcxr.data.sources.nih import read_nih
from distcxr.data.splits import Splits, by_patient, describe_hashes, findings_without_positives, from_lists, official
from distcxr.recipe import Recipe
from distcxr.recipe.data import Data

ROOT_VARIABLE = "DISTCXR_NIH_ROOT"


@dataclass(frozen=True)
class Dataset:
    """Index and splits, and the hashes that say which labels and lists they came from."""

    index: SampleIndex
    splits: Splits

    def describe(self) -> list[str]:
        """Lines that say which labels and lists these are, how many images each split has, what can't be learnt."""
        lines = describe_hashes(self.index, self.splits)
        absent = findings_without_positives(self.index, self.splits.train)
        if absent:
            lines.append(f"no training image shows {', '.join(absent)}: the model can't learn them")
        return lines

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """`num_images` and `num_patients` of each split."""
        return {
            name: {"num_images": len(rows), "num_patients": len(np.unique(self.index.patient_id[rows]))}
            for name, rows in ((name, self.splits.rows(name)) for name in ("train", "val", "test"))
        }

    @property
    def hashes(self) -> dict[str, str]:
        """sha256 by name: `labels`, each list file and each split."""
        return {"labels": self.index.label_hash, **self.splits.list_hashes}


def data_root(recipe: Recipe) -> Path:
    """Folder of the dataset: the recipe's, or what `DISTCXR_NIH_ROOT` says."""
    named = recipe.data.root or os.environ.get(ROOT_VARIABLE)
    if not named:
        raise ValueError(
            f"the recipe has no data.root and {ROOT_VARIABLE} is not set: add data.root=PATH to the command, where "
            "PATH holds Data_Entry_2017_v2020.csv, the two lists and images/"
        )
    return Path(named).expanduser()


def open_dataset(recipe: Recipe) -> Dataset:
    """Read labels and lists, split by patient and check that no patient is in two splits."""
    data, root = recipe.data, data_root(recipe)
    findings = resolve_findings(data.findings)
    strangers = [name for name in recipe.eval.macro_findings or () if name not in findings]
    if strangers:
        raise ValueError(f"eval.macro_findings names {', '.join(strangers)}; data.findings are {', '.join(findings)}")
    index = read_nih(root, findings, missing=data.missing)
    return Dataset(index, make_splits(data, index))


def make_splits(data: Data, index: SampleIndex) -> Splits:
    """The splits that a recipe's `data` section asks for."""
    if data.split == "official":
        return official(index, index.root, val_fraction=data.val_fraction, seed=data.split_seed)
    if data.split == "by_patient":
        return by_patient(index, ratios=data.ratios, seed=data.split_seed)
    assert data.lists is not None
    lists, fraction, seed = data.lists, data.val_fraction, data.split_seed
    return from_lists(index, train=lists.train, val=lists.val, test=lists.test, val_fraction=fraction, seed=seed)
