"""`distcxr score PREDICTIONS.csv --labels LABELS.csv`: the report of a run, for anyone's predictions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from distcxr.cli.options import Json, Seed, check_writable

if TYPE_CHECKING:
    from distcxr.cli.scored_files import Scale
    from distcxr.metrics.evaluation import FullReport

_NUM_DIFFERENCES_SHOWN = 12

_Predictions = Annotated[
    Path,
    typer.Argument(
        metavar="PREDICTIONS.csv", show_default=False,
        help="the image file in the first column, then a column of scores for each finding",
    ),
]  # fmt: skip
_Labels = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", show_default=False,
        help="NIH's Data_Entry file, or a table with a column of 0, 1 or nothing per finding (distcxr's own "
        "predictions hold their labels and can do without)",
    ),
]  # fmt: skip
_List = Annotated[
    Path | None,
    typer.Option("--list", metavar="FILE", show_default=False, help="images to score, one a line: test_list.txt"),
]
_Split = Annotated[
    str | None,
    typer.Option(metavar="NAME", show_default=False, help="what to call these images (default: the list's name)"),
]
_Against = Annotated[
    Path | None,
    typer.Option(metavar="OTHER.csv", show_default=False, help="another model's predictions, to compare"),
]
_CalibrateOn = Annotated[
    Path | None,
    typer.Option(
        metavar="VAL.csv", show_default=False,
        help="the same model's predictions of its validation images, to choose thresholds and temperatures (default: "
        "the scored images themselves, which flatters)",
    ),
]  # fmt: skip
_AgainstCalibrateOn = Annotated[
    Path | None,
    typer.Option(
        metavar="OTHER_VAL.csv", show_default=False,
        help="the other model's predictions of its validation images: with --calibrate-on, rates at thresholds from "
        "validation are compared",
    ),
]  # fmt: skip
_Probabilities = Annotated[bool, typer.Option("--probabilities", help="the scores are not logits")]
_Logits = Annotated[bool, typer.Option("--logits", help="the scores are not probabilities")]
_Leaderboard = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE.md", show_default=False,
        help="write the macro AUROC there as a row of docs/leaderboard.md, with the hashes of its files",
    ),
]  # fmt: skip
_Replicates = Annotated[
    int,
    typer.Option(metavar="N", help="patient resamples behind the intervals of Brier score and ECE, and of --against"),
]


def run(
    predictions: _Predictions,
    labels: _Labels = None,
    images: _List = None,
    split: _Split = None,
    json: Json = None,
    against: _Against = None,
    calibrate_on: _CalibrateOn = None,
    against_calibrate_on: _AgainstCalibrateOn = None,
    probabilities: _Probabilities = False,
    logits: _Logits = False,
    leaderboard: _Leaderboard = None,
    replicates: _Replicates = 1000,
    seed: Seed = 0,
) -> int:
    """Score anyone's predictions, with patient-level intervals.

    AUROC, average precision, thresholds, calibration and subgroups, as a run's own report has them, and the difference
    to another model. The predictions files of a run folder are read as they are.
    """
    from distcxr.cli.compared_models import compare
    from distcxr.cli.scored_files import calibrate, read_other, read_scored
    from distcxr.data.sources.label_table import read_labels
    from distcxr.metrics.accuracy import accuracy, is_exclusive
    from distcxr.metrics.bootstrap import PatientResamples
    from distcxr.metrics.evaluation import full_report
    from distcxr.metrics.figures_json import full_json
    from distcxr.metrics.operating import FROM_ITSELF, choose_operating
    from distcxr.report.leaderboard import row_of, table
    from distcxr.runfolder.whole import write_json, write_whole

    check_writable(json)
    check_writable(leaderboard)
    if against_calibrate_on and not against:
        raise ValueError("--against-calibrate-on is about the model of --against: name its predictions there")
    if probabilities and logits:
        raise ValueError("--probabilities and --logits exclude each other")
    scale: Scale = "probability" if probabilities else "logit" if logits else None
    known = read_labels(labels) if labels else None
    joined, name, source = read_scored(predictions, known, images, scale, labels)
    other = read_other(against, predictions, known, joined, scale) if against else None
    operating, operating_from = None, FROM_ITSELF
    if calibrate_on:
        operating, notes = calibrate(calibrate_on, known, joined, scale, joined.scores.findings)
        operating_from = "val"
        joined.notes.extend(notes)
    index, scored = joined.index, joined.of(joined.scores.findings)
    full = full_report(
        split or name, scored, sex=index.sex, age=index.age, view=index.view,
        operating=operating or choose_operating(scored), operating_from=operating_from,
        replicates=replicates, seed=seed, notes=joined.notes,
    )  # fmt: skip
    _print(full, joined.log)
    exclusive = is_exclusive(joined.targets_NC, joined.mask_NC)
    right = accuracy(joined.scores_NC, joined.targets_NC, joined.mask_NC) if exclusive else None
    if exclusive:
        print(f"accuracy, of the likeliest class: {_cell(right)}")
    more: dict[str, Any] = {"source": source | {"said": joined.log}}
    if against and other is not None:
        resamples = PatientResamples(scored.num_patients, replicates, seed)
        theirs = None
        if against_calibrate_on:
            theirs, notes = calibrate(against_calibrate_on, known, joined, scale, other[-1])
            other[2].extend(notes)
        compared = compare(against, joined, resamples, *other, (operating, theirs))
        more["against"] = {"predictions": against.name, "said": other[2], **compared}
    content = full_json(full)
    if exclusive:
        content["accuracy"] = right
    if json:
        write_json(json, content | more, indent=2)
        print(f"written: {json}")
    if leaderboard:
        write_whole(leaderboard, table([row_of(predictions.stem, content, source)]))
        print(f"written: {leaderboard}")
    return 0


def _print(full: FullReport, log: list[str]) -> None:
    from distcxr.metrics.caveats import caveats
    from distcxr.metrics.estimate import LEVEL
    from distcxr.tracking.terminal import table_text

    for sentence in log:
        print(sentence)
    images = f"{full.report.num_samples:,} images of {full.num_patients:,} patients"
    print(f"\n{images}, {LEVEL:.0%} intervals by patient\n")
    print(table_text(full.table_rows()))
    print("\noperating points, calibration and subgroups: --json FILE writes them")
    differences = full.subgroups.differences
    num_tested = len(full.subgroups.tested)
    print(f"\ngroups that differ in AUROC: {len(differences)} of {num_tested} pairs tested (Holm's correction)")
    for found in differences[:_NUM_DIFFERENCES_SHOWN]:
        low, high = (f"{side.group} {_cell(side.auroc.value)}" for side in (found.lower, found.higher))
        p = "< 0.0001" if found.p_adjusted < 1e-4 else f"= {found.p_adjusted:.4f}"
        print(f"  {found.attribute}, {found.finding}: {low} < {high}, adjusted p {p}")
    if len(differences) > _NUM_DIFFERENCES_SHOWN:
        print(f"  and {len(differences) - _NUM_DIFFERENCES_SHOWN} more: --json writes all")
    for warning in caveats(full):
        print(f"warning: {warning}")


def _cell(value: float | None, form: str = ".4f") -> str:
    return "-" if value is None else format(value, form)
