"""Leaves images out of the splits: by `data.quarantine`, `data.lateral`, the conditions of `data.where`, and
`data.max_*_samples`.

Patients stay in the split they were in. What is unknown meets no condition.

Shapes: N samples, C findings.
"""

from __future__ import annotations

import os

import numpy as np
from numpy.typing import NDArray

from distcxr.data.index import SampleIndex
from distcxr.data.labels import check_findings, lost_findings
from distcxr.data.laterals import is_frontal
from distcxr.data.order import hash64
from distcxr.data.quarantine import read_quarantine
from distcxr.data.splits import NAMES, NOT_COMPARABLE, Splits, fewer
from distcxr.recipe.data import Data
from distcxr.recipe.selection import Where

_STREAM = 0x3A3  # keeps this choice apart from other hashes of the same seed


def narrow(data: Data, labels: SampleIndex, splits: Splits, findings: tuple[str, ...]) -> Splits:
    """The splits without the images that `data.quarantine`, `data.lateral` and `data.where` leave out, and then with
    `max_*_samples` of each at most.

    Args:
        labels: the index with every finding of the label file, which conditions may name.
        findings: those that are learnt.

    Raises ValueError: a quarantine file that can't be read or names a whole split; a condition that names a finding the
    label file lacks; conditions that no image of a split meets, or of a member of a joint data set; a finding that
    training images show in the split but not in what is left.
    """
    splits = _frontal(data, labels, _without_quarantined(data, labels, splits))
    met = _conditions(data.where, labels)
    _check_members_kept(data.where, labels, splits, met)
    limits = {"train": data.max_train_samples, "val": data.max_val_samples, "test": data.max_test_samples}
    rows: dict[str, NDArray[np.int64]] = {}
    notes = []
    for name in NAMES:
        rows[name] = whole = splits.rows(name)
        if met:
            rows[name] = whole[np.all([member[whole] for member in met.values()], axis=0)]
            note = f"data.where: {len(rows[name]):,} of {len(whole):,} {name} images ({', '.join(met)})"
            notes.append(f"{note}: {NOT_COMPARABLE}" if name == "test" else note)
        if not len(rows[name]):
            counts = ", ".join(f"{text} {np.count_nonzero(member[whole]):,}" for text, member in met.items())
            raise ValueError(
                f"data.where leaves the {name} split empty. Of its {len(whole):,} images, so many meet each "
                f"condition: {counts}{_nothing_known(data.where, labels)}"
            )
        if name == "train":
            _check_findings_kept(labels, findings, whole, rows[name], "data.where")
        limit = limits[name]
        if limit is not None and limit < len(rows[name]):
            before, rows[name] = rows[name], _thinned(rows[name], limit, data.split_seed)
            note = f"data.max_{name}_samples: {limit:,} of {len(before):,} {name} images"
            notes.append(f"{note}: {NOT_COMPARABLE}" if name == "test" else note)
            if name == "train":
                _check_findings_kept(labels, findings, before, rows[name], f"data.max_train_samples={limit}")
    return fewer(labels, splits, rows, notes)


def _without_quarantined(data: Data, labels: SampleIndex, splits: Splits) -> Splits:
    if data.quarantine is None:
        return splits
    listed = [os.fsencode(path) for path in read_quarantine(data.quarantine, labels)]
    kept = ~np.isin(labels.path, listed)
    rows = {name: splits.rows(name)[kept[splits.rows(name)]] for name in NAMES}
    if empty := [name for name in NAMES if not len(rows[name])]:
        raise ValueError(f"data.quarantine: {data.quarantine} names every {empty[0]} image")
    counts = ", ".join(f"{len(splits.rows(name)) - len(rows[name]):,} {name}" for name in NAMES)
    return fewer(labels, splits, rows, [f"data.quarantine: images left out that can't be read: {counts}"])


def _frontal(data: Data, labels: SampleIndex, splits: Splits) -> Splits:
    """With `data.lateral`, the frontal images alone."""
    if data.lateral == "none":
        return splits
    kept = is_frontal(labels)
    rows = {name: splits.rows(name)[kept[splits.rows(name)]] for name in NAMES}
    if empty := [name for name in NAMES if not len(rows[name])]:
        raise ValueError(f"data.lateral: {data.lateral}: no {empty[0]} image is frontal (PA or AP)")
    counts = ", ".join(f"{len(rows[name]):,} of {len(splits.rows(name)):,} {name}" for name in NAMES)
    return fewer(labels, splits, rows, [f"data.lateral: frontal images alone are samples: {counts}"])


def _conditions(where: Where, labels: SampleIndex) -> dict[str, NDArray[np.bool_]]:
    """Each condition as text, and which samples meet it: bool [N]."""
    met: dict[str, NDArray[np.bool_]] = {}
    known_NC = labels.mask_NC != 0
    shown_NC = (labels.targets_NC != 0) & known_NC
    if where.findings is not None:
        met[f"findings {where.findings}"] = shown_NC[:, _columns("findings", where.findings, labels)].any(axis=1)
    if where.without is not None:
        columns = _columns("without", where.without, labels)
        met[f"without {where.without}"] = (known_NC & ~shown_NC)[:, columns].all(axis=1)
    if where.view is not None:
        met[f"view {where.view}"] = np.isin(labels.view, where.view)
    if where.sex is not None:
        met[f"sex {where.sex}"] = labels.sex == where.sex
    if where.age is not None:
        low, high = where.age
        met[f"age {low:g} to {high:g}"] = (labels.age >= low) & (labels.age <= high)
    return met


def _nothing_known(where: Where, labels: SampleIndex, rows: NDArray[np.int64] | slice = slice(None)) -> str:
    """A hint for the message where conditions ask for an attribute that the label file has of none of `rows`."""
    known = {"view": labels.view != "", "sex": labels.sex != "", "age": np.isfinite(labels.age)}
    unknown = [key for key, known_N in known.items() if getattr(where, key) is not None and not known_N[rows].any()]
    columns = ", ".join(f"data.columns.{key}" for key in unknown)
    hint = f". The label file has no {' and '.join(unknown)} of any image (data.dataset: csv needs {columns})"
    return hint if unknown else ""


def _check_members_kept(where: Where, labels: SampleIndex, splits: Splits, met: dict[str, NDArray[np.bool_]]) -> None:
    """Refuse conditions that take a whole data set out of a joint one: RSNA's views, for one, are unknown."""
    rows = np.concatenate([splits.rows(name) for name in NAMES])
    left_N = np.all([member[rows] for member in met.values()], axis=0) if met else np.ones(len(rows), dtype=np.bool_)
    for number, member in enumerate(labels.members):
        its_N = labels.member_of(rows) == number
        if its_N.any() and not left_N[its_N].any():
            raise ValueError(
                f"data.where leaves none of the {its_N.sum():,} images of {member.name} "
                f"({', '.join(met)}){_nothing_known(where, labels, rows[its_N])}. What is unknown meets no condition: "
                f"change data.where, or leave {member.name} out of data.members"
            )


def _columns(key: str, names: list[str], labels: SampleIndex) -> list[int]:
    check_findings(f"data.where.{key}", names, labels.findings)
    return [labels.findings.index(name) for name in names]


def _thinned(rows: NDArray[np.int64], limit: int, seed: int) -> NDArray[np.int64]:
    """`limit` of the rows, ascending: those with the lowest hash, so that a larger limit keeps what a smaller has."""
    rank = hash64(seed, _STREAM, rows.astype(np.uint64))
    return np.sort(rows[np.argsort(rank, kind="stable")[:limit]])


def _check_findings_kept(
    labels: SampleIndex, findings: tuple[str, ...], before: NDArray[np.int64], after: NDArray[np.int64], key: str
) -> None:
    columns = [labels.findings.index(name) for name in findings]
    num_before, num_after = (
        (labels.targets_NC[rows] & labels.mask_NC[rows])[:, columns].sum(axis=0, dtype=np.int64)
        for rows in (before, after)
    )
    if lost := lost_findings(findings, num_before, num_after):
        raise ValueError(
            f"{key} keeps {len(after):,} of {len(before):,} training images, and none of those that show "
            f"{lost}. Let it keep more, or name in data.findings only what is left to learn"
        )
