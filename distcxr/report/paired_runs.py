"""Two runs of a sweep on the same images: differences of their figures, on the same draws of the patients.

Shape suffixes: N samples, C findings.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from distcxr.metrics.accuracy import accuracy_difference, right_N
from distcxr.metrics.bootstrap import PatientResamples
from distcxr.metrics.figures_json import comparison_json, figure, paired_json
from distcxr.metrics.operating import Operating
from distcxr.metrics.paired_tests import compare_models
from distcxr.metrics.scored import Scored
from distcxr.runfolder.predictions import Predictions


def paired_areas(
    theirs: Predictions, ours: Predictions, rows_N2: Any, averaged: Sequence[str], intervals: dict[str, Any],
    chosen: Sequence[Operating | None],
) -> dict[str, Any]:  # fmt: skip
    """AUROC and average precision of theirs less ours, and rates at thresholds.

    Args:
        rows_N2: the images of both: rows of ours, rows of theirs.
        averaged: findings of the macro average.
        intervals: of ours, for its replicates and seed.
        chosen: what validation chose for theirs and for ours.
    """
    rows_ours, rows_theirs = rows_N2[:, 0], rows_N2[:, 1]
    columns = [name for name in averaged if name in ours.findings and name in theirs.findings]
    at, at_theirs = [[held.findings.index(name) for name in columns] for held in (ours, theirs)]
    targets_NC, mask_NC = ours.targets_NC[rows_ours][:, at], ours.mask_NC[rows_ours][:, at]
    patient_id = np.array(ours.patient_ids, dtype=np.str_)[rows_ours]
    a, b = (
        Scored.of(columns, logits_NC, targets_NC, mask_NC, patient_id)
        for logits_NC in (theirs.logits_NC[rows_theirs][:, at_theirs], ours.logits_NC[rows_ours][:, at])
    )
    resamples = PatientResamples(a.num_patients, intervals.get("replicates") or 1000, intervals.get("seed") or 0)
    a_chosen, b_chosen = chosen
    both = (a_chosen, b_chosen) if a_chosen and b_chosen else None
    found = compare_models(resamples, a, b, operating=both)
    macro, content = found.macro_auroc, comparison_json(found, columns)
    return {
        **figure("auroc", macro.difference),
        "p": macro.p,
        "p_floor": macro.p_floor,
        "reason": macro.difference.reason,
        "auprc": content["macro"]["auprc"],
        "findings": content["findings"],
        "methods": content["methods"],
    }


def paired_accuracies(
    theirs: Predictions, ours: Predictions, rows_N2: Any, intervals: dict[str, Any]
) -> dict[str, Any] | None:
    """Of runs with classes that exclude each other, all of which have the same; None where they have not."""
    if set(theirs.findings) != set(ours.findings):
        return None
    rows_ours, rows_theirs = rows_N2[:, 0], rows_N2[:, 1]
    at = [theirs.findings.index(name) for name in ours.findings]
    labels = ours.targets_NC[rows_ours], ours.mask_NC[rows_ours]
    logits = theirs.logits_NC[rows_theirs][:, at], ours.logits_NC[rows_ours]
    a_N, b_N = (right_N(each, *labels) for each in logits)
    if a_N is None or b_N is None:
        return None
    patient_id = np.array(ours.patient_ids, dtype=np.str_)[rows_ours]
    scored = Scored.of(ours.findings, logits[1], *labels, patient_id)
    resamples = PatientResamples(scored.num_patients, intervals.get("replicates") or 1000, intervals.get("seed") or 0)
    return paired_json("accuracy", accuracy_difference(resamples, scored, a_N, b_N))
