"""`read_index`: calls the module of the dataset that `data.dataset` names."""

from __future__ import annotations

import os
from pathlib import Path

from distcxr.data.index import SampleIndex
from distcxr.data.sources.any_csv import read_csv
from distcxr.data.sources.chestmnist import read_chestmnist
from distcxr.data.sources.chexpert import read_chexpert
from distcxr.data.sources.folders import read_folders
from distcxr.data.sources.image_paths import FileListing, Lister
from distcxr.data.sources.mimic import read_mimic
from distcxr.data.sources.nih import read_nih
from distcxr.data.sources.own_table import read_own
from distcxr.data.store.pack_format import pack_lister
from distcxr.recipe.data import Data

_READERS = {
    "nih": read_nih, "csv": read_csv, "folders": read_folders, "chexpert": read_chexpert, "mimic": read_mimic,
    "chestmnist": read_chestmnist, "python": read_own,
}  # fmt: skip


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
    return _READERS[data.dataset](Path(os.path.abspath(root.expanduser())), data, lister)
