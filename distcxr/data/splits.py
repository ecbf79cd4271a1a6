"""Train, val and test splits by patient, and the check that no patient is in two of them.

A patient's position in a random split is a pure function of (seed, patient id): a hash in [0, 1), held against
thresholds. So images that are skipped or added never move anyone, and a larger val_fraction keeps every
validation patient it had. The price: shares are met on average over patients, not exactly over images.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distcxr.data.index import SampleIndex
from distcxr.data.order import uniform
from distcxr.data.sources.image_paths import first_few
from distcxr.data.sources.nih import KNOWN_HASHES, missing_dataset
from distcxr.recipe.data import Data
from distcxr.regular import read_regular

logger = logging.getLogger(__name__)

TRAIN_VAL_LIST, TEST_LIST = "train_val_list.txt", "test_list.txt"
NAMES = ("train", "val", "test")

_STREAM = 0x5B117  # keeps a patient's position apart from other hashes of the same seed
NOT_COMPARABLE = "figures are not comparable with published ones"


@dataclass(frozen=True, eq=False)
class Splits:
    """Rows of an index, int64 and ascending, no row and no patient in two splits."""

    train: NDArray[np.int64]
    val: NDArray[np.int64]
    test: NDArray[np.int64]
    # sha256 in hex. `train`, `val`, `test`: of the split's image names, sorted and joined by newlines, so that two runs
    # can be compared. Other keys: of the bytes of the list file so named.
    list_hashes: dict[str, str]
    notes: tuple[str, ...] = ()  # lines for the log about images that were left out of the splits

    def rows(self, split: str) -> NDArray[np.int64]:
        """Rows of `"train"`, `"val"` or `"test"`."""
        assert split in NAMES
        found: NDArray[np.int64] = getattr(self, split)
        return found


def whole_splits(data: Data, index: SampleIndex) -> Splits:
    """The splits of a recipe's `data` section, before anything leaves images out of them; errors as of each kind."""
    fraction, seed = data.val_fraction, data.split_seed
    if data.dataset == "joint":
        return from_members(index)
    if data.split == "official":
        if data.dataset == "nih":
            return official(index, val_fraction=fraction, seed=seed)
        return from_index(index, val_fraction=fraction, seed=seed)
    if data.split == "by_patient":
        return by_patient(index, ratios=data.ratios, seed=seed)
    assert data.lists is not None
    lists = data.lists
    return from_lists(index, train=lists.train, val=lists.val, test=lists.test, val_fraction=fraction, seed=seed)


def from_members(index: SampleIndex) -> Splits:
    """Those of the members of a joint data set, as they were read. Raises ValueError: none has images in a split."""
    hint = "no member has images there: let one of data.members have it in its `splits`"
    hashes = {f"{one.name}: {name}": digest for one in index.members for name, digest in one.list_hashes.items()}
    labels = {f"{one.name}: labels": one.label_hash for one in index.members}
    return _checked(index, {name: index.split == name for name in NAMES}, labels | hashes, dict.fromkeys(NAMES, hint))


def official(index: SampleIndex, *, val_fraction: float, seed: int) -> Splits:
    """NIH's own lists, beside its label file; about `val_fraction` of the patients of `train_val_list.txt` become val.
    Raises MissingDataError where a list is not there, ValueError as `from_lists`."""
    for name in (TRAIN_VAL_LIST, TEST_LIST):
        if not (index.root / name).is_file():
            raise missing_dataset(f"{index.root} has no {name}, which data.split=official needs.")
    train, test = Path(TRAIN_VAL_LIST), Path(TEST_LIST)
    return from_lists(index, train=train, val=None, test=test, val_fraction=val_fraction, seed=seed)


def from_index(index: SampleIndex, *, val_fraction: float, seed: int) -> Splits:
    """The splits that the dataset itself names; where it names no val, `val_fraction` of the training patients.
    Raises ValueError: no image that is named train, or none test; otherwise as `from_lists`."""
    member = {name: index.split == name for name in NAMES}
    absent = [name for name in ("train", "test") if not member[name].any()]
    if absent:
        raise ValueError(
            f"data.split=official: the labels in {index.root} put no image into {' or '.join(absent)}. Take "
            "data.split=by_patient, which splits at random (data.dataset=csv: or name the column that holds the "
            "split, data.columns.split)"
        )
    hints: dict[str, str] = {}
    if not member["val"].any():
        _carve_val(index, member, hints, "the dataset's train split", val_fraction, seed)
    _warn_left_out(index, member, "in no split of the dataset")
    return _checked(index, member, {}, hints)


def by_patient(index: SampleIndex, *, ratios: tuple[float, float, float], seed: int) -> Splits:
    """All images, split at random by patient, in about the shares `ratios` (train, val, test; they sum to 1).
    Raises ValueError: a split that turns out empty."""
    position_N = _position(index.patient_id, seed)
    train_end, val_end = ratios[0], ratios[0] + ratios[1]
    member = {
        "train": position_N < train_end,
        "val": (position_N >= train_end) & (position_N < val_end),
        "test": position_N >= val_end,
    }
    num_patients = len(np.unique(index.patient_id))
    hint = (
        f"none of the {num_patients:,} patients fell into its share of data.ratios={list(ratios)}: "
        "raise that share, or choose another data.split_seed"
    )
    return _checked(index, member, {}, dict.fromkeys(NAMES, hint))


def from_lists(
    index: SampleIndex, *, train: Path, val: Path | None, test: Path, val_fraction: float, seed: int
) -> Splits:
    """Splits from text files with one image name a line; paths are absolute or relative to the data root.

    Images go by their `index.file_name`: a path below the data root, where file names alone would not do.

    Without a `val` list, about `val_fraction` of the patients of the `train` list become val; with one,
    `val_fraction` and `seed` have no part in it. Images in no list are in no split, and counted in the log.

    Raises ValueError: a list that can't be read, is empty, names an image twice or one the label file lacks; a split
    without images; a patient in two splits; `val_fraction` outside (0, 1) where it is needed.
    """
    given = {"train": train, "val": val, "test": test}
    files = {name: index.root / path for name, path in given.items() if path is not None}
    row_of = {name: row for row, name in enumerate(index.file_names(range(len(index))))}
    skipped = {os.fsdecode(name) for name in index.skipped.tolist()}
    member: dict[str, NDArray[np.bool_]] = {}
    hashes: dict[str, str] = {}
    hints: dict[str, str] = {}
    for name, path in files.items():
        member[name], digest = read_list(path, row_of, skipped)
        hashes[str(path) if path.name in (*hashes, *NAMES) else path.name] = digest
        hints[name] = f"no image that {path} names has a file"
    if val is None:
        _carve_val(index, member, hints, files["train"].name, val_fraction, seed)
    _warn_left_out(index, member, "in no list and so in no split")
    return _checked(index, member, hashes, hints)


def _carve_val(
    index: SampleIndex,
    member: dict[str, NDArray[np.bool_]],
    hints: dict[str, str],
    source: str,
    val_fraction: float,
    seed: int,
) -> None:
    """Make `val_fraction` of the patients of train val, in `member`; `source` is what the training images come from.

    At least one: with few patients, as of a trial with some hundred images, chance may choose none.
    """
    if not 0 < val_fraction < 1:
        raise ValueError(f"data.val_fraction is {val_fraction:g}: it must be above 0 and below 1")
    carved = member["train"]
    position_N = _position(index.patient_id, seed)
    chosen = position_N <= max(val_fraction, position_N[carved].min(initial=1.0))
    member["val"], member["train"] = carved & chosen, carved & ~chosen
    if not carved.any():
        return
    num_patients = len(np.unique(index.patient_id[carved]))
    too_few = f"of the {num_patients:,} patients of {source} that have images, "
    key = f"data.val_fraction (now {val_fraction:g})"
    hints["train"] = f"{too_few}all were chosen for val: lower {key}, or choose another data.split_seed"


def _warn_left_out(index: SampleIndex, member: dict[str, NDArray[np.bool_]], where: str) -> None:
    num = len(index) - int(np.count_nonzero(member["train"] | member["val"] | member["test"]))
    if num:
        logger.warning(f"{num:,} of {len(index):,} images are {where}")


def read_list(path: Path, row_of: dict[str, int], skipped: set[str]) -> tuple[NDArray[np.bool_], str]:
    """Which rows a list of image names holds, bool [N], and the sha256 of its bytes.

    Args: the row of each name; names that have no row but may be listed.
    Raises ValueError for a list that can't be read, is empty, or names an image twice or one that is in neither.
    """
    try:
        content, _ = read_regular(path)
        listed = [line.strip() for line in content.decode("utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"the list {path} can't be read: {getattr(error, 'strerror', None) or error}") from error
    if not listed:
        raise ValueError(f"the list {path} is empty: one image name a line is expected")
    repeated = [name for name, count in Counter(listed).items() if count > 1]
    if repeated:
        raise ValueError(f"{path} names {len(repeated):,} images more than once: {first_few(repeated)}")
    member = np.zeros(len(row_of), dtype=np.bool_)
    member[[row_of[name] for name in listed if name in row_of]] = True
    unknown = [name for name in listed if name not in row_of and name not in skipped]
    if unknown:
        raise ValueError(
            f"{path} names {len(unknown):,} images that the label file lacks: {first_few(unknown)}. A list holds one "
            "file name a line, without folder or labels (the path below data.root, where two images share a file "
            "name), and belongs to its label file"
        )
    return member, hashlib.sha256(content).hexdigest()


def check_leak(index: SampleIndex, splits: Splits) -> None:
    """Raise ValueError, with the count and the first patients, when images of one patient are in two splits.

    Every way to make splits in this module ends here.
    """
    patients = {name: np.unique(index.patient_id[splits.rows(name)]) for name in NAMES}
    for first, second in (("train", "val"), ("train", "test"), ("val", "test")):
        both = np.intersect1d(patients[first], patients[second], assume_unique=True)
        if len(both):
            raise ValueError(
                f"{len(both):,} patients have images in both {first} and {second}, which flatters results: "
                f"patients {first_few(list(map(str, both.tolist())))}. Put all images of a patient in one split"
            )


def fewer(index: SampleIndex, splits: Splits, rows: dict[str, NDArray[np.int64]], notes: Iterable[str]) -> Splits:
    """The splits with fewer `rows`: each a part of the split of that name. `notes` are lines for the log."""
    hashes = {**splits.list_hashes, **_row_hashes(index, rows)}
    return Splits(rows["train"], rows["val"], rows["test"], hashes, (*splits.notes, *notes))


def findings_without_positives(index: SampleIndex, rows: NDArray[np.int64]) -> tuple[str, ...]:
    """Findings that no image of `rows` is known to have: they can't be learned there, and have no AUROC."""
    positives_C = np.any(index.targets_NC[rows] & index.mask_NC[rows], axis=0)
    return tuple(index.findings[column] for column in np.flatnonzero(~positives_C))


def describe_hashes(data: Data, index: SampleIndex, splits: Splits) -> list[str]:
    """Lines for the log: labels, lists and images by count and hash; for NIH's, whether the hashes are known."""
    named = {name: digest for name, digest in splits.list_hashes.items() if name not in NAMES}
    if index.members:
        dataset_of = {member.name: member.dataset for member in index.members}
        lines = [_of(dataset_of[name.partition(":")[0]], name, digest) for name, digest in named.items()]
    else:
        digests = {"labels": index.label_hash, **{f"list {name}": digest for name, digest in named.items()}}
        lines = [_of(data.dataset, what, digest) for what, digest in digests.items()]
    if data.split == "by_patient":
        lines.append(f"list: none, split at random by patient: {NOT_COMPARABLE} on the official split")
    lines += splits.notes
    if len(index.skipped):
        num = len(index) + len(index.skipped)
        lines.append(f"images: {len(index):,} of {num:,} have a file: {NOT_COMPARABLE}")
    for name in NAMES:
        rows = splits.rows(name)
        patients = len(np.unique(index.patient_id[rows]))
        digest = splits.list_hashes[name][:8]
        lines.append(f"{name}: {len(rows):,} images of {patients:,} patients (names {digest}…)")
    return lines


def _position(patient_id: NDArray[np.int64], seed: int) -> NDArray[np.float64]:
    """A number in [0, 1) for each patient id, the same for the same (seed, id) whatever else is there."""
    return uniform(seed, _STREAM, patient_id.astype(np.uint64))


def _checked(
    index: SampleIndex,
    member: dict[str, NDArray[np.bool_]],
    file_hashes: dict[str, str],
    hints: dict[str, str],
) -> Splits:
    """Splits of the rows marked in `member`; `hints` has what to do about each split if it is empty."""
    rows = {name: np.flatnonzero(member[name]) for name in NAMES}
    for name in NAMES:
        if not len(rows[name]):
            raise ValueError(f"the {name} split is empty: {hints[name]}")
    hashes = {**_row_hashes(index, rows), **file_hashes}
    splits = Splits(rows["train"], rows["val"], rows["test"], hashes)
    check_leak(index, splits)
    return splits


def _row_hashes(index: SampleIndex, rows: dict[str, NDArray[np.int64]]) -> dict[str, str]:
    joined = {name: "\n".join(sorted(index.file_names(rows[name]))) for name in NAMES}
    return {name: hashlib.sha256(os.fsencode(joined[name])).hexdigest() for name in NAMES}


def _of(dataset: str, what: str, digest: str) -> str:
    if dataset != "nih":
        return f"{what}: of {dataset} ({digest[:8]}…)"
    if digest in KNOWN_HASHES:
        return f"{what}: {KNOWN_HASHES[digest]} ({digest[:8]}…)"
    return f"{what}: not a known NIH file ({digest[:8]}…): {NOT_COMPARABLE}"
