"""A few hundred samples of a few dozen patients, ties and unknown labels included."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from distcxr.metrics.calibration import probabilities
from distcxr.metrics.scored import Known, Scale, Scored
from distcxr.runfolder.predictions import Predictions


class Cohort(NamedTuple):
    logits_NC: NDArray[np.float32]
    targets_NC: NDArray[np.uint8]
    mask_NC: NDArray[np.uint8]
    patient_id: NDArray[np.int64]


def cohort(seed: int = 0, num: int = 400, patients: int = 60, findings: int = 4, decimals: int = 1) -> Cohort:
    """Patients differ in how often they are ill and how high they score, as real ones do."""
    rng = np.random.default_rng(seed)
    row = rng.integers(0, patients, size=num)
    ill = rng.normal(size=(patients, findings))[row]
    targets = (ill + rng.normal(size=(num, findings)) > 1).astype(np.uint8)
    logits = (ill + targets + rng.normal(size=(num, findings)) - 1).round(decimals).astype(np.float32)
    mask = (rng.random((num, findings)) > 0.1).astype(np.uint8)
    ids = rng.permutation(10 * patients)[:patients][row].astype(np.int64)
    return Cohort(logits, targets, mask, ids)


def scored(
    logits_NC: NDArray[np.floating[Any]],
    targets_NC: NDArray[np.uint8],
    mask_NC: NDArray[np.uint8],
    patient_id: NDArray[Any],
    findings: Sequence[str] | None = None,
    scale: Scale = "logit",
) -> Scored:
    """Findings are called A, B, C, ... where they have no names."""
    return Scored.of(
        findings or "ABCDEFGHIJKLMN"[: targets_NC.shape[-1]], logits_NC, targets_NC, mask_NC, patient_id, scale
    )


def known(scores_N: NDArray[np.floating[Any]], targets_N: NDArray[np.uint8]) -> Known:
    """One finding with all labels known, every sample a patient."""
    targets_NC = targets_N[:, None]
    return scored(scores_N[:, None], targets_NC, np.ones_like(targets_NC), np.arange(len(scores_N))).known[0]


def auroc(scores_N: NDArray[np.floating[Any]], targets_N: NDArray[np.uint8]) -> float:
    """Of samples with both classes."""
    ranks = known(scores_N, targets_N).ranks
    assert ranks is not None
    return ranks.auroc()


def auprc(scores_N: NDArray[np.floating[Any]], targets_N: NDArray[np.uint8]) -> float:
    """Of samples with both classes."""
    ranks = known(scores_N, targets_N).ranks
    assert ranks is not None
    return ranks.auprc()


def auroc_per_finding(
    logits_NC: NDArray[np.float32], targets_NC: NDArray[np.uint8], mask_NC: NDArray[np.uint8]
) -> list[float | None]:
    """None where a class is absent."""
    held = scored(logits_NC, targets_NC, mask_NC, np.arange(len(logits_NC)))
    return [one.ranks and one.ranks.auroc() for one in held.known]


def predictions(
    files: Sequence[str],
    patient_ids: Sequence[object],
    findings: Sequence[str],
    logits_NC: NDArray[np.float32],
    targets_NC: NDArray[np.uint8],
    mask_NC: NDArray[np.uint8],
) -> tuple[Predictions, NDArray[np.float64]]:
    """What `write_predictions` takes."""
    held = Predictions(list(files), list(map(str, patient_ids)), findings, logits_NC, targets_NC, mask_NC)
    return held, probabilities(logits_NC)
