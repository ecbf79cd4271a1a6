"""Patients of two data sets: only where both are of the same people do they, and their numbers, have any in common."""

from __future__ import annotations

import re
from pathlib import Path

from distcxr.data.sources.rsna import MAPPING

_OF_NIH = frozenset({"nih", "rsna", "chestmnist"})
"""Data sets of NIH's images, under other names."""
_NIH_IMAGE = re.compile(r"(000[0-3]\d{4})_\d{3}\.\w+")
"""NIH's patients are numbered to 30,805, so that a date and a number are none of them."""
_NUMBERED_ANEW = ("csv", "folders", "python")


def people_of(dataset: str, root: Path) -> str:
    """A name for the people that a data set's `patient_id` numbers: equal where those of two data sets compare."""
    if dataset == "rsna" and (root / MAPPING).is_file():
        return "nih"
    return f"{root}" if dataset in _NUMBERED_ANEW else dataset


def nih_patient(file_name: str) -> str:
    """The patient in the name of an image of NIH's, which tables of one's own keep; "" in any other name."""
    found = _NIH_IMAGE.fullmatch(file_name)
    return found[1] if found else ""


def same_images(one: str, other: str) -> bool:
    """Whether two data sets, by `data.dataset`, have images in common, though nothing in their files may show it."""
    return one != other and {one, other} <= _OF_NIH
