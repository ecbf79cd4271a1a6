"""A folder of images per class, as in studies of normal against abnormal: the folder's name is the one finding.

    ROOT/normal/a.png                  ROOT/train/normal/a.png
    ROOT/abnormal/b.jpg                ROOT/test/abnormal/b.jpg      and val, if there is one

Shapes: N samples, C findings.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distcxr.data.index import MissingDataError, SampleIndex
from distcxr.data.sources.image_paths import IMAGE_SUFFIXES, Lister, Listing, first_few
from distcxr.data.sources.label_columns import each_its_own, make_index, patient_numbers
from distcxr.recipe.data import Data

logger = logging.getLogger(__name__)

OWN_FOLDERS = ("distcxr-cache", "distcxr-pack")
"""Where the decoded cache and the pack are by default; they are not classes."""

_SPLITS = ("train", "val", "test")
_LAYOUT = f"""\
data.dataset=folders expects a folder of images ({", ".join(IMAGE_SUFFIXES)}) per class, in one of two layouts:
  ROOT/normal/a.png ROOT/abnormal/b.png ...                    with data.split=by_patient or lists
  ROOT/train/normal/a.png ... ROOT/test/abnormal/b.png ...     with data.split=official; ROOT/val/ as well, or not"""


_Image = tuple[str, str, str]
"""Path relative to the root, finding, and split: "" without folders for splits."""


def read_folders(root: Path, data: Data, lister: Lister) -> SampleIndex:
    """Index the images in the class folders below `root`. Findings are the names of the folders, sorted.

    Hidden files and folders are left out; so are files without an image's suffix, with a warning. A folder in a class
    folder, and a class without images, are errors.
    """
    if not root.is_dir():
        raise MissingDataError(f"{root} is not a folder.\n{_LAYOUT}")
    images = list(_images(root, lister(root)))
    if not images:
        raise MissingDataError(f"{root} holds no folder of images.\n{_LAYOUT}")
    paths, shown, splits = map(list, zip(*images, strict=True))
    findings = tuple(sorted(set(shown)))
    return make_index(
        root,
        findings,
        paths,
        (np.array(shown)[:, None] == np.array(findings)).astype(np.uint8),
        patient_id=_patients(data.patient_pattern, paths),
        label_hash=hashlib.sha256(b"\n".join(map(os.fsencode, paths))).hexdigest(),
        split=np.array(splits, dtype="U5"),
        named_by_path=True,
    )


def _images(root: Path, listing: Listing) -> Iterable[_Image]:
    """All images, by split, class and name."""
    tops = [name for name in _folders(listing, "") if name not in OWN_FOLDERS]
    splits = [name for name in _SPLITS if name in tops]
    if not splits:
        yield from _of_classes(root, listing, "", tops)
        return
    if others := [name for name in tops if name not in _SPLITS]:
        raise ValueError(
            f"{root} holds both {', '.join(splits)} and {first_few(others)}: name its folders either after classes, or "
            f"train, val and test with the classes in them\n{_LAYOUT}"
        )
    for split in splits:
        yield from _of_classes(root, listing, split, _folders(listing, split))


def _of_classes(root: Path, listing: Listing, split: str, classes: list[str]) -> Iterable[_Image]:
    others = []
    for finding in classes:
        folder = f"{split}/{finding}" if split else finding
        if inner := _folders(listing, folder):
            raise ValueError(
                f"{root / folder} holds folders ({first_few(inner)}): the images of a class lie in its folder itself, "
                f"so that none is missed\n{_LAYOUT}"
            )
        names = sorted(name for name in listing.names(folder) if not name.startswith("."))
        pictures = [name for name in names if name.lower().endswith(IMAGE_SUFFIXES)]
        others += [f"{folder}/{name}" for name in names if not name.lower().endswith(IMAGE_SUFFIXES)]
        if not pictures:
            raise ValueError(f"{root / folder} holds no image ({', '.join(IMAGE_SUFFIXES)}): remove it, or fill it")
        yield from ((f"{folder}/{name}", finding, split) for name in pictures)
    if others:
        logger.warning(f"{root}: {len(others):,} files are not images and are left out: {first_few(others)}")


def _folders(listing: Listing, folder: str) -> list[str]:
    return [name for name in listing.folders(folder) if not name.startswith(".")]


def _patients(pattern: str | None, paths: list[str]) -> NDArray[np.int64]:
    if pattern is None:
        return each_its_own(paths)
    found = [re.search(pattern, path.rpartition("/")[2]) for path in paths]
    for path, match in zip(paths, found, strict=True):
        if match is None or not match[1]:
            raise ValueError(f"data.patient_pattern {pattern!r} finds no patient in the name of {path}")
    return patient_numbers([match[1] for match in found if match])
