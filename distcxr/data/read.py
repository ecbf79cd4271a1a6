"""`read_index`: calls the module of the dataset that `data.dataset` names, or of each member of a joint one."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from distcxr.data.index import SampleIndex
from distcxr.data.joint import Part, join, naming
from distcxr.data.sources.any_csv import read_csv
from distcxr.data.sources.chestmnist import read_chestmnist
from distcxr.data.sources.chexpert import read_chexpert
from distcxr.data.sources.folders import read_folders
from distcxr.data.sources.image_paths import FileListing, Lister
from distcxr.data.sources.mimic import read_mimic
from distcxr.data.sources.nih import read_nih
from distcxr.data.sources.own_table import read_own
from distcxr.data.sources.padchest import read_padchest
from distcxr.data.sources.rsna import read_rsna
from distcxr.data.sources.vindr import read_vindr
from distcxr.data.store.pack_format import pack_lister
from distcxr.recipe.data import Data
from distcxr.recipe.members import Member

logger = logging.getLogger(__name__)

_READERS = {
    "nih": read_nih, "csv": read_csv, "folders": read_folders, "chexpert": read_chexpert, "mimic": read_mimic,
    "chestmnist": read_chestmnist, "padchest": read_padchest, "vindr": read_vindr, "rsna": read_rsna,
    "python": read_own,
}  # fmt: skip
ROOT_VARIABLE = "DISTCXR_NIH_ROOT"


def root_of(data: Data) -> Path:
    """Folder of the dataset: the recipe's, or for NIH's the one in `DISTCXR_NIH_ROOT`. Of a joint one without it, the
    folder above its members. Raises ValueError: neither is there."""
    named = data.root or (os.environ.get(ROOT_VARIABLE) if data.dataset == "nih" else None)
    if named:
        return Path(named).expanduser()
    if data.dataset == "joint":
        roots = [os.path.abspath(_member_root(data.of_member(member), member.title)) for member in data.members]
        return Path(os.path.commonpath(roots))
    if data.dataset == "nih":
        raise ValueError(
            f"the recipe has no data.root and {ROOT_VARIABLE} is not set: add data.root=PATH to the command, where "
            "PATH holds Data_Entry_2017_v2020.csv, the two lists and images/; `distcxr phantom PATH` writes synthetic "
            "ones"
        )
    raise ValueError(
        f"the recipe has no data.root: add data.root=PATH to the command, where the {data.dataset} data is"
    )


def nih_root(data: Data) -> Path:
    """`root_of` NIH's images: of the member of a joint data set that is NIH's, if there is one."""
    members = (member for member in data.members if member.dataset == "nih")
    if member := next(members, None):
        return _member_root(data.of_member(member), member.title)
    return root_of(data)


def read_index(data: Data, root: Path, lister: Lister | None = None) -> SampleIndex:
    """Index the dataset that a recipe's `data` section names, with all labels that its label file has as findings.

    Args:
        root: folder of the dataset; for `chestmnist` it may be the file. Members of a joint one have their own.
        lister: lists the images that are there; without it, the pack or the folders, by `data.source`.

    Raises:
        StoreError: `data.source` is `pack`, and no pack can be used.
        MissingDataError: no dataset is at `root`, or images without a file and `data.missing` is `error`.
        ValueError: invalid content; names the file, the line, the column and the value.
    """
    root = Path(os.path.abspath(root.expanduser()))
    if data.dataset == "joint":
        return join(data, root, [_read_member(data, member) for member in data.members])
    if lister is None:
        lister = pack_lister(data) if data.source == "pack" else FileListing
    return _READERS[data.dataset](root, data, lister)


def _read_member(data: Data, member: Member) -> Part:
    alone = data.of_member(member)
    root = _member_root(alone, member.title)
    logger.info(f"data.members, {member.title}: {alone.dataset} in {root}")
    with naming(member.title):
        return Part(member, alone, read_index(alone, root))


def _member_root(data: Data, title: str) -> Path:
    try:
        return root_of(data)
    except ValueError as error:
        raise ValueError(
            f"data.members, {title}: it has no root: name the folder where the {data.dataset} data is"
        ) from error
