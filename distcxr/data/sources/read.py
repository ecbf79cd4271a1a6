"""`read_index`: calls the module of the dataset that `data.dataset` names."""

from __future__ import annotations

from pathlib import Path

from distcxr.data.index import SampleIndex
from distcxr.data.labels import NIH15
from distcxr.data.sources.any_csv import read_csv
from distcxr.data.sources.chestmnist import read_chestmnist
from distcxr.data.sources.chexpert import read_chexpert
from distcxr.data.sources.file_listing import FileListing, Lister
from distcxr.data.sources.folders import read_folders
from distcxr.data.sources.mimic import read_mimic
from distcxr.data.sources.nih import read_nih
from distcxr.data.store.pack_listing import pack_lister
from distcxr.recipe.data import Data


def read_index(data: Data, root: Path, lister: Lister | None = None) -> SampleIndex:
    """Index the dataset that a recipe's `data` section names, with all labels that its label file has as findings.

    Args:
        root: folder of the dataset; for `chestmnist` it may be the file.
        lister: lists the images that are there; without it, the pack or the folders, by `data.source`.

    Raises:
        StoreError: `data.source` is `pack`, and no pack can be used.
        MissingDataError: no dataset is at `root`, or images without a file and `data.missing` is `error`.
        ValueError: invalid content; names the file, the line, the column and the value.
    """
    if lister is None:
        lister = pack_lister(data) if data.source == "pack" else FileListing
    if data.dataset == "csv":
        return read_csv(root, data, lister)
    if data.dataset == "folders":
        return read_folders(root, data.patient_pattern, lister)
    if data.dataset == "chexpert":
        return read_chexpert(root, lister, uncertain=data.uncertain, missing=data.missing)
    if data.dataset == "mimic":
        return read_mimic(root, lister, uncertain=data.uncertain, missing=data.missing)
    if data.dataset == "chestmnist":
        return read_chestmnist(root)
    return read_nih(root, None if data.findings == "all" else NIH15, lister, missing=data.missing)
