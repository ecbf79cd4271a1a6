"""What validation left beside a run's weights for images to come: thresholds, temperatures, and scores to compare with.

    operating.json ───────┐
    predictions_val.csv ──┴─► Validated ──► decision, probability, and how common a score is
      of several runs ─► their mean ─► thresholds and temperatures of the mean

Shapes: N samples, C findings, P a finding's positives or negatives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distcxr.engine.checkpoint import Checkpoint, open_checkpoint
from distcxr.engine.compatible import check_together
from distcxr.engine.evaluate import Outputs, average
from distcxr.metrics.calibration import probabilities
from distcxr.metrics.operating import Operating, choose_operating
from distcxr.metrics.scored import Scored
from distcxr.runfolder import filenames
from distcxr.runfolder.contents import read_metrics, read_operating
from distcxr.runfolder.layout import is_best, run_folder_of
from distcxr.runfolder.predictions import Predictions, read_predictions


@dataclass(frozen=True)
class Validated:
    """What is known of a network's scores from validation.

    Attributes:
        operating: None where nothing was chosen for these weights.
        kept: logits and labels of validation; None where there are none of these weights.
        tta, precision: views and precision that all of it holds for; None where nothing is known.
        problems: sentences about what is not there.
    """

    findings: tuple[str, ...]
    operating: Operating | None
    kept: Predictions | None
    tta: tuple[str, ...] | None
    precision: str | None
    problems: tuple[str, ...]

    @property
    def rules(self) -> tuple[str, ...]:
        """Names of the thresholds there are."""
        return () if self.operating is None else tuple(self.operating.thresholds)

    def logit_threshold(self, rule: str, column: int) -> float | None:
        """A finding is called positive at this logit or above; None where there is no threshold."""
        return None if self.operating is None else self.operating.threshold(rule, column, "logit")

    def threshold(self, rule: str, column: int) -> float | None:
        """The same threshold of the calibrated probability."""
        logit = self.logit_threshold(rule, column)
        return None if logit is None else float(self.calibrated(np.array(logit), column))

    def calibrated(self, logits_N: NDArray[np.floating[Any]], column: int) -> NDArray[np.float64]:
        """Probabilities of a finding's logits, by its temperature where it has one."""
        temperature = None if self.operating is None else self.operating.temperatures[column].value
        return probabilities(logits_N, temperature or 1.0)

    def scores(self, column: int, target: int) -> NDArray[np.float32]:
        """Logits of the finding's negatives (0) or positives (1) in validation, ascending, float32 [P]."""
        if self.kept is None:
            return np.empty(0, dtype=np.float32)
        chosen = (self.kept.mask_NC[:, column] == 1) & (self.kept.targets_NC[:, column] == target)
        return np.sort(self.kept.logits_NC[chosen, column])


def scored_folder(checkpoint: Path) -> Path | None:
    """Where the figures of a checkpoint are, if it was scored; None where it is in no run folder."""
    run = run_folder_of(checkpoint)
    return run if run is None or is_best(checkpoint) else run / filenames.tested(checkpoint.name)


def validated(checkpoint: Checkpoint) -> Validated:
    """What the run of a checkpoint kept for these very weights."""
    findings, named = tuple(checkpoint.meta["findings"]), str(checkpoint.path)
    nothing = Validated(findings, None, None, None, None, ())
    run, folder = run_folder_of(checkpoint.path), scored_folder(checkpoint.path)
    if run is None or folder is None:
        return replace(nothing, problems=(f"{named} is not in a run folder: {_WITHOUT}",))
    problems: list[str] = []
    content = _read(folder / filenames.OPERATING, lambda: read_operating(folder), problems)
    operating, tta, precision = None, None, None
    if content is not None and content.get("step") == checkpoint.step and content.get("findings") == list(findings):
        try:
            operating = Operating.from_json(content["operating"])
            tta, precision = tuple(content["tta"]), str(content["precision"])
        except (KeyError, TypeError, ValueError) as error:
            problems.append(f"{folder / filenames.OPERATING} is damaged: {error!r}")
    elif content is not None:
        problems.append(f"{folder / filenames.OPERATING} is of other weights (step {content.get('step')}) than {named}")
    kept = None
    figures = _read(folder / filenames.metrics("val"), lambda: read_metrics(folder, "val"), problems)
    if figures is not None and figures.get("step") == checkpoint.step:
        views = tuple(figures.get("tta") or ())
        if tta in (None, views):
            path = folder / filenames.predictions("val")
            kept = _read(path, lambda: read_predictions(path) if path.exists() else None, problems)
            tta = views if kept is not None else tta
    if kept is not None and tuple(kept.findings) != findings:
        kept = None
    if operating is None and kept is not None:
        operating = choose_operating(_scored(kept))
    if operating is None:
        problems.append(f"{folder} has no {filenames.OPERATING} for these weights: {_WITHOUT}")
        if is_best(checkpoint.path):
            problems[-1] += f". `distcxr test {run}` makes it"
    elif kept is None:
        problems.append(
            f"{folder} has no {filenames.predictions('val')} of these weights and views: how common a score is, "
            "is not known"
        )
    return Validated(findings, operating, kept, tta, precision, tuple(problems))


def opened_together(runs: Sequence[Path]) -> tuple[list[Checkpoint], list[Validated], Validated]:
    """Checkpoints, what each run kept of validation, and what that makes of their mean.

    Raises:
        ValueError: no whole checkpoint there, or several that can't be averaged.
    """
    checkpoints = [open_checkpoint(run) for run in runs]
    known, first = [validated(checkpoint) for checkpoint in checkpoints], checkpoints[0]
    if len(checkpoints) == 1:
        return checkpoints, known, known[0]
    check_together(checkpoints, first.recipe, first.meta["findings"])
    return checkpoints, known, validated_together(known, [str(run) for run in runs], first.recipe.loss.name)


def validated_together(members: Sequence[Validated], names: Sequence[str], loss_name: str) -> Validated:
    """The same for the mean of several networks, from the validation images that all of them kept.

    An image that one of them was trained on can't be among these.

    Args:
        names: of the runs, for messages.
        loss_name: as for `evaluate.average`.
    """
    first = members[0]
    nothing = Validated(first.findings, None, None, None, None, ())
    parts = [member.kept for member in members]
    kept = [part for part in parts if part is not None]
    if len(kept) < len(members):
        lacking = ", ".join(name for name, part in zip(names, parts, strict=True) if part is None)
        problem = f"no {filenames.predictions('val')} of these weights in {lacking}: {_WITHOUT}"
        return replace(nothing, problems=(problem,))
    row_of = {file: row for row, file in enumerate(kept[0].files)}
    outputs = []
    for part in kept:
        there = np.array([file in row_of for file in part.files], dtype=np.bool_)
        rows = np.array([row_of[file] for file in part.files if file in row_of], dtype=np.int64)
        order = np.argsort(rows)
        outputs.append(Outputs(rows[order], part.logits_NC[there][order], ()))
    mean = average(outputs, loss_name)
    if not len(mean.rows):
        return replace(nothing, problems=(f"{', '.join(names)} share no validation image: {_WITHOUT}",))
    shared = Predictions(
        [kept[0].files[row] for row in mean.rows], [kept[0].patient_ids[row] for row in mean.rows], first.findings,
        mean.values_NK, kept[0].targets_NC[mean.rows], kept[0].mask_NC[mean.rows],
    )  # fmt: skip
    return replace(nothing, operating=choose_operating(_scored(shared)), kept=shared)


_WITHOUT = "probabilities are not calibrated, and nothing is called positive"


def _scored(kept: Predictions) -> Scored:
    return Scored.of(kept.findings, kept.logits_NC, kept.targets_NC, kept.mask_NC, np.array(kept.patient_ids))


def _read(path: Path, read: Any, problems: list[str]) -> Any:
    """What `read` returns; None where the file is damaged, which is then one of the problems."""
    try:
        return read()
    except (OSError, ValueError) as error:
        problems.append(str(error) if str(path) in str(error) else f"{path} can't be read: {error}")
        return None
