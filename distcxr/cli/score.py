"""`distcxr score PREDICTIONS.csv --labels LABELS.csv`: the report of a run, for anyone's predictions."""

from __future__ import annotations

import argparse
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from distcxr.data.index import SampleIndex
    from distcxr.metrics.calibration import Logits
    from distcxr.metrics.foreign import ForeignScores
    from distcxr.metrics.full_report import FullReport, Operating

_NUM_DIFFERENCES_SHOWN = 12


@dataclass(frozen=True)
class _Judged:
    """Scores and labels of the same images and findings; `notes` are warnings for the report, `said` how it was read.

    The index has the images scored, in the order of the label file or list.
    """

    scores: ForeignScores
    index: SampleIndex
    scores_NC: Logits
    targets_NC: NDArray[np.uint8]
    mask_NC: NDArray[np.uint8]
    notes: list[str]
    said: list[str]


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb to the command line."""
    parser = verbs.add_parser(
        "score",
        help="judge anyone's predictions, with patient-level intervals",
        description="Scores a CSV of predictions: the first column is the image file, then there is a column per "
        "finding. distcxr's own predictions files are read as they are.",
    )
    parser.add_argument("predictions", type=Path, metavar="PREDICTIONS.csv")
    parser.add_argument(
        "--labels", type=Path, metavar="FILE", help="NIH's Data_Entry file, or a table with a column of 0, 1 or "
        "nothing per finding (distcxr's own predictions hold their labels and can do without)",
    )  # fmt: skip
    parser.add_argument("--list", type=Path, metavar="FILE", help="images to score, one name a line: test_list.txt")
    parser.add_argument("--split", metavar="NAME", help="what to call these images (default: the list's name)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything, as a run's metrics_<split>.json")
    parser.add_argument("--against", type=Path, metavar="OTHER.csv", help="another model's predictions, to compare")
    parser.add_argument(
        "--calibrate-on", type=Path, metavar="VAL.csv", help="the same model's predictions of its validation images, "
        "to choose thresholds and temperatures (default: the scored images themselves, which flatters)",
    )  # fmt: skip
    scale = parser.add_mutually_exclusive_group()
    scale.add_argument("--probabilities", dest="scale", action="store_const", const="probability", help="not logits")
    scale.add_argument("--logits", dest="scale", action="store_const", const="logit", help="not probabilities")
    parser.add_argument("--replicates", type=int, default=1000, metavar="N", help="of the bootstrap, default 1000")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap, default 0")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Score and print; a ValueError goes to the caller."""
    from distcxr.data.sources.label_table import read_labels
    from distcxr.metrics.full_report import FROM_ITSELF, choose_operating, full_report
    from distcxr.metrics.report import write_json

    if args.json and not args.json.absolute().parent.is_dir():  # now, not after the work
        raise ValueError(f"{args.json} can't be written: the folder {args.json.parent} is not there")
    labels = read_labels(args.labels) if args.labels else None
    judged, split, source = _judge(args, labels)
    other = _read_other(args, labels, judged) if args.against else None
    operating, operating_from = None, FROM_ITSELF
    if args.calibrate_on:
        operating, notes = _calibrate(args, labels, judged)
        operating_from = "val"
        judged.notes.extend(notes)
    scores, index = judged.scores, judged.index
    arrays = (scores.findings, judged.scores_NC, judged.targets_NC, judged.mask_NC)
    full = full_report(
        split, *arrays, patient_id=index.patient_id, sex=index.sex, age=index.age, view=index.view,
        operating=operating or choose_operating(*arrays, scale=scores.scale), operating_from=operating_from,
        replicates=args.replicates, seed=args.seed, scale=scores.scale, notes=judged.notes,
    )  # fmt: skip
    _print(full, judged.said)
    more: dict[str, Any] = {"source": source | {"said": judged.said}}
    if other is not None:
        more["against"] = _compare(args, judged, *other)
    if args.json:
        try:
            write_json(full, args.json, **more)
        except OSError as error:
            raise ValueError(f"{args.json} can't be written: {error.strerror}") from error
        print(f"written: {args.json}")
    return 0


def _judge(args: argparse.Namespace, labels: SampleIndex | None) -> tuple[_Judged, str, dict[str, Any]]:
    """What is to be scored, what to call it, and where it is from."""
    from distcxr.data.sources.nih import KNOWN_HASHES
    from distcxr.data.splits import read_list
    from distcxr.metrics.foreign import read_foreign
    from distcxr.metrics.report import NO_FINDING

    scores = read_foreign(args.predictions, labels.findings if labels else None, args.scale)
    known = labels or _own_labels(scores)
    row_of = {name: row for row, name in enumerate(known.file_names(np.arange(len(known))))}
    split, digest = "predictions", None
    if args.list:
        member, digest = read_list(args.list, row_of, set())
        rows = np.flatnonzero(member)
        split = args.list.stem.removesuffix("_list")
    else:
        rows = _rows_of(scores, row_of)
    judged = _join(scores, known, rows, str(args.list or args.labels or args.predictions))
    if not args.list and len(rows) < len(known):
        judged.said.append(f"{len(rows):,} of the {len(known):,} labelled images are scored; --list says which are due")
    absent = [name for name in known.findings if name not in scores.findings and name != NO_FINDING]
    if absent:
        judged.notes.append(f"Not predicted, and not in the macro average: {', '.join(absent)}.")
    if KNOWN_HASHES.get(digest or "") != "NIH test_list.txt" or KNOWN_HASHES.get(known.label_hash) != "NIH v2020":
        judged.notes.append(
            "These are not NIH's test list and its labels of 2020, as far as their hashes tell: the figures do not "
            "compare with published ones of the official split."
        )
    source = {
        "predictions": args.predictions.name,
        "predictions_sha256": hashlib.sha256(args.predictions.read_bytes()).hexdigest(),
        "scale": scores.scale,
        "labels_sha256": known.label_hash or None,
        "list_sha256": digest,
    }
    return judged, args.split or split, source


def _rows_of(scores: ForeignScores, row_of: dict[str, int]) -> NDArray[np.int64]:
    """Rows of the labels that the predictions name, ascending."""
    from distcxr.metrics.caveats import first_few

    by_stem = {name.rsplit(".", 1)[0]: row for name, row in row_of.items()}
    found = [row_of.get(name, by_stem.get(name.rsplit(".", 1)[0])) for name in scores.files]
    strangers = [name for name, row in zip(scores.files, found, strict=True) if row is None]
    if len(strangers) == len(found):
        raise ValueError(
            f"{scores.path}: none of the {len(found):,} images is in the labels: {first_few(strangers, 3)}, where "
            f"labels name {next(iter(row_of))}. The first column has to be the image file (pandas puts row numbers "
            "there, unless told index=False)"
        )
    if strangers:
        raise ValueError(
            f"{scores.path}: {len(strangers):,} of the {len(found):,} images are not in the labels: "
            f"{first_few(strangers, 3)}"
        )
    return np.unique(np.array([row for row in found if row is not None], dtype=np.int64))


def _join(scores: ForeignScores, labels: SampleIndex, rows: NDArray[np.int64], of: str) -> _Judged:
    from distcxr.metrics.foreign import align

    index = labels.take(rows)
    at, said = align(scores, index.file_names(np.arange(len(index))), of)
    columns = [index.findings.index(name) for name in scores.findings]
    targets_NC, mask_NC = index.targets_NC[:, columns], index.mask_NC[:, columns]
    notes = []
    if scores.ours is not None:
        both = scores.ours.mask_NC[at] & mask_NC
        if num := int(np.count_nonzero((scores.ours.targets_NC[at] != targets_NC) & both)):
            notes.append(
                f"{num:,} labels differ from those that {scores.path.name} holds: it was made with another label file."
            )
    return _Judged(scores, index, scores.scores_NC[at], targets_NC, mask_NC, notes, [*scores.said, *said])


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


def _calibrate(args: argparse.Namespace, labels: SampleIndex | None, judged: _Judged) -> tuple[Operating, list[str]]:
    """Thresholds and temperatures from other images than the scored ones, and what is wrong with them."""
    from distcxr.metrics.foreign import columns_of, read_foreign
    from distcxr.metrics.full_report import choose_operating

    scores = read_foreign(args.calibrate_on, labels.findings if labels else None, args.scale)
    known = labels or _own_labels(scores)
    row_of = {name: row for row, name in enumerate(known.file_names(np.arange(len(known))))}
    val = _join(scores, known, _rows_of(scores, row_of), str(args.calibrate_on))
    judged.said.extend(val.said)
    findings = judged.scores.findings
    at = columns_of(scores, findings)
    operating = choose_operating(
        findings, val.scores_NC[:, at], val.targets_NC[:, at], val.mask_NC[:, at], scale=scores.scale
    )
    num_both = len(np.intersect1d(val.index.patient_id, judged.index.patient_id))
    if not num_both:
        return operating, val.notes
    return operating, [
        *val.notes,
        f"{num_both:,} patients are in {args.calibrate_on.name} and among the scored: figures at thresholds flatter.",
    ]


def _read_other(
    args: argparse.Namespace, labels: SampleIndex | None, judged: _Judged
) -> tuple[ForeignScores, NDArray[np.int64], list[str], list[str]]:
    """The other model's scores, the rows of the images scored, what is to be said, and the findings both have."""
    from distcxr.metrics.foreign import align, read_foreign

    index = judged.index
    other = read_foreign(args.against, labels.findings if labels else None, args.scale)
    at, said = align(other, index.file_names(np.arange(len(index))), str(args.predictions))
    findings = [name for name in judged.scores.findings if name in other.findings]
    if not findings:
        raise ValueError(f"{args.against} and {args.predictions} have no finding in common")
    return other, at, [*other.said, *said], findings


def _compare(
    args: argparse.Namespace,
    judged: _Judged,
    other: ForeignScores,
    at: NDArray[np.int64],
    said: list[str],
    findings: list[str],
) -> dict[str, Any]:
    """Hold the scored model against another on the same images, print the differences, and return them for JSON."""
    from distcxr.metrics.bootstrap import PatientResamples
    from distcxr.metrics.compare import compare_models
    from distcxr.metrics.foreign import columns_of
    from distcxr.metrics.full_json import comparison_json
    from distcxr.metrics.operating import rank
    from distcxr.metrics.report import NO_FINDING
    from distcxr.tracking.terminal import table_text

    columns = columns_of(judged.scores, findings)
    compared = compare_models(
        PatientResamples(judged.index.patient_id, args.replicates, args.seed),
        rank(judged.scores_NC[:, columns]).scores_NC,
        rank(other.scores_NC[at][:, columns_of(other, findings)]).scores_NC,
        judged.targets_NC[:, columns],
        judged.mask_NC[:, columns],
        [column for column, name in enumerate(findings) if name != NO_FINDING],
    )
    entry = {"predictions": args.against.name, "said": said, **comparison_json(compared, findings)}
    rows: list[tuple[str, ...]] = [("AUROC", "this", "other", "difference", "interval", "p", "p DeLong", "")]
    named = {**entry["findings"], f"macro of {len(compared.macro_columns)}": entry["macro"]}
    for name, found in named.items():
        low, high = found["difference_low"], found["difference_high"]
        interval = "-" if low is None else f"{low:+.4f} to {high:+.4f}"
        values = [_cell(found[key]) for key in ("auroc", "auroc_other")]
        p_values = [_cell(found[key]) for key in ("p", "p_delong")]
        rows.append((name, *values, _cell(found["difference"], "+.4f"), interval, *p_values, found["reason"] or ""))
    print(f"\nless {args.against}, the same patients drawn for both")
    for sentence in entry["said"]:
        print(sentence)
    print(table_text(rows, width=100))
    return entry


def _print(full: FullReport, said: list[str]) -> None:
    from distcxr.tracking.terminal import table_text

    for sentence in said:
        print(sentence)
    images = f"{full.report.num_samples:,} images of {full.num_patients:,} patients"
    print(f"\n{images}, {full.level:.0%} intervals from {full.replicates:,} draws of the patients\n")
    print(table_text(full.table_rows()))
    print("\noperating points, calibration and subgroups: --json FILE writes them")
    differences = full.subgroups.differences
    num_pairs = full.subgroups.num_pairs
    print(f"\ngroups whose intervals do not meet: {len(differences)} of {num_pairs} pairs (of many, some by chance)")
    for found in differences[:_NUM_DIFFERENCES_SHOWN]:
        low, high = (f"{side.group} {_cell(side.auroc.value)}" for side in (found.lower, found.higher))
        print(f"  {found.attribute}, {found.finding}: {low} < {high}")
    if len(differences) > _NUM_DIFFERENCES_SHOWN:
        print(f"  and {len(differences) - _NUM_DIFFERENCES_SHOWN} more: --json writes all")
    for warning in full.warnings:
        print(f"warning: {warning}")


def _cell(value: float | None, form: str = ".4f") -> str:
    return "-" if value is None else format(value, form)
