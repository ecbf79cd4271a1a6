"""The samples of a dataset as a struct of arrays: 112,120 rows take 10 MB, and pickle or fork in one piece.

Shapes: N samples, C findings. A `sample_id` is a row number of the index.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


class MissingDataError(ValueError):
    """The dataset, or images of it, are not where the recipe names; the message has how to get them."""


@dataclass(frozen=True)
class JointMember:
    """A data set of a joint one; paths of its images begin with its name."""

    name: str
    dataset: str
    root: Path  # absolute
    weight: float  # of its training images, beside those of others
    label_hash: str
    list_hashes: Mapping[str, str]  # of the list files of its splits, by name
    renamed: Mapping[str, str | None]  # findings of its label file by their names there; None is left out


@dataclass(frozen=True, eq=False)
class SampleIndex:
    """N samples in the order of the label file; of a joint data set, one member after the other."""

    root: Path  # absolute path of the folder that holds the dataset, or all members of a joint one
    findings: tuple[str, ...]  # names of the C columns of `targets_NC`
    # [N], file paths relative to `root`, `/` between folders, in the file system's encoding: fixed-width bytes take a
    # quarter of numpy's text and a third of Python strings. Of a joint data set, a member's name and the path relative
    # to that member's root: `locate` finds the file.
    path: NDArray[np.bytes_]
    patient_id: NDArray[np.int64]  # [N]
    targets_NC: NDArray[np.uint8]  # 1 = the finding is present
    mask_NC: NDArray[np.uint8]  # 1 = the label is known
    age: NDArray[np.float32]  # [N], years, NaN = unknown
    sex: NDArray[np.str_]  # [N], "M", "F" or "" = unknown
    view: NDArray[np.str_]  # [N], "PA", "AP", "LATERAL" or "" = unknown
    split: NDArray[np.str_]  # [N], "train", "val", "test", or "" = the dataset itself names none
    label_hash: str  # sha256 of the label file's bytes, in hex
    skipped: NDArray[np.bytes_]  # names of images that are listed but have no file; lists of a split may name them
    num_listed_patients: int | None = None  # of the whole label file where some are `skipped`; None without these
    named_by_path: bool = False  # images are called by their `path`: the dataset uses a file name more than once
    members: tuple[JointMember, ...] = ()  # of a joint data set
    study: NDArray[np.int64] | None = None  # [N], images of a patient with one number were taken together; -1 = unknown
    lateral: NDArray[np.int64] | None = None  # [N], with `data.lateral` the row of each one's lateral view; -1 = none

    def __post_init__(self) -> None:
        num = len(self.path)
        assert self.root.is_absolute()
        assert all(len(getattr(self, name)) == num for name in _PER_SAMPLE)
        assert self.targets_NC.shape == self.mask_NC.shape == (num, len(self.findings))
        assert self.targets_NC.dtype == self.mask_NC.dtype == np.uint8
        assert self.path.dtype.kind == self.skipped.dtype.kind == "S"

    def __len__(self) -> int:
        return len(self.path)

    def files(self, rows: Iterable[int] | NDArray[np.int64]) -> list[str]:
        """Absolute paths of the images of `rows`, in their order."""
        # One decoding for all: this runs once a batch, and pathlib would take 10 us a file. No path has a zero byte.
        joined = b"".join([b"\0" + self.locate(path) for path in self.path[_as_rows(rows)].tolist()])
        return os.fsdecode(joined).split("\0")[1:]

    def locate(self, path: bytes) -> bytes:
        """The absolute path of one of `path`, or of a folder of such a path."""
        if self.members:
            name, _, below = path.partition(b"/")
            if name in self._folders:  # a store may have images of a data set that is no member any more
                return self._folders[name] + below
        return self._folders[b""] + path

    @cached_property
    def _folders(self) -> dict[bytes, bytes]:
        """The root by an empty name, and that of each member by its name; they end in "/"."""
        roots = {"": self.root} | {member.name: member.root for member in self.members}
        return {os.fsencode(name): os.path.join(os.fsencode(root), b"") for name, root in roots.items()}

    def member_of(self, rows: Iterable[int] | NDArray[np.int64]) -> NDArray[np.int64]:
        """Which of `members` each of `rows` is of, int64 [B]; -1 for all where there is none."""
        paths = self.path[_as_rows(rows)]
        found = np.full(len(paths), -1, dtype=np.int64)
        for number, member in enumerate(self.members):
            found[np.char.startswith(paths, os.fsencode(f"{member.name}/"))] = number
        return found

    def file_name(self, row: int) -> str:
        """Name of the image of `row`, without its folder where that suffices: as label files and lists name it."""
        return self.file_names([row])[0]

    def file_names(self, rows: Iterable[int] | NDArray[np.int64]) -> list[str]:
        """`file_name` of many rows."""
        paths: list[bytes] = self.path[_as_rows(rows)].tolist()
        return [os.fsdecode(path if self.named_by_path else path.rsplit(b"/", 1)[-1]) for path in paths]

    def member_names(self, rows: Iterable[int] | NDArray[np.int64]) -> NDArray[np.str_] | None:
        """The name of the member that each of `rows` is of, str [B]; None where the data set is not a joint one."""
        return np.array([member.name for member in self.members])[self.member_of(rows)] if self.members else None

    def take(self, rows: Iterable[int] | NDArray[np.int64]) -> SampleIndex:
        """The index of `rows` alone, in their order; sample ids count anew. Make splits before, not after."""
        chosen = _as_rows(rows)
        columns: dict[str, Any] = {name: getattr(self, name)[chosen] for name in _PER_SAMPLE}
        study = None if self.study is None else self.study[chosen]
        return replace(self, **columns, study=study, lateral=None)

    def with_findings(self, names: Sequence[str]) -> SampleIndex:
        """The same samples with the columns of `names` alone, in that order; each must be one of `findings`."""
        columns = [self.findings.index(name) for name in names]
        targets_NC, mask_NC = (np.ascontiguousarray(labels[:, columns]) for labels in (self.targets_NC, self.mask_NC))
        return replace(self, findings=tuple(names), targets_NC=targets_NC, mask_NC=mask_NC)


_WHOLE = ("root", "findings", "label_hash", "skipped", "num_listed_patients", "named_by_path", "members")
_OPTIONAL = ("study", "lateral")
_PER_SAMPLE = tuple(field.name for field in fields(SampleIndex) if field.name not in _WHOLE + _OPTIONAL)


def _as_rows(rows: Iterable[int] | NDArray[np.int64]) -> NDArray[np.int64]:
    return rows if isinstance(rows, np.ndarray) else np.array(list(rows), dtype=np.int64)
