"""What a reader has to know before trusting a report, in sentences."""

from __future__ import annotations

from distcxr.metrics.areas import SAME_SCORE
from distcxr.metrics.evaluation import FullReport
from distcxr.metrics.operating import FROM_ITSELF
from distcxr.metrics.scored import first_few

FEW_POSITIVES = 20
"""Patients: with fewer, one of them moves recall by more than .05."""

FEW_REPLICATES = 200
"""With fewer, an end of a 95 % interval is one of the five lowest or highest samples."""


def caveats(full: FullReport) -> list[str]:
    """The sentences that hold of this report, its notes first."""
    return [*full.notes, *_choices(full), *_patients(full), *_findings(full)]


def _choices(full: FullReport) -> list[str]:
    split, source, chooser = full.report.split, full.operating_from, full.checkpoint_from
    found = []
    if chooser == split:
        found.append(f"The {split} split chose the checkpoint: every figure here is optimistic.")
    if source in (split, FROM_ITSELF):
        found.append(
            f"Thresholds and temperatures were chosen on the {split} split itself: recall, precision, specificity, "
            "NPV, accuracy and F1 at them, and calibrated errors, are optimistic. AUROC and average precision need "
            "neither."
        )
    elif source is not None and source == chooser:
        found.append(
            f"The {source} split chose both the checkpoint and the thresholds: its own figures are optimistic, and "
            f"the recall or specificity that was asked for on it may be missed on {split}."
        )
    return found + _few_behind_thresholds(full)


def _few_behind_thresholds(full: FullReport) -> list[str]:
    """Of thresholds that rest on few positive patients, or on an unknown number."""
    operating = full.operating
    if operating is None:
        return []
    named = zip(operating.findings, operating.counts, strict=True)
    few = [
        f"{name} (positives: {one.num_positive:,}, of patients: {one.num_positive_patients:,})"
        for name, one in named
        if one and 0 < one.num_positive_patients < FEW_POSITIVES
    ]
    found = []
    if few:
        found.append(
            f"Thresholds and temperatures chosen on fewer than {FEW_POSITIVES} positive patients: {', '.join(few)}. "
            "The recall that was asked for may be far off on other images; intervals that hold the threshold do not "
            "include that."
        )
    if None in operating.counts:
        found.append("How many positives the thresholds rest on is not known: an older version kept them.")
    return found


def _patients(full: FullReport) -> list[str]:
    found = []
    if full.replicates < FEW_REPLICATES:
        found.append(
            f"Intervals are of {full.replicates:,} bootstrap samples only: their ends rest on the "
            f"{max(1, round(full.replicates / 40))} lowest and highest, and differ by seed; 1,000 are usual."
        )
    if full.num_patients == 1:
        found.append("All images are of one patient: so there are no intervals.")
    if unreadable := full.report.unreadable:
        files = first_few([entry.file for entry in unreadable])
        found.append(f"{len(unreadable):,} files could not be read and were left out: {files}.")
    return found


def _findings(full: FullReport) -> list[str]:
    scores, areas = full.report.findings, full.areas
    found = []
    if undefined := [f"{name} ({score.reason})" for name, score in scores.items() if score.reason]:
        found.append(f"No areas, and no part in the macro average: {'; '.join(undefined)}.")
    few = [
        f"{name} ({one.num_positive_patients}, {one.num_positive} images)"
        for name, one in scores.items()
        if 0 < one.num_positive_patients < FEW_POSITIVES
    ]
    if few:
        found.append(f"Fewer than {FEW_POSITIVES} positive patients, who decide the figures: {', '.join(few)}.")
    bare = [
        f"{name} ({one.reason})"
        for name, one in zip((*scores, "the macro average"), (*areas.auroc, areas.macro_auroc), strict=True)
        if one.value is not None and one.low is None
    ]
    if bare and full.num_patients > 1:
        found.append(f"No interval of the AUROC: {'; '.join(bare)}.")
    aurocs = list(zip(scores, areas.auroc, strict=True))
    if worse := [name for name, auroc in aurocs if auroc.high is not None and auroc.high < 0.5]:
        found.append(
            f"Worse than chance, the whole interval below 0.5: {', '.join(worse)}. Are columns swapped, or scores "
            "those of the finding's absence?"
        )
    constant = [name for name, auroc in aurocs if auroc.reason == SAME_SCORE]
    if constant:
        found.append(f"The same score for every image: {', '.join(constant)}.")
    return found
