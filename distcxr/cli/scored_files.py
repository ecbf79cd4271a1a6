"""Predictions from a CSV joined with labels of the same images: what `distcxr score` scores, reads and compares.

predictions ─► scores ──┐
labels, list ─► index ──┴─► Joined: rows in the order of the list, columns in the order of the predictions
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from distcxr.data.index import SampleIndex
    from distcxr.metrics.foreign import ForeignScores
    from distcxr.metrics.operating import Operating
    from distcxr.metrics.scored import Floats, Scored

Scale = Literal["probability", "logit"] | None
"""Of the scores; None to tell by their range."""


@dataclass(frozen=True)
class Joined:
    """Scores and labels of the same images and findings; `notes` are warnings for the report, `log` how they were read.

    The index has the images scored, in the order of the label file or list.
    """

    scores: ForeignScores
    index: SampleIndex
    scores_NC: Floats
    targets_NC: NDArray[np.uint8]
    mask_NC: NDArray[np.uint8]
    notes: list[str]
    log: list[str]

    def of(
        self, findings: Sequence[str], other: ForeignScores | None = None, at: NDArray[np.int64] | None = None
    ) -> Scored:
        """These findings' scores and labels, as all figures take them; with the scores in rows `at` of another file."""
        from distcxr.metrics.foreign import columns_of
        from distcxr.metrics.scored import Scored

        own = columns_of(self.scores, findings)
        scores_NC = self.scores_NC[:, own] if other is None else other.scores_NC[at][:, columns_of(other, findings)]
        labels = (self.targets_NC[:, own], self.mask_NC[:, own], self.index.patient_id)
        return Scored.of(findings, scores_NC, *labels, (other or self.scores).scale)


def read_scored(
    predictions: Path, labels: SampleIndex | None, images: Path | None, scale: Scale, labels_file: Path | None
) -> tuple[Joined, str, dict[str, Any]]:
    """What is to be scored, what the split is called, and where it is from.

    Args:
        labels: None for those in distcxr's own predictions file.
        images: the list of images to score; None for all that the predictions name.

    Raises:
        ValueError: a file that can't be read, or images without a label or a prediction; names them.
    """
    from distcxr.data.sources.nih import KNOWN_HASHES
    from distcxr.data.splits import read_list
    from distcxr.metrics.foreign import read_foreign
    from distcxr.metrics.summary import NO_FINDING

    scores = read_foreign(predictions, labels.findings if labels else None, scale)
    known = labels or _own_labels(scores)
    row_of = {name: row for row, name in enumerate(known.file_names(np.arange(len(known))))}
    split, digest = "predictions", None
    if images:
        member, digest = read_list(images, row_of, set())
        rows = np.flatnonzero(member)
        split = images.stem.removesuffix("_list")
    else:
        rows = _rows_of(scores, row_of)
    joined = _join(scores, known, rows, str(images or labels_file or predictions))
    if not images and len(rows) < len(known):
        joined.log.append(
            f"{len(rows):,} of the {len(known):,} labelled images are scored; --list names those that are due"
        )
    absent = [name for name in known.findings if name not in scores.findings and name != NO_FINDING]
    if absent:
        joined.notes.append(f"Not predicted, and not in the macro average: {', '.join(absent)}.")
    if KNOWN_HASHES.get(digest or "") != "NIH test_list.txt" or KNOWN_HASHES.get(known.label_hash) != "NIH v2020":
        joined.notes.append(
            "These are not NIH's test list and its labels of 2020, as far as their hashes tell: the figures do not "
            "compare with published ones of the official split."
        )
    source = {
        "predictions": predictions.name,
        "predictions_sha256": hashlib.sha256(predictions.read_bytes()).hexdigest(),
        "scale": scores.scale,
        "labels_sha256": known.label_hash or None,
        "list_sha256": digest,
    }
    return joined, split, source


def _rows_of(scores: ForeignScores, row_of: dict[str, int]) -> NDArray[np.int64]:
    """Rows of the labels that the predictions name, ascending."""
    from distcxr.metrics.scored import first_few

    by_stem = {name.rsplit(".", 1)[0]: row for name, row in row_of.items()}
    found = [row_of.get(name, by_stem.get(name.rsplit(".", 1)[0])) for name in scores.files]
    strangers = [name for name, row in zip(scores.files, found, strict=True) if row is None]
    if len(strangers) == len(found):
        raise ValueError(
            f"{scores.path}: none of the {len(found):,} images is in the labels: {first_few(strangers, 3)}, where "
            f"labels name {next(iter(row_of))}. The first column has to be the image file (pandas puts row numbers "
            "there, unless it is given index=False)"
        )
    if strangers:
        raise ValueError(
            f"{scores.path}: {len(strangers):,} of the {len(found):,} images are not in the labels: "
            f"{first_few(strangers, 3)}"
        )
    return np.unique(np.array([row for row in found if row is not None], dtype=np.int64))


def _join(scores: ForeignScores, labels: SampleIndex, rows: NDArray[np.int64], of: str) -> Joined:
    from distcxr.metrics.foreign import align

    index = labels.take(rows)
    at, log = align(scores, index.file_names(np.arange(len(index))), of)
    columns = [index.findings.index(name) for name in scores.findings]
    targets_NC, mask_NC = index.targets_NC[:, columns], index.mask_NC[:, columns]
    notes = []
    if scores.ours is not None:
        both = scores.ours.mask_NC[at] & mask_NC
        if num := int(np.count_nonzero((scores.ours.targets_NC[at] != targets_NC) & both)):
            notes.append(
                f"{num:,} labels differ from those that {scores.path.name} holds: it was made with another label file."
            )
    return Joined(scores, index, scores.scores_NC[at], targets_NC, mask_NC, notes, [*scores.notes, *log])


def _own_labels(scores: ForeignScores) -> SampleIndex:
    """The labels in our own predictions file; it does not know age, sex or view."""
    from distcxr.data.index import SampleIndex

    assert scores.ours is not None
    num = len(scores.files)
    if strangers := [
        text for text in scores.ours.patient_ids if not (text.isascii() and text.isdigit() and len(text) <= 18)
    ]:
        raise ValueError(f"{scores.path}: patient {strangers[0]!r} is not a whole number of 18 digits or fewer")
    return SampleIndex(
        root=Path(os.path.abspath(scores.path.parent)),
        findings=scores.findings,
        path=np.array([os.fsencode(name) for name in scores.files], dtype=np.bytes_),
        patient_id=np.array([int(text) for text in scores.ours.patient_ids], dtype=np.int64),
        targets_NC=scores.ours.targets_NC,
        mask_NC=scores.ours.mask_NC,
        age=np.full(num, np.nan, dtype=np.float32),
        sex=np.full(num, "", dtype=np.str_),
        view=np.full(num, "", dtype=np.str_),
        split=np.full(num, "", dtype=np.str_),
        label_hash="",
        skipped=np.array([], dtype=np.bytes_),
        named_by_path=True,  # whatever the file calls them
    )


def calibrate(
    predictions: Path, labels: SampleIndex | None, joined: Joined, scale: Scale, findings: Sequence[str]
) -> tuple[Operating, list[str]]:
    """Thresholds and temperatures from other images than the scored ones, and what is wrong with them."""
    from distcxr.metrics.foreign import read_foreign
    from distcxr.metrics.operating import choose_operating

    scores = read_foreign(predictions, labels.findings if labels else None, scale)
    known = labels or _own_labels(scores)
    row_of = {name: row for row, name in enumerate(known.file_names(np.arange(len(known))))}
    val = _join(scores, known, _rows_of(scores, row_of), str(predictions))
    joined.log.extend(val.log)
    operating = choose_operating(val.of(findings))
    num_both = len(np.intersect1d(val.index.patient_id, joined.index.patient_id))
    if not num_both:
        return operating, val.notes
    return operating, [
        *val.notes,
        f"{num_both:,} patients are in {predictions.name} and among the scored: figures at thresholds flatter.",
    ]


def read_other(
    path: Path, predictions: Path, labels: SampleIndex | None, joined: Joined, scale: Scale
) -> tuple[ForeignScores, NDArray[np.int64], list[str], list[str]]:
    """The other model's scores, the rows of the images scored, how they were read, and the findings both have."""
    from distcxr.metrics.foreign import align, read_foreign

    index = joined.index
    other = read_foreign(path, labels.findings if labels else None, scale)
    at, log = align(other, index.file_names(np.arange(len(index))), str(predictions))
    findings = [name for name in joined.scores.findings if name in other.findings]
    if not findings:
        raise ValueError(f"{path} and {predictions} have no finding in common")
    return other, at, [*other.notes, *log], findings
