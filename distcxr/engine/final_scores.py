"""The scores at the end of a run and of `--test`: what is written beside the checkpoints for people to read.

    val logits ──► operating.json: thresholds, temperatures ──┐
    logits of each split ─────────────────────────────────────┴─► metrics_<split>.json  predictions_<split>.csv
    worst samples of test ──► pictures/        boxes ──► localisation_test.json        all of it ──► report.html

Ranks gather logits together; rank 0 alone makes figures and files of them, so they don't depend on the world's size.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distcxr.engine.evaluate import Scores, evaluate
from distcxr.engine.pictures import write_localisation, write_pictures
from distcxr.engine.setup import Setup
from distcxr.metrics.calibration import probabilities
from distcxr.metrics.caveats import caveats
from distcxr.metrics.evaluation import FullReport, full_report
from distcxr.metrics.figures_json import full_json
from distcxr.metrics.operating import FROM_ITSELF, Operating, choose_operating
from distcxr.recipe import Recipe
from distcxr.report.page import write_report
from distcxr.report.training_section import write_curves
from distcxr.runfolder import filenames
from distcxr.runfolder.contents import read_operating
from distcxr.runfolder.predictions import Predictions, write_predictions
from distcxr.runfolder.whole import write_json
from distcxr.tracking.terminal import table_text

logger = logging.getLogger(__name__)

_ONE_NUMBER = "The two classes exclude each other: the AUROC of one is that of the other, and so is their average."
_JOINT = (
    "Several data sets at once: where they differ in how common a finding is, an AUROC over all of their images "
    "rewards a network that knows which of them an image is of. Those of each data set alone are among the subgroups."
)
_AGAINST_OTHERS = "The classes exclude each other: every figure is of one class against all the others together."


@dataclass(frozen=True)
class Weights:
    """Which weights are scored.

    Attributes:
        step: updates behind them; None for several checkpoints at once.
        chosen_on: the split that was scored to choose them among others; None where none was.
    """

    step: int | None
    chosen_on: str | None


def score_splits(
    setup: Setup, folder: Path, weights: Weights, splits: Sequence[str], notes: Sequence[str] = ()
) -> dict[str, Scores]:
    """Score the splits and write their files into `folder`; all ranks call it.

    Validation comes first, even where its scores are not asked for: the others' thresholds are chosen on it.

    Args:
        notes: sentences that belong beside the figures of every split.

    Returns:
        Scores of each of `splits`, the same on every rank.
    """
    scores: dict[str, Scores] = {}
    reports: dict[str, FullReport | None] = {}
    operating: Operating | None = None
    wanted = [split for split in ("val", "train", "test") if split in splits]
    if wanted and "val" not in wanted:
        wanted = ["val", *wanted]
    for split in wanted:
        found = evaluate(setup, split, setup.recipe.eval.tta)
        if split == "val":
            operating = operating_of(setup, found)
            write_operating(setup, folder, operating, weights)
        if split in splits:
            scores[split] = found
            made = trained_with(setup.recipe)
            reports[split] = write_scores(setup, folder, split, found, weights, operating, notes, trained_with=made)
    illustrate(setup, folder, scores.get("test"))
    show_results(folder, reports, weights)
    return scores


def operating_of(setup: Setup, val: Scores) -> Operating | None:
    """Thresholds and temperatures for the scores of validation; None without a readable image, and on ranks that
    write nothing.
    """
    if not setup.runtime.is_main or not len(val.rows):
        return None
    return choose_operating(val.scored)


def write_operating(setup: Setup, folder: Path, operating: Operating | None, weights: Weights) -> None:
    """Keep what validation chose, and for which weights, for a later `--test`."""
    if operating is not None:
        content = _made_with(setup, weights) | {"operating": operating.to_json()}
        write_json(folder / filenames.OPERATING, content)


def stored_operating(setup: Setup, folder: Path, weights: Weights) -> Operating | None:
    """What `folder` keeps, if it was chosen with these weights, views, labels and patients. Rank 0 alone asks."""
    try:
        content = read_operating(folder)
        if content is None:
            return None
        chosen = Operating.from_json(content.pop("operating"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        logger.warning(f"{folder / filenames.OPERATING} can't be read ({error!r}): validation is scored again")
        return None
    return chosen if content == _made_with(setup, weights) else None


def _made_with(setup: Setup, weights: Weights) -> dict[str, Any]:
    """All that thresholds depend on."""
    hashes = setup.hashes
    return {
        "step": weights.step,
        "tta": setup.recipe.eval.tta,
        "precision": setup.recipe.train.precision,
        "findings": list(setup.index.findings),
        "labels": hashes["labels"],
        "val": hashes["val"],
    }


def trained_with(recipe: Recipe) -> dict[str, Any]:
    """Loss and sampling that weights come from, of every stage where there are several; for the JSON."""
    loss, sampling, stages = recipe.loss, recipe.data.sampling, recipe.train.stages
    parts = [(stage.loss or loss, stage.sampling or sampling) for stage in stages] or [(loss, sampling)]
    dumped = [{"loss": loss.in_use(), "sampling": sampling.model_dump(mode="json")} for loss, sampling in parts]
    return dumped[0] if not stages else {"stages": dumped}


def write_scores(
    setup: Setup, folder: Path, split: str, scores: Scores, weights: Weights, operating: Operating | None,
    notes: Sequence[str] = (), *, chosen_on: str = "val", **entries: Any,
) -> FullReport | None:  # fmt: skip
    """Write `predictions_<split>.csv` and `metrics_<split>.json`; on rank 0 alone.

    Args:
        chosen_on: the split behind `operating`.
        notes: sentences that belong beside the figures.
        entries: more of the JSON's top level, beside the weights' step, the loss, and for classes that exclude each
            other the accuracy: the share of samples for which the likeliest class is right.

    Returns:
        The report of the split; None on the other ranks.
    """
    if not setup.runtime.is_main:
        return None
    index, rows, wanted = setup.index, scores.rows, setup.recipe.eval
    held = Predictions(
        index.file_names(rows), list(map(str, index.patient_id[rows].tolist())), index.findings, scores.logits_NC,
        index.targets_NC[rows], index.mask_NC[rows],
    )  # fmt: skip
    write_predictions(folder / filenames.predictions(split), held, probabilities(scores.logits_NC))
    notes = list(notes)
    if wanted.tta:
        notes.append(
            f"Test-time augmentation: mean of the logits of the image as it is and of {', '.join(wanted.tta)}."
        )
    if setup.recipe.loss.name == "cross_entropy":
        notes.append(_ONE_NUMBER if len(index.findings) == 2 else _AGAINST_OTHERS)
        entries["accuracy"] = scores.accuracy
    if index.members:
        notes.append(_JOINT)
    operating_from = None if operating is None else FROM_ITSELF if split == chosen_on else chosen_on
    full = full_report(
        split, scores.scored, sex=index.sex[rows], age=index.age[rows], view=index.view[rows],
        member=index.member_names(rows), macro_findings=wanted.macro_findings,
        unreadable=scores.report.unreadable, operating=operating, operating_from=operating_from,
        checkpoint_from=weights.chosen_on, replicates=wanted.replicates, notes=notes,
    )  # fmt: skip
    content = full_json(full) | {"step": weights.step, "loss": scores.loss, "tta": wanted.tta} | entries
    write_json(folder / filenames.metrics(split), content, indent=2)
    return full


def illustrate(setup: Setup, folder: Path, test: Scores | None) -> None:
    """Pictures and localisation of the test split, where it was scored; on rank 0 alone.

    Nothing here is worth a run that ended well: what goes wrong is a line of the log.
    """
    if not setup.runtime.is_main or test is None:
        return
    for write, failure in (
        (write_pictures, "no pictures of the worst cases"),
        (write_localisation, "heat maps were not compared with boxes"),
    ):
        try:
            write(setup, folder, "test", test)
        except Exception as error:
            logger.warning(f"{failure}: {error}")


def show_results(folder: Path, reports: Mapping[str, FullReport | None], weights: Weights) -> None:
    """Draw the report page, then end with one screen: a table, warnings, and where the page is; on rank 0 alone.

    The table and the warnings are those of the last split; the others have a line each, and everything is on the page.
    """
    scored = [full for full in reports.values() if full is not None]
    if not scored:
        return
    last = scored[-1]
    page = write_page(folder)
    of = "" if weights.step is None else f", weights of step {weights.step}"
    images = f"{last.report.num_samples:,} images of {last.num_patients:,} patients"
    lines = [f"{last.report.split} split{of}: {images}", table_text(last.table_rows())]
    for full in scored[:-1]:
        name, _, auroc, interval, _ = full.table_rows()[-1]
        lines.append(f"{full.report.split} split: {name}, AUROC {auroc} ({interval})")
    logger.info("\n".join(lines))
    for warning in caveats(last):
        logger.warning(f"warning: {warning}")
    if page is not None:
        logger.info(f"report: {page}")


def draw_curves(folder: Path) -> None:
    """Draw `curves.svg` of a run that is being trained, on rank 0; a failure is logged."""
    try:
        write_curves(folder)
    except Exception as error:
        logger.warning(f"no {filenames.CURVES}: {error!r}")


def write_page(folder: Path) -> Path | None:
    """Draw the report page of a run folder; its file, or None after a failure, which is logged."""
    try:
        return write_report(folder)
    except Exception as error:
        logger.warning(f"no report page: {error!r}. Try again with: distcxr report {folder}")
        return None
